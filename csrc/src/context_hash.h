// Hashes of the contexts of all shapes that end at one place of a text.
//
// All come out of one pass over the last 16 tokens: a weighted sum (multilinear hashing, a different odd constant per
// distance), read off where a shape ends, less what it skips, and then mixed. The sum has no carried dependency but the
// addition, so it pipelines; the shape goes into the mix, so that equal tokens in two shapes have unlike hashes.
#pragma once

#include <algorithm>

#include "types.h"

namespace pia {

constexpr std::uint64_t mix64(std::uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdULL;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ULL;
  return x ^ (x >> 33);
}

namespace detail {

constexpr std::array<std::uint64_t, kMaxOrder> distance_weights() {
  std::array<std::uint64_t, kMaxOrder> weights{};
  for (std::uint64_t i = 0; i < kMaxOrder; ++i) weights[i] = mix64(0x9e3779b97f4a7c15ULL * (i + 1)) | 1;
  return weights;
}

inline constexpr auto kDistanceWeights = distance_weights();

}  // namespace detail

// One hash per shape, in the order of kShapes. Near the beginning of a text only the first few dense and the first few
// sparse ones fit.
struct ContextHashes {
  std::array<std::uint64_t, kNumShapes> values;
  std::uint32_t num_dense = 0;
  std::uint32_t num_sparse = 0;

  std::span<const std::uint64_t> dense() const { return {values.data(), num_dense}; }
  std::span<const std::uint64_t> sparse() const { return {values.data() + kNumDense, num_sparse}; }
  bool has(std::size_t shape) const {
    return shape < kNumDense ? shape < num_dense : shape - kNumDense < num_sparse;
  }

  // Calls `act(hash)` for each context that fits.
  template <class Act>
  void for_each(Act&& act) const {
    for (const std::uint64_t hash : dense()) act(hash);
    for (const std::uint64_t hash : sparse()) act(hash);
  }
};

// Hashes of the contexts that end before `end` (exclusive), so `end[-1]` is the last token. At most `available` tokens
// may be read.
inline void hash_contexts(const TokenId* end, std::size_t available, ContextHashes& hashes) {
  std::array<std::uint64_t, kMaxOrder + 1> sums;  // of the last 0, 1, 2, ... tokens
  sums[0] = 0;
  const std::size_t reach = std::min<std::size_t>(available, kMaxOrder);
  for (std::size_t i = 0; i < reach; ++i) {
    const std::uint64_t token = end[-1 - static_cast<std::ptrdiff_t>(i)];
    sums[i + 1] = sums[i] + (token + 1) * detail::kDistanceWeights[i];
  }
  const auto hash_shapes = [&](std::size_t first, std::size_t last) {
    std::size_t shape = first;
    for (; shape < last && kShapes[shape].span() <= reach; ++shape) {
      const auto [skip, length] = kShapes[shape];
      hashes.values[shape] = mix64(sums[skip + length] - sums[skip] + length + 64 * skip);
    }
    return static_cast<std::uint32_t>(shape - first);
  };
  hashes.num_dense = hash_shapes(0, kNumDense);
  hashes.num_sparse = hash_shapes(kNumDense, kNumShapes);
}

}  // namespace pia
