// One request: drafts from its own text and from the namespace's table, and teaches the latter when it ends well.
//
// A long prompt is learned in the background, newest part first, so that the first step need not wait for it: drafts
// are right from the start and merely know less for a while.
//
// While the model runs, its thread is idle: what the last tokens teach can wait until then (`advance`, later `learn`), and
// the drafts for the likeliest outcomes be made beforehand (`prepare`).
#pragma once

#include "draft_builder.h"
#include "draft_cache.h"
#include "outcomes.h"

namespace pia {

class DraftSession {
 public:
  DraftSession(std::shared_ptr<DraftCache> cache, std::shared_ptr<Namespace> shared, std::string space,
               std::string request, Tokens prompt, Tokens predicted, std::vector<TokenId> stop_ids,
               Corpora corpora, DraftOptions options);
  ~DraftSession();

  // The best tree of `budget` nodes that may continue the text so far; valid until the next call.
  std::span<const DraftNode> propose(std::size_t budget, std::uint32_t max_depth);
  // Takes note of emitted tokens. What they teach, the next draft knows.
  void observe(Tokens tokens);
  // Takes note of what the forward over `fed` found likely: `top[0]` behind the text so far, `top[i + 1]` behind node i. To
  // be called before `observe` or `advance` tell what was emitted. Does nothing in a session that does not recycle.
  void recycle(const FedDraft& fed, std::span<const TopTokens> top);
  // The same in two parts: drafts go on behind the tokens at once, and know what they teach after `learn`.
  void advance(Tokens tokens);
  void learn();
  // Makes the drafts, `propose(budget, max_depth)`, for the likeliest outcomes of a forward over `fed`: if one of these is
  // what `advance` is told next, the draft is there, the very one that would be made then. Returns how many were made.
  std::size_t prepare(const FedDraft& fed, std::size_t budget, std::uint32_t max_depth, std::size_t max_outcomes);
  // Whether the last proposal had been prepared.
  bool was_prepared() const { return was_prepared_; }
  // Returns once the whole prompt is learned.
  void wait();
  // Frees the request's memory; with `commit` its output is learned by the cache first. Further calls do nothing.
  void end(bool commit);

  // What the tables know of the contexts that end here: whose, which shape, the total, and the continuations. For tests
  // and explanations.
  struct KnownContext {
    Source source;
    ContextShape shape;
    std::uint32_t total;
    std::vector<Edge> edges;
  };
  std::vector<KnownContext> known_contexts();

  // For callers who can't promise that one thread uses the session at a time: false if it is in use.
  bool try_enter() { return !is_in_use_.test_and_set(std::memory_order_acquire); }
  void leave() { is_in_use_.clear(std::memory_order_release); }

  bool has_ended() const { return !own_; }
  std::size_t num_bytes() const;
  const DraftCache& cache() const { return *cache_; }

 private:
  struct Own;  // what the request alone holds

  Own& running();
  void learn(Own& own);
  bool is_stop(TokenId token) const;
  void share_recycled(const Own& own);
  // With what the last forward found likely for drafts, without it for lessons: it knows what they are about.
  enum class Recycled { kAll, kKnownBefore };
  DraftSources sources(const Own& own, Recycled recycled) const;

  std::shared_ptr<DraftCache> cache_;
  std::shared_ptr<Namespace> shared_;
  std::string space_;
  std::string request_;
  std::vector<TokenId> stop_ids_;
  Corpora corpora_;
  const DraftOptions options_;
  const std::uint32_t generation_;  // of what is recycled, when the request began
  std::unique_ptr<Own> own_;
  bool was_prepared_ = false;
  std::atomic_flag is_in_use_;
};

}  // namespace pia
