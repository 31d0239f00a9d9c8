// The likeliest next tokens of a row of logits, with their probabilities.
#pragma once

#include <cstdint>
#include <span>

namespace pia {

// Fills `ids` and `halves` (probabilities as float16 bits), likeliest first; of equal logits the smaller id comes first.
// There are at least as many logits as ids are wanted. Where fewer are numbers above -infinity, the last ids are -1.
void top_tokens(std::span<const float> logits, std::span<std::int32_t> ids, std::span<std::uint16_t> halves);

}  // namespace pia
