// The few types and constants that every part of the draft cache shares.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace pia {

using TokenId = std::uint32_t;
using Tokens = std::span<const TokenId>;

// A context is the last k tokens, for each of these k.
inline constexpr std::array<std::uint32_t, 5> kOrders = {1, 2, 4, 8, 16};
inline constexpr std::size_t kNumOrders = kOrders.size();
inline constexpr std::uint32_t kMaxOrder = kOrders.back();

// Token ids must fit in 31 bits, so that they survive a trip through int32.
inline constexpr std::int64_t kMaxVocabSize = std::int64_t{1} << 31;

// The counts of a context fade by this factor whenever the context is seen again.
inline constexpr float kCountDecay = 0.98f;

// One continuation of a context.
struct Edge {
  TokenId token;
  float count;
};

enum class Source : std::uint8_t { kOwn = 0, kShared = 1 };

}  // namespace pia
