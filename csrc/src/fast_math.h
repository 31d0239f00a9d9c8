// Exponential and logarithm to some four digits, in operations that the compiler can do on several numbers at a time.
// Drafts are guesses; four digits are more than they are worth.
#pragma once

#include <bit>
#include <cstdint>

namespace pia {

// e^x for |x| < 80; beyond, as at the border. Adding and subtracting a number this large rounds to a whole one.
inline float fast_exp(float x) {
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23
  const float low = x > -80.0f ? x : -80.0f;
  const float scaled = (low < 80.0f ? low : 80.0f) * 1.44269504f;
  const float shifted = scaled + kRounder;
  const std::int32_t whole = std::bit_cast<std::int32_t>(shifted) - std::bit_cast<std::int32_t>(kRounder);
  const float rest = (scaled - (shifted - kRounder)) * 0.69314718f;
  const float power = 1.0f + rest * (1.0f + rest * (0.5f + rest * (0.16666667f + rest * 0.041666667f)));
  return power * std::bit_cast<float>((whole + 127) << 23);
}

// The natural logarithm of a normal positive number: the exponent's part, and an inverse hyperbolic tangent for the rest.
inline float fast_log(float x) {
  const auto bits = std::bit_cast<std::int32_t>(x);
  const std::int32_t exponent = (bits - 0x3f3504f3) >> 23;  // so that the rest lies between sqrt(1/2) and sqrt(2)
  const float rest = std::bit_cast<float>(bits - (exponent << 23));
  const float t = (rest - 1.0f) / (rest + 1.0f);
  const float square = t * t;
  return 2.0f * t * (1.0f + square * (0.33333333f + square * 0.2f)) + 0.69314718f * static_cast<float>(exponent);
}

}  // namespace pia
