// Half precision numbers (IEEE 754 binary16), as far as probabilities need them: none is negative, infinite or NaN.
#pragma once

#include <bit>
#include <cstdint>

namespace pia {

inline float float_of_half(std::uint16_t half) {
  const std::uint32_t exponent = (half >> 10) & 0x1f;
  const std::uint32_t fraction = half & 0x3ff;
  if (exponent == 0) return static_cast<float>(fraction) * 0x1p-24f;
  return std::bit_cast<float>(((exponent + 112) << 23) | (fraction << 13));
}

// Rounds to nearest, ties to even.
inline std::uint16_t half_of_float(float value) {
  if (value < 0x1p-14f) return static_cast<std::uint16_t>(value * 0x1p24f + 0.5f);
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = bits + 0xfff + ((bits >> 13) & 1);
  return static_cast<std::uint16_t>((rounded >> 13) - (112 << 10));
}

}  // namespace pia
