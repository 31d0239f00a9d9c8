// The tables read as a back-off language model: which tokens may follow a context, and how likely.
//
// For order k with counts c (this request's weighted 2, the shared ones 1), u distinct continuations and total n:
//   p_k(t) = e_k p_{k-1}(t) + (1 - e_k) c(t) / n,   e_k = 0.9 u / n, or 1/2 where that would be 1 or more.
// Orders without counts are skipped; below order 1 there is nothing. Unrolled from the longest context down, each
// order adds (1 - e_k) c / n times the product of the longer orders' e, so the walk can stop once nothing is left
// to give.
#pragma once

#include <vector>

#include "context_table.h"

namespace pia {

struct Candidate {
  TokenId token;
  float own;                  // probability that comes from this request's counts
  float shared;               // and from the shared ones
  std::uint32_t last_own;     // the last order at which this request's counts named it
  float prob() const { return own + shared; }
};

class NextTokenModel {
 public:
  static constexpr std::size_t kMaxCandidates = 12;
  static constexpr float kDiscount = 0.9f;
  static constexpr float kOwnWeight = 2.0f;
  static constexpr float kMaxProb = 0.98f;
  // Once less than this is left for the shorter contexts, they are not asked.
  static constexpr float kMinEscape = 0.01f;

  NextTokenModel();

  // The likeliest next tokens after `recent` (oldest first, at most the last 16 tokens matter), best first, as far as
  // they reach `min_prob`. Probabilities are not capped. The result is valid until the next call.
  std::span<const Candidate> predict(Tokens recent, const ContextTable& own, const ContextTable& shared,
                                     float min_prob);

 private:
  struct Counts {
    float total = 0;
    std::uint32_t size = 0;
    std::array<Edge, kMaxContinuations> edges;
  };
  struct Mark {
    std::uint32_t epoch = 0;
    std::uint32_t index = 0;
  };

  void collect(const ContextTable& table, std::uint64_t hash, Counts& counts) const;
  float add_order(std::uint32_t order, float escape);
  std::uint32_t candidate_of(TokenId token);
  std::span<const Candidate> best(float min_prob);

  std::vector<Candidate> candidates_;
  std::vector<std::uint32_t> places_;  // of candidates in the order at hand
  std::vector<Mark> marks_;            // token -> index in candidates_, open addressing, emptied by a new epoch
  std::uint32_t epoch_ = 0;
  Counts own_;
  Counts shared_;
};

}  // namespace pia
