#include "predicted_output.h"

#include <algorithm>
#include <bit>

namespace pia {

namespace {

// The kinds of trust: on track by streak; a second place where the same was said; and after losing track.
constexpr Trust kOnTrack = 0;
constexpr Trust kElsewhere = 16;
constexpr Trust kReplaced = 20;
constexpr Trust kPutIn = 25;
constexpr Trust kLeftOut = 30;
constexpr Trust kPairAhead = 36;
constexpr Trust kPairBehind = 42;

// Tokens in a row that settle where we are.
constexpr std::uint32_t kSettled = 2;

Trust on_track(std::uint32_t streak) {  // one by one to eight, then in steps of a factor of two
  const auto step = streak < 8 ? streak : static_cast<std::uint32_t>(std::bit_width(streak)) + 4;
  return static_cast<Trust>(kOnTrack + std::min<std::uint32_t>(step, 15));
}

Trust by_size(Trust kind, std::uint32_t size, std::uint32_t num_steps) {
  const auto step = std::min(static_cast<std::uint32_t>(std::bit_width(size)), num_steps) - 1;
  return static_cast<Trust>(kind + step);
}

void add(PredictedOutput::State& state, std::uint32_t next, Trust trust) {
  if (state.num == PredictedOutput::kNumHypotheses) return;
  for (std::size_t i = 0; i < state.num; ++i) {
    if (state.hypotheses[i].next == next) return;
  }
  state.hypotheses[state.num++] = {next, trust};
}

}  // namespace

float first_guess_of(Trust trust) {
  if (trust < kElsewhere) return 1.0f - 0.4f / (1.0f + static_cast<float>(trust * trust));
  if (trust < kReplaced) return 0.2f;
  if (trust < kPutIn) return 0.45f;
  if (trust < kLeftOut) return 0.35f;
  constexpr std::array<float, 6> left_out = {0.6f, 0.45f, 0.3f, 0.2f, 0.1f, 0.05f};
  if (trust < kPairAhead) return left_out[trust - kLeftOut];
  return trust < kPairBehind ? 0.7f : 0.5f;
}

PredictedOutput::State PredictedOutput::advance(const State& state, TokenId before, TokenId token) const {
  const State after = follow(state, token);
  return after.num > 0 ? after : lose_track(state, before, token);
}

// Keeps the hypotheses that were right.
PredictedOutput::State PredictedOutput::follow(const State& state, TokenId token) const {
  State after;
  after.num = 0;
  for (std::size_t i = 0; i < state.num; ++i) {
    const std::uint32_t at = state.hypotheses[i].next;
    if (at >= text_.size() || text_[at] != token) continue;
    if (after.num == 0) {
      after.streak = i == 0 ? state.streak + 1 : 1;
      add(after, at + 1, on_track(after.streak));
    } else {
      add(after, at + 1, static_cast<Trust>(kElsewhere + std::min<std::uint32_t>(after.streak, 4) - 1));
    }
  }
  if (after.num == 0 || state.num_astray == 0 || after.streak >= kSettled) return after;
  after.num_astray = state.num_astray + 1;
  after.anchor = state.anchor;
  add(after, state.anchor, by_size(kPutIn, after.num_astray, 5));
  return after;
}

// Two tokens in a row that stand somewhere near are the best sign of where we are, one alone is a weak one.
PredictedOutput::State PredictedOutput::lose_track(const State& state, TokenId before, TokenId token) const {
  const auto size = static_cast<std::uint32_t>(text_.size());
  State after;
  after.num = 0;
  after.num_astray = state.num_astray + 1;
  after.anchor = std::min(state.num_astray > 0 ? state.anchor : state.hypotheses[0].next, size);
  const std::uint32_t begin = after.anchor > kReach ? after.anchor - kReach : 0;
  const std::uint32_t end = std::min(size, after.anchor + kReach);
  const auto is_pair = [&](std::uint32_t at) { return at > 0 && text_[at] == token && text_[at - 1] == before; };
  std::uint32_t single = size;
  std::uint32_t pair = after.anchor;
  for (; pair < end && !is_pair(pair); ++pair) {
    if (single == size && text_[pair] == token) single = pair;
  }
  if (pair < end) {
    add(after, pair + 1, by_size(kPairAhead, pair - after.anchor + 1, 6));
  } else {
    std::uint32_t behind = after.anchor;
    while (behind > begin && !is_pair(behind - 1)) --behind;
    if (behind > begin) add(after, behind, by_size(kPairBehind, after.anchor - behind + 1, 6));
  }
  // `single` is at least one token ahead: the one at the anchor itself would have been followed.
  const bool is_near = single < std::min(size, after.anchor + 3);
  if (is_near) add(after, single + 1, by_size(kLeftOut, single - after.anchor + 1, 6));
  add(after, std::min(after.anchor + after.num_astray, size), by_size(kReplaced, after.num_astray, 5));
  add(after, after.anchor, by_size(kPutIn, after.num_astray, 5));
  if (single < size) add(after, single + 1, by_size(kLeftOut, single - after.anchor + 1, 6));
  return after;
}

}  // namespace pia
