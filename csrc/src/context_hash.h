// Hashes of the last 1, 2, 4, 8 and 16 tokens.
//
// All orders come out of one pass over the last 16 tokens: a weighted sum (multilinear hashing, a different odd
// constant per distance), read off at each order and then mixed. The sum has no carried dependency but the addition,
// so it pipelines; the order goes into the mix, so contexts of different orders never share a hash by construction.
#pragma once

#include "types.h"

namespace pia {

using ContextHashes = std::array<std::uint64_t, kNumOrders>;

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

// Hashes of the contexts that end before `end` (exclusive). At most `available` tokens may be read; returns how many
// orders fit. `end[-1]` is the last token.
inline std::size_t hash_contexts(const TokenId* end, std::size_t available, ContextHashes& hashes) {
  std::uint64_t sum = 0;
  std::size_t distance = 0;
  for (std::size_t i = 0; i < kNumOrders; ++i) {
    const std::size_t order = kOrders[i];
    if (order > available) return i;
    for (; distance < order; ++distance) {
      const std::uint64_t token = end[-1 - static_cast<std::ptrdiff_t>(distance)];
      sum += (token + 1) * detail::kDistanceWeights[distance];
    }
    hashes[i] = mix64(sum + order);
  }
  return kNumOrders;
}

}  // namespace pia
