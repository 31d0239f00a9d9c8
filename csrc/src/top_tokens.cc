#include "top_tokens.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "fast_math.h"
#include "half.h"

namespace pia {

namespace {

// So many logits are compared at once with the least one kept: nearly all of them fall short.
constexpr std::size_t kBlock = 16;

// What is left out of a sum of probabilities is at most e to minus that, all in all.
constexpr float kNegligible = 5.0f;

float largest(const float* values, std::size_t count) {
  std::array<float, 4> best;
  best.fill(-std::numeric_limits<float>::infinity());
  std::size_t i = 0;
  for (; i + best.size() <= count; i += best.size()) {
    for (std::size_t j = 0; j < best.size(); ++j) best[j] = values[i + j] > best[j] ? values[i + j] : best[j];
  }
  for (; i < count; ++i) best[0] = std::max(best[0], values[i]);
  return std::max(std::max(best[0], best[1]), std::max(best[2], best[3]));
}

// Of the blocks whose largest logit lies above `floor`; the others add next to nothing.
float sum_of_powers(std::span<const float> logits, std::span<const float> maxima, float top, float floor) {
  std::array<float, kBlock> sums{};
  for (std::size_t block = 0; block < maxima.size(); ++block) {
    if (maxima[block] < floor) continue;
    const std::span<const float> part = logits.subspan(block * kBlock);
    if (part.size() >= kBlock) {
      for (std::size_t j = 0; j < kBlock; ++j) sums[j] += fast_exp(part[j] - top);
    } else {
      for (std::size_t j = 0; j < part.size(); ++j) sums[j] += fast_exp(part[j] - top);
    }
  }
  float sum = 0;
  for (const float part : sums) sum += part;
  return sum;
}

}  // namespace

void top_tokens(std::span<const float> logits, std::span<std::int32_t> ids, std::span<std::uint16_t> halves) {
  const std::size_t count = ids.size();
  std::vector<float> values(count, -std::numeric_limits<float>::infinity());
  std::fill(ids.begin(), ids.end(), -1);
  const auto offer = [&](std::size_t token) {
    const float value = logits[token];
    if (!(value > values.back())) return;
    std::size_t at = count - 1;
    for (; at > 0 && value > values[at - 1]; --at) {
      values[at] = values[at - 1];
      ids[at] = ids[at - 1];
    }
    values[at] = value;
    ids[at] = static_cast<std::int32_t>(token);
  };
  std::vector<float> maxima((logits.size() + kBlock - 1) / kBlock);
  for (std::size_t block = 0; block < maxima.size(); ++block) {
    const std::size_t start = block * kBlock;
    const std::size_t length = std::min(kBlock, logits.size() - start);
    maxima[block] = largest(logits.data() + start, length);
    if (!(maxima[block] > values.back())) continue;
    for (std::size_t i = start; i < start + length; ++i) offer(i);
  }
  const float floor = values.front() - std::log(static_cast<float>(logits.size())) - kNegligible;
  const float sum = sum_of_powers(logits, maxima, values.front(), floor);
  for (std::size_t i = 0; i < count; ++i) {
    halves[i] = ids[i] < 0 ? 0 : half_of_float(fast_exp(values[i] - values.front()) / sum);
  }
}

}  // namespace pia
