// Fuzz target: an input is a program over one small draft cache.
//
// The vocabulary is small, so that contexts recur and fork, and so is the memory, so that contexts are evicted and
// sequences forgotten for room. Whatever the program was, the cache must be whole after it and within its bound, and
// once every sequence in the log is forgotten nothing may be left of them. See tools/fuzz.sh.
#include <filesystem>
#include <stdexcept>

#include <unistd.h>

#include "corpus_builder.h"
#include "fuzz.h"

namespace {

using fuzz::Bytes;
using fuzz::require;
using pia::DraftCache;
using pia::DraftSession;
using pia::TokenId;

using Text = std::vector<TokenId>;

constexpr TokenId kVocabSize = 16;  // of most tokens; a few are as large as tokens can be
constexpr TokenId kLargestToken = 0x7fffffff;
constexpr std::size_t kMaxSteps = 64;
constexpr std::size_t kMaxTokens = 6000;  // per input; some cost it next to no bytes but all cost time
constexpr std::size_t kMaxSessions = 4;
constexpr std::size_t kLongPrompt = 2100;  // is learned in the background

TokenId token_of(std::uint32_t byte) {
  return byte < 0xf0 ? byte % kVocabSize : kLargestToken >> (byte & 7) * 4;
}

// A text with habits of its own.
Text generated_text(std::uint32_t seed, std::size_t length, TokenId vocab_size) {
  Text text(length);
  TokenId last = 0;
  for (auto& token : text) {
    seed = seed * 1664525u + 1013904223u;
    last = (seed >> 24) % 4 ? (last * 7 + 3) % vocab_size : (seed >> 16) % vocab_size;
    token = last;
  }
  return text;
}

std::shared_ptr<pia::Corpus> make_corpus(std::uint32_t seed) {
  const auto path = std::filesystem::temp_directory_path() /
                    ("pia_fuzz." + std::to_string(::getpid()) + "." + std::to_string(seed));
  pia::CorpusBuilder builder(path, kVocabSize, 64 << 10);
  builder.extend(generated_text(seed, 2000, kVocabSize));
  const auto figures = builder.finish([](std::uint64_t, std::uint64_t) {});
  const pia::File file(path, O_RDONLY);
  ::unlink(path.c_str());
  return std::make_shared<pia::Corpus>(
      file.descriptor(), pia::Corpus::Layout{kVocabSize, figures.num_buckets, figures.num_words,
                                             figures.directory_checksum, figures.data_checksum});
}

class Program {
 public:
  explicit Program(Bytes bytes)
      : bytes_(bytes), cache_(std::make_shared<DraftCache>(DraftCache::kMinBytes << bytes_.byte() % 4)) {}

  void run() {
    for (std::size_t step = 0; step < kMaxSteps && !bytes_.is_empty(); ++step) {
      this->step();
      require(cache_->num_bytes() <= cache_->max_bytes(), "the memory bound is broken");
    }
    check();
    for (auto& session : sessions_) end(session.get(), true);
    sessions_.clear();
    require(cache_->num_request_bytes() == 0, "a request left memory behind");
    check();
    forget_all();
    cache_->clear();
    require(cache_->num_bytes() == 0 && cache_->namespaces().empty(), "clear left something behind");
  }

 private:
  void check() const {
    const auto fault = cache_->find_fault();
    require(!fault, fault ? fault->c_str() : "");
  }

  std::size_t room(std::size_t wanted) {
    wanted = std::min(wanted, kMaxTokens - num_tokens_);
    num_tokens_ += wanted;
    return wanted;
  }

  // Written out in the input, or generated from a seed, or one used before.
  Text text() {
    const std::uint32_t kind = bytes_.byte();
    if (kind < 0x40 && !texts_.empty()) {
      const Text& known = texts_[kind % texts_.size()];
      if (room(known.size()) == known.size()) return known;
    }
    if (kind >= 0xc0) {
      texts_.push_back(generated_text(bytes_.byte(), room(bytes_.half() % 1024), kind & 1 ? kVocabSize : 5000));
    } else {
      Text written(std::min<std::size_t>(kind % 64, bytes_.num_left()));
      for (auto& token : written) token = token_of(bytes_.byte());
      texts_.push_back(std::move(written));
    }
    return texts_.back();
  }

  Text short_text() {
    Text written(bytes_.byte() % 8);
    for (auto& token : written) token = token_of(bytes_.byte());
    return written;
  }

  std::string space() { return "space " + std::to_string(bytes_.byte() % 5); }
  std::string request() {
    const std::uint32_t id = bytes_.byte() % 6;
    return id == 0 ? "" : std::to_string(id);
  }
  std::vector<TokenId> stop_ids() {
    const std::uint32_t choice = bytes_.byte();
    if (choice & 1) return {};
    return choice & 2 ? std::vector<TokenId>{choice % kVocabSize} : std::vector<TokenId>{0, 5, kLargestToken};
  }
  pia::Corpora corpora() {
    static const pia::Corpora all = {make_corpus(1), make_corpus(2)};
    const std::uint32_t choice = bytes_.byte();
    if (choice & 1) return {};
    return choice & 2 ? all : pia::Corpora{all.front()};
  }

  DraftSession* session() {
    return sessions_.empty() ? nullptr : sessions_[bytes_.byte() % sessions_.size()].get();
  }

  void step() {
    switch (bytes_.byte() % 16) {
      case 0: return begin();
      case 1: case 2: case 3: return propose(session());
      case 4: case 5: return observe(session());
      case 6: return end(session(), bytes_.byte() % 4 != 0);
      case 7: case 8: return learn();
      case 9: return learn_many();
      case 10: cache_->forget(request(), space()); return;
      case 11: return forget_text();
      case 12: return clear();
      case 13: return follow(session());
      case 14: return wait(session());
      default: return check();
    }
  }

  void begin() {
    if (sessions_.size() == kMaxSessions) sessions_.erase(sessions_.begin() + bytes_.byte() % kMaxSessions);
    Text prompt = text();
    if (bytes_.byte() >= 0xf8 && num_tokens_ + kLongPrompt <= kMaxTokens) {
      prompt = generated_text(bytes_.byte(), room(kLongPrompt), kVocabSize);
    }
    const Text predicted = bytes_.byte() & 1 ? text() : Text{};
    auto stops = stop_ids();
    auto name = space();
    auto id = request();
    const auto attached = corpora();
    const std::uint32_t choice = bytes_.byte();
    pia::DraftOptions options{(choice & 3) != 1, (choice & 3) != 2, nullptr};
    if (choice & 4) options.pool = pool_;
    sessions_.push_back(
        cache_->begin(prompt, std::move(stops), std::move(name), std::move(id), predicted, attached, options));
  }

  // Does what may be done to a session under way only; one that has ended must say so.
  template <class Act>
  static void with(DraftSession* session, Act&& act) {
    if (!session) return;
    const bool has_ended = session->has_ended();
    try {
      act();
      require(!has_ended, "a session that has ended goes on");
    } catch (const std::invalid_argument&) {
      require(has_ended, "a session under way refuses to go on");
    }
  }

  void propose(DraftSession* session) {
    const std::size_t budget = bytes_.byte() % 80;
    const std::uint32_t max_depth = 1 + bytes_.byte() % 40;
    with(session, [&] { fuzz::check_tree(session->propose(budget, max_depth), budget, max_depth); });
  }

  void observe(DraftSession* session) {
    const Text tokens = short_text();
    with(session, [&] { session->observe(tokens); });
  }

  // Observes what was proposed, as far as one path goes, and then something else: as generating does.
  void follow(DraftSession* session) {
    const std::size_t length = bytes_.byte() % 12;
    const TokenId bonus = token_of(bytes_.byte());
    with(session, [&] {
      Text accepted;
      std::int32_t last = -1;
      const auto nodes = session->propose(40, 12);
      for (std::size_t i = 0; i < nodes.size() && accepted.size() < length; ++i) {
        if (nodes[i].parent != last) continue;
        accepted.push_back(nodes[i].token);
        last = static_cast<std::int32_t>(i);
      }
      accepted.push_back(bonus);
      Text fed;
      std::vector<std::int32_t> parents;
      for (const auto& node : nodes) {
        fed.push_back(node.token);
        parents.push_back(node.parent);
      }
      session->recycle({fed, parents}, likeliest(fed.size() + 1));
      pool_->add(Text{bonus, token_of(bonus + 1), token_of(bonus + 2)});
      if (length % 2) return session->observe(accepted);
      session->learn();
      session->prepare({fed, parents}, 40, 12, bonus % 6);
      session->advance(accepted);
    });
  }

  // What a model may find likely: a few tokens at each place, fewer than eight at some.
  std::vector<pia::TopTokens> likeliest(std::size_t num_places) {
    std::vector<pia::TopTokens> top(num_places);
    std::uint32_t random = bytes_.byte();
    for (auto& place : top) {
      for (std::size_t i = 0; i < pia::kNumTop; ++i) {
        random = random * 1664525u + 1013904223u;
        place.tokens[i] = token_of(static_cast<std::uint8_t>(random >> 24));
        place.likelihoods[i] = static_cast<pia::Likelihood>(i < random % 9 ? (random >> 8) % pia::kNumLikelihoods : 0);
      }
    }
    return top;
  }

  void wait(DraftSession* session) {
    with(session, [&] {
      if (bytes_.byte() & 1) session->wait();
      session->known_contexts();
    });
  }

  void end(DraftSession* session, bool commit) {
    if (!session) return;
    session->end(commit);
    require(session->has_ended() && session->num_bytes() == 0, "a session does not end");
  }

  void learn() {
    const Text tokens = text();
    const auto stops = stop_ids();
    const auto name = space();
    cache_->learn(tokens, stops, name, request());
  }

  void learn_many() {
    std::vector<Text> texts(bytes_.byte() % 5);
    for (auto& one : texts) one = text();
    std::vector<pia::LearnedSequence> sequences;
    for (const auto& one : texts) sequences.push_back({one, request()});
    // Enough for two threads to share, once per input: it takes as long as a thousand other steps.
    Text much;
    if (bytes_.byte() == 0xff && !has_learned_much_) {
      has_learned_much_ = true;
      much = generated_text(bytes_.byte(), pia::ContextTable::kBulkTokens / 16, 5000);
      for (pia::Tokens left = much; !left.empty();) {
        const pia::Tokens part = left.first(std::min<std::size_t>(left.size(), 1000));
        sequences.push_back({part, "much"});
        left = left.subspan(part.size());
      }
    }
    cache_->learn_many(std::move(sequences), space());
  }

  void forget_text() {
    const Text tokens = text();
    const auto stops = stop_ids();
    cache_->forget_text(tokens, stops, space());
  }

  void clear() {
    if (bytes_.byte() % 4 == 0) return cache_->clear();
    cache_->clear(space());
  }

  // What the tables know is owed to the log.
  void forget_all() {
    for (const auto& name : cache_->namespaces()) {
      std::vector<Text> remembered;
      cache_->read_log(name, [&](Text tokens, const std::string*) { remembered.push_back(std::move(tokens)); });
      for (const auto& tokens : remembered) {
        require(cache_->forget_text(tokens, {}, name) == tokens.size(), "a remembered sequence can't be forgotten");
      }
    }
    check();
    require(cache_->num_tokens() == 0, "sequences are left when all were forgotten");
    require(cache_->num_contexts() == 0, "contexts are left when all sequences were forgotten");
  }

  Bytes bytes_;
  std::shared_ptr<DraftCache> cache_;
  std::vector<std::unique_ptr<DraftSession>> sessions_;
  const std::shared_ptr<pia::NgramPool> pool_ = std::make_shared<pia::NgramPool>(3, 4, 64);
  std::vector<Text> texts_;
  std::size_t num_tokens_ = 0;
  bool has_learned_much_ = false;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Program({data, size}).run();
  return 0;
}
