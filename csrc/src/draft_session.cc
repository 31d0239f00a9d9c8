#include "draft_session.h"

#include <optional>
#include <stdexcept>

#include "prompt_reader.h"

namespace pia {

namespace {

// Longer prompts than this, about half a millisecond's worth, are learned in the background.
constexpr std::size_t kMaxPromptAtOnce = 2048;

// Distinct contexts that a token makes, about; what of them recurs differs with the text.
constexpr std::size_t kContextsPerToken = 5;

}  // namespace

struct DraftSession::Own {
  Own(MemoryMeter& request_meter, std::shared_ptr<MixingModel> mixing, Tokens prompt, Tokens predicted_text)
      : meter(request_meter),
        text(prompt.begin(), prompt.end()),
        num_prompt(prompt.size()),
        table(request_meter, prompt.size() > kMaxPromptAtOnce, kContextsPerToken * (prompt.size() + predicted_text.size())),
        predicted(predicted_text),
        builder(std::move(mixing)) {
    book_text();
    table.insert(predicted_text, 0);
    if (num_prompt > kMaxPromptAtOnce) {
      reader = std::make_unique<PromptReader>(text, num_prompt, table);
    } else {
      table.insert(text, 0);
    }
  }

  ~Own() { meter.release(num_text_bytes); }

  // Books the text's memory; requests are not bounded, so the meter never refuses.
  void book_text() {
    meter.release(num_text_bytes);
    num_text_bytes = (text.capacity() + predicted.text().size()) * sizeof(TokenId);
    meter.try_charge(num_text_bytes);
  }

  void append(Tokens tokens, const DraftSources& sources) {
    const std::size_t first = text.size();
    text.insert(text.end(), tokens.begin(), tokens.end());
    book_text();
    state = builder.learn(text, first, state, sources);
    table.insert(text, first);
  }

  // Once the prompt is learned this thread has the table to itself.
  void dismiss_reader() {
    reader.reset();
    table.use_alone();
  }

  MemoryMeter& meter;
  std::vector<TokenId> text;  // prompt and output
  std::size_t num_prompt;
  std::size_t num_text_bytes = 0;
  ContextTable table;
  const PredictedOutput predicted;
  PredictedOutput::State state;  // where the output stands in the prediction
  DraftBuilder builder;
  std::unique_ptr<PromptReader> reader;  // while it reads
};

DraftSession::DraftSession(std::shared_ptr<DraftCache> cache, std::shared_ptr<Namespace> shared, std::string space,
                           std::string request, Tokens prompt, Tokens predicted, std::vector<TokenId> stop_ids,
                           Corpora corpora)
    : cache_(std::move(cache)),
      shared_(std::move(shared)),
      space_(std::move(space)),
      request_(std::move(request)),
      stop_ids_(std::move(stop_ids)),
      corpora_(std::move(corpora)),
      own_(std::make_unique<Own>(cache_->request_meter_, cache_->mixing_, prompt, predicted)) {}

DraftSession::~DraftSession() { end(false); }

DraftSession::Own& DraftSession::running() {
  if (!own_) throw std::invalid_argument("this draft session has ended; begin a new one");
  if (own_->reader && own_->reader->is_done()) own_->dismiss_reader();
  return *own_;
}

DraftSources DraftSession::sources(const Own& own) const { return {own.table, shared_->table, own.predicted, corpora_}; }

std::span<const DraftNode> DraftSession::propose(std::size_t budget, std::uint32_t max_depth) {
  Own& own = running();
  return own.builder.build(own.text, own.state, sources(own), budget, max_depth);
}

void DraftSession::observe(Tokens tokens) {
  Own& own = running();
  std::optional<PromptReader::Turn> turn;
  if (own.reader) turn.emplace(*own.reader);
  own.append(tokens, sources(own));
}

std::vector<DraftSession::KnownContext> DraftSession::known_contexts() {
  const Own& own = running();
  ContextHashes hashes;
  hash_contexts(own.text.data() + own.text.size(), own.text.size(), hashes);
  std::vector<KnownContext> known;
  const auto look = [&](const auto& table, Source source) {
    for (std::size_t shape = 0; shape < kNumShapes; ++shape) {
      if (!hashes.has(shape)) continue;
      table.visit(hashes.values[shape], [&](const Continuations& found) {
        known.push_back({source, kShapes[shape], found.total, {found.edges.begin(), found.edges.end()}});
      });
    }
  };
  look(own.table, Source::kOwn);
  look(shared_->table, Source::kShared);
  for (const auto& corpus : corpora_) look(*corpus, Source::kCorpus);
  return known;
}

void DraftSession::wait() {
  Own& own = running();
  if (!own.reader) return;
  own.reader->wait();
  own.dismiss_reader();
}

void DraftSession::end(bool commit) {
  if (!own_) return;
  const auto own = std::move(own_);
  own->reader.reset();
  if (commit) cache_->learn(Tokens(own->text).subspan(own->num_prompt), stop_ids_, space_, request_);
  shared_.reset();
  corpora_.clear();
  cache_->forget_if_empty(space_);
}

std::size_t DraftSession::num_bytes() const {
  return own_ ? own_->table.num_bytes() + own_->num_text_bytes : 0;
}

}  // namespace pia
