// The few types and constants that every part of the draft cache shares.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace pia {

using TokenId = std::uint32_t;
using Tokens = std::span<const TokenId>;

// Which of the latest tokens make a context: `length` of them, after leaving out the last `skip`. Sparse contexts
// (skip > 0) go on matching where the text at hand differs from what was learned in its last token.
struct ContextShape {
  std::uint32_t skip;
  std::uint32_t length;
  constexpr std::uint32_t span() const { return skip + length; }
};

// Dense shapes first, in ascending order, then the sparse ones, likewise.
inline constexpr std::array<ContextShape, 7> kShapes = {{{0, 1}, {0, 2}, {0, 4}, {0, 12}, {1, 1}, {1, 2}, {2, 1}}};
inline constexpr std::size_t kNumShapes = kShapes.size();
inline constexpr std::size_t kNumDense = 4;
inline constexpr std::size_t kNumSparse = kNumShapes - kNumDense;
inline constexpr std::uint32_t kMaxOrder = 12;  // no context reaches further back

// As many continuations of a context are handed to readers, the most frequent ones.
inline constexpr std::uint32_t kMaxContinuations = 64;

// Token ids must fit in 31 bits, so that they survive a trip through int32.
inline constexpr std::int64_t kMaxVocabSize = std::int64_t{1} << 31;

// One continuation of a context, and how often it was seen.
struct Edge {
  TokenId token;
  std::uint32_t count;
};

// The order in which continuations lie: most frequent first, then by id, whatever order they were learned in.
constexpr bool comes_before(const Edge& a, const Edge& b) {
  return a.count != b.count ? a.count > b.count : a.token < b.token;
}

// What a context says: its most frequent continuations, and the count of all.
struct Continuations {
  std::uint32_t total;
  std::span<const Edge> edges;
};

// Who proposed a node.
enum class Source : std::uint8_t { kOwn = 0, kShared = 1, kCorpus = 2, kPredicted = 3, kRecycled = 4, kJacobi = 5 };

}  // namespace pia
