#include "draft_session.h"

#include <algorithm>
#include <optional>
#include <stdexcept>

#include "prompt_reader.h"

namespace pia {

namespace {

// Longer prompts than this, about half a millisecond's worth, are learned in the background.
constexpr std::size_t kMaxPromptAtOnce = 2048;

// Distinct contexts that a token makes, about; what of them recurs differs with the text.
constexpr std::size_t kContextsPerToken = 5;

constexpr std::size_t kRecycledOrder = kShapes[kNumRecycledShapes - 1].length;

// So much holds 200,000 contexts; a request of thousands of steps over large trees fills that.
constexpr std::size_t kMaxRecycledBytes = std::size_t{16} << 20;

// Calls `act(hash)` for each context at the end of `text` by which likely tokens are kept.
template <class Act>
void for_each_recycled_context(Tokens text, Act&& act) {
  ContextHashes hashes;
  hash_contexts(text.data() + text.size(), text.size(), hashes);
  for (const std::uint64_t hash : hashes.dense().first(std::min<std::size_t>(hashes.num_dense, kNumRecycledShapes))) {
    act(hash);
  }
}

// A draft made before it was known that the text would go on with `tokens`.
struct Prepared {
  std::vector<TokenId> tokens;
  std::size_t budget;
  std::uint32_t max_depth;
  Draft draft;

  bool is_for(Tokens emitted) const { return std::equal(tokens.begin(), tokens.end(), emitted.begin(), emitted.end()); }
};

}  // namespace

struct DraftSession::Own {
  Own(MemoryMeter& request_meter, std::shared_ptr<MixingModel> mixing, Tokens prompt, Tokens predicted_text)
      : meter(request_meter),
        text(prompt.begin(), prompt.end()),
        num_prompt(prompt.size()),
        table(request_meter, prompt.size() > kMaxPromptAtOnce, kContextsPerToken * (prompt.size() + predicted_text.size())),
        predicted(predicted_text),
        recycled(request_meter, kMaxRecycledBytes),
        fresh(request_meter, kMaxRecycledBytes),
        builder(std::move(mixing)),
        num_learned(prompt.size()) {
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

  // The context that each fed token ends, and what was found likely behind it.
  void recycle(const FedDraft& fed, std::span<const TopTokens> top) {
    std::vector<TokenId> recent;
    for (std::size_t i = 0; i < top.size(); ++i) {
      recent.clear();  // newest first
      for (auto node = static_cast<std::int32_t>(i) - 1; node >= 0 && recent.size() < kRecycledOrder;
           node = fed.parents[static_cast<std::size_t>(node)]) {
        recent.push_back(fed.tokens[static_cast<std::size_t>(node)]);
      }
      for (std::size_t left = text.size(); left > 0 && recent.size() < kRecycledOrder;) recent.push_back(text[--left]);
      std::reverse(recent.begin(), recent.end());
      for_each_recycled_context(recent, [&](std::uint64_t hash) { fresh.put(hash, top[i]); });
    }
  }

  // Puts tokens behind the text, and off what they teach.
  void append(Tokens tokens) {
    judge_paths(draft, tokens, path_lessons);
    draft.clear();
    for (const TokenId token : tokens) {
      if (!predicted.is_empty()) state = predicted.advance(state, text.empty() ? token : text.back(), token);
      text.push_back(token);
    }
    book_text();
  }

  void learn(const DraftSources& sources) {
    builder.learn(path_lessons, text, num_learned, learned_state, sources);
    table.insert(text, num_learned);
    recycled.merge(fresh);
    fresh.wipe();
    path_lessons.clear();
    num_learned = text.size();
    learned_state = state;
  }

  // The draft that goes on from the text and further tokens, which teach nothing.
  Draft draft_behind(Tokens tokens, const DraftSources& sources, std::size_t budget, std::uint32_t max_depth) {
    const std::size_t reach = std::min<std::size_t>(text.size(), kMaxOrder);
    std::vector<TokenId> recent(text.end() - static_cast<std::ptrdiff_t>(reach), text.end());
    PredictedOutput::State state_behind = state;
    for (const TokenId token : tokens) {
      if (!predicted.is_empty()) {
        state_behind = predicted.advance(state_behind, recent.empty() ? token : recent.back(), token);
      }
      recent.push_back(token);
    }
    Draft made;
    builder.build(recent, state_behind, sources, budget, max_depth, made);
    return made;
  }

  // Prepared drafts hold for the text and the tables as they are.
  void drop_prepared() {
    prepared.clear();
    ready.reset();
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
  RecycledTable recycled;        // what the model found likely
  RecycledTable fresh;           // and lately, not yet learned
  PredictedOutput::State state;  // where the output stands in the prediction
  DraftBuilder builder;
  Draft draft;                                // proposed last, as long as nothing has come of it
  std::size_t num_learned;                    // tokens of the text whose lessons are learned
  PredictedOutput::State learned_state;       // where they end in the prediction
  std::vector<PathLesson> path_lessons;       // to be learned
  std::vector<Prepared> prepared;             // for what may be emitted next
  std::optional<Prepared> ready;              // for what was emitted
  std::unique_ptr<PromptReader> reader;  // while it reads
};

DraftSession::DraftSession(std::shared_ptr<DraftCache> cache, std::shared_ptr<Namespace> shared, std::string space,
                           std::string request, Tokens prompt, Tokens predicted, std::vector<TokenId> stop_ids,
                           Corpora corpora, DraftOptions options)
    : cache_(std::move(cache)),
      shared_(std::move(shared)),
      space_(std::move(space)),
      request_(std::move(request)),
      stop_ids_(std::move(stop_ids)),
      corpora_(std::move(corpora)),
      options_(options),
      generation_(shared_->recycled.generation()),
      own_(std::make_unique<Own>(cache_->request_meter_, cache_->mixing_, prompt, predicted)) {}

DraftSession::~DraftSession() { end(false); }

DraftSession::Own& DraftSession::running() {
  if (!own_) throw std::invalid_argument("this draft session has ended; begin a new one");
  if (own_->reader && own_->reader->is_done()) own_->dismiss_reader();
  return *own_;
}

DraftSources DraftSession::sources(const Own& own, Recycled recycled) const {
  RecycledTables tables;
  if (options_.recycles) {
    tables = {recycled == Recycled::kAll ? &own.fresh : nullptr, &own.recycled, &shared_->recycled};
  }
  return {own.table, shared_->table, own.predicted, corpora_, tables, options_.pool.get(), options_.reads_counts};
}

std::span<const DraftNode> DraftSession::propose(std::size_t budget, std::uint32_t max_depth) {
  Own& own = running();
  was_prepared_ = own.ready && own.ready->budget == budget && own.ready->max_depth == max_depth;
  if (was_prepared_) {
    own.draft = std::move(own.ready->draft);
  } else {
    own.builder.build(own.text, own.state, sources(own, Recycled::kAll), budget, max_depth, own.draft);
  }
  own.ready.reset();
  return own.draft.nodes;
}

void DraftSession::observe(Tokens tokens) {
  advance(tokens);
  learn();
}

void DraftSession::recycle(const FedDraft& fed, std::span<const TopTokens> top) {
  if (options_.recycles) running().recycle(fed, top);
}

void DraftSession::advance(Tokens tokens) {
  Own& own = running();
  own.ready.reset();
  const auto found =
      std::find_if(own.prepared.begin(), own.prepared.end(), [&](const Prepared& draft) { return draft.is_for(tokens); });
  if (found != own.prepared.end()) own.ready = std::move(*found);
  own.prepared.clear();
  std::optional<PromptReader::Turn> turn;
  if (own.reader) turn.emplace(*own.reader);
  own.append(tokens);
}

void DraftSession::learn() { learn(running()); }

void DraftSession::learn(Own& own) {
  if (own.num_learned == own.text.size()) return;
  own.drop_prepared();
  std::optional<PromptReader::Turn> turn;
  if (own.reader) turn.emplace(*own.reader);
  own.learn(sources(own, Recycled::kKnownBefore));
}

std::size_t DraftSession::prepare(const FedDraft& fed, std::size_t budget, std::uint32_t max_depth,
                                  std::size_t max_outcomes) {
  Own& own = running();
  own.drop_prepared();
  if (options_.recycles || options_.pool) return 0;  // what this forward finds likely belongs into the next draft
  const DraftSources known = sources(own, Recycled::kAll);
  // Some of what a larger tree has more are children of each other, which are no outcomes of this forward.
  const Draft grown = own.draft_behind({}, known, fed.tokens.size() + 2 * max_outcomes, max_depth + 1);
  for (auto& tokens : likeliest_outcomes(grown.nodes, fed, max_outcomes)) {
    if (is_stop(tokens.back())) continue;
    Draft draft = own.draft_behind(tokens, known, budget, max_depth);
    own.prepared.push_back({std::move(tokens), budget, max_depth, std::move(draft)});
  }
  return own.prepared.size();
}

bool DraftSession::is_stop(TokenId token) const {
  return std::find(stop_ids_.begin(), stop_ids_.end(), token) != stop_ids_.end();
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
  if (commit) learn(*own);
  if (commit && options_.recycles) share_recycled(*own);
  if (commit) cache_->learn(Tokens(own->text).subspan(own->num_prompt), stop_ids_, space_, request_);
  shared_.reset();
  corpora_.clear();
  cache_->forget_if_empty(space_);
}

// What was found likely behind the output, by contexts that do not reach back into the prompt: of the prompt, and of drafts
// that came to nothing, others learn nothing.
void DraftSession::share_recycled(const Own& own) {
  cache_->make_way_in_recycled(*shared_);
  const Tokens output = Tokens(own.text).subspan(own.num_prompt);
  shared_->recycled.take(generation_, [&](auto&& put) {
    for (std::size_t length = 1; length <= output.size(); ++length) {
      for_each_recycled_context(output.first(length), [&](std::uint64_t hash) {
        if (const TopTokens* top = own.recycled.find(hash)) put(hash, *top);
      });
    }
  });
}

std::size_t DraftSession::num_bytes() const {
  if (!own_) return 0;
  return own_->table.num_bytes() + own_->recycled.num_bytes() + own_->fresh.num_bytes() + own_->num_text_bytes;
}

}  // namespace pia
