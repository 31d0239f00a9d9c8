#include "predicted_output.h"

#include <algorithm>

namespace pia {

PredictedOutput::State PredictedOutput::advance(const State& state, TokenId before, TokenId token) const {
  const auto is_at = [&](std::uint32_t place) { return place < text_.size() && text_[place] == token; };
  if (is_at(state.next)) return {state.next + 1, state.next + 1, state.streak + 1};
  if (is_at(state.alternative)) return {state.alternative + 1, state.alternative + 1, 1};
  return lose_track(state, before, token);
}

// Two tokens in a row that stand somewhere near settle where we are. One token alone does only while nothing better is
// known, and is looked for ahead. Else either this token replaced the expected one, or it was put in before it.
PredictedOutput::State PredictedOutput::lose_track(const State& state, TokenId before, TokenId token) const {
  const auto size = static_cast<std::uint32_t>(text_.size());
  const std::uint32_t anchor = std::min(state.alternative, size);
  const std::uint32_t begin = anchor > kReach ? anchor - kReach : 0;
  const std::uint32_t end = std::min(size, anchor + kReach);
  const auto is_pair = [&](std::uint32_t at) { return at > 0 && text_[at] == token && text_[at - 1] == before; };
  for (std::uint32_t at = anchor; at < end; ++at) {
    if (is_pair(at)) return {at + 1, at + 1, 1};
  }
  for (std::uint32_t at = anchor; at-- > begin;) {
    if (is_pair(at)) return {at + 1, at + 1, 1};
  }
  const auto found = std::find(text_.begin() + anchor, text_.begin() + end, token);
  if (found != text_.begin() + end) {
    const auto after = static_cast<std::uint32_t>(found - text_.begin()) + 1;
    return {after, anchor, 0};
  }
  return {std::min(std::max(state.next, anchor) + 1, size), anchor, 0};
}

}  // namespace pia
