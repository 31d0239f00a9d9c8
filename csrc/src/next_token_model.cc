#include "next_token_model.h"

#include <algorithm>

namespace pia {

namespace {

// Room for every continuation of both tables at all orders, at most half full.
constexpr std::size_t kNumMarks = std::bit_ceil(2 * 2 * kNumDense * kMaxContinuations);
constexpr int kMarkShift = 32 - std::countr_zero(kNumMarks);

}  // namespace

NextTokenModel::NextTokenModel() : marks_(kNumMarks) { candidates_.reserve(2 * kNumDense * kMaxContinuations); }

std::span<const Candidate> NextTokenModel::predict(Tokens recent, const ContextTable& own, const ContextTable& shared,
                                                   float min_prob) {
  ContextHashes hashes;
  hash_contexts(recent.data() + recent.size(), recent.size(), hashes);
  for (const std::uint64_t hash : hashes.dense()) shared.prefetch(hash);
  for (const std::uint64_t hash : hashes.dense()) own.prefetch(hash);
  candidates_.clear();
  if (++epoch_ == 0) {  // wrapped: old marks could look new
    std::fill(marks_.begin(), marks_.end(), Mark{});
    epoch_ = 1;
  }
  float escape = 1.0f;
  for (std::size_t i = hashes.num_dense; i-- > 0 && escape >= kMinEscape;) {
    collect(own, hashes.values[i], own_);
    collect(shared, hashes.values[i], shared_);
    if (own_.size + shared_.size > 0) escape = add_order(kShapes[i].length, escape);
  }
  return best(min_prob);
}

void NextTokenModel::collect(const ContextTable& table, std::uint64_t hash, Counts& counts) const {
  counts.total = 0;
  counts.size = 0;
  table.visit(hash, [&](const Continuations& found) {
    counts.total = static_cast<float>(found.total);
    counts.size = static_cast<std::uint32_t>(found.edges.size());
    std::copy(found.edges.begin(), found.edges.end(), counts.edges.begin());
  });
}

// Adds what this order says, given the weight that the longer ones left; returns the weight it leaves.
float NextTokenModel::add_order(std::uint32_t order, float escape) {
  places_.clear();
  std::uint32_t num_distinct = own_.size;
  for (std::uint32_t i = 0; i < own_.size; ++i) {
    places_.push_back(candidate_of(own_.edges[i].token));
    candidates_[places_.back()].last_own = order;
  }
  for (std::uint32_t i = 0; i < shared_.size; ++i) {
    places_.push_back(candidate_of(shared_.edges[i].token));
    if (candidates_[places_.back()].last_own != order) ++num_distinct;
  }
  const float total = kOwnWeight * own_.total + shared_.total;
  const float discount = kDiscount * static_cast<float>(num_distinct);
  const float share = total > discount ? discount / total : 0.5f;
  const float scale = escape * (1.0f - share) / total;
  for (std::uint32_t i = 0; i < own_.size; ++i) {
    candidates_[places_[i]].own += scale * kOwnWeight * static_cast<float>(own_.edges[i].count);
  }
  for (std::uint32_t i = 0; i < shared_.size; ++i) {
    candidates_[places_[own_.size + i]].shared += scale * static_cast<float>(shared_.edges[i].count);
  }
  return escape * share;
}

std::uint32_t NextTokenModel::candidate_of(TokenId token) {
  std::uint32_t at = (token * 0x9e3779b1u) >> kMarkShift;
  for (;; at = (at + 1) & (kNumMarks - 1)) {
    Mark& mark = marks_[at];
    if (mark.epoch != epoch_) {
      mark = {epoch_, static_cast<std::uint32_t>(candidates_.size())};
      candidates_.push_back({token, 0.0f, 0.0f, 0});
      return mark.index;
    }
    if (candidates_[mark.index].token == token) return mark.index;
  }
}

std::span<const Candidate> NextTokenModel::best(float min_prob) {
  // Ties go to the smaller id, so that drafts never depend on where tokens lie in memory.
  const auto is_better = [](const Candidate& a, const Candidate& b) {
    return a.prob() != b.prob() ? a.prob() > b.prob() : a.token < b.token;
  };
  const auto begin = candidates_.begin();
  const auto end = std::partition(begin, candidates_.end(), [&](const Candidate& c) { return c.prob() >= min_prob; });
  const auto count = std::min<std::ptrdiff_t>(end - begin, kMaxCandidates);
  std::partial_sort(begin, begin + count, end, is_better);
  return {candidates_.data(), static_cast<std::size_t>(count)};
}

}  // namespace pia
