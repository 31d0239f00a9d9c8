// A text that the caller expects back, followed token by token: an edited file, a template, the previous answer.
//
// Where the output leaves the prediction there are few explanations: tokens were replaced (go on behind them), put in
// (go on where we were), or left out (go on where the new tokens are found further ahead). They are kept as hypotheses
// side by side until two tokens in a row confirm one. How far each kind can be trusted is learned by the mixing model.
// Larger moves are left to the n-gram tables, which have learned the predicted text too.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "types.h"

namespace pia {

// What speaks for a hypothesis, in kinds that are told apart when their worth is learned.
using Trust = std::uint8_t;
inline constexpr std::size_t kNumTrusts = 48;

// What is believed of a kind before its first lesson.
float first_guess_of(Trust trust);

class PredictedOutput {
 public:
  static constexpr std::size_t kNumHypotheses = 3;

  // Where in the prediction an output may stand.
  struct Hypothesis {
    std::uint32_t next = 0;  // of the prediction's tokens, the one to come
    Trust trust = 0;
  };
  struct State {
    std::array<Hypothesis, kNumHypotheses> hypotheses;
    std::uint32_t num = 1;
    std::uint32_t streak = 0;      // how many tokens in a row the first hypothesis has been right
    std::uint32_t num_astray = 0;  // tokens since we lost track; 0 once we have found it again
    std::uint32_t anchor = 0;      // where that was
  };

  explicit PredictedOutput(Tokens text) : text_(text.begin(), text.end()) {}

  bool is_empty() const { return text_.empty(); }
  Tokens text() const { return text_; }

  // The token that a hypothesis expects next; null behind the end.
  const TokenId* expected(const Hypothesis& hypothesis) const {
    return hypothesis.next < text_.size() ? &text_[hypothesis.next] : nullptr;
  }

  // Where the output stands one token later. `before` is the token before it, or the same where there is none.
  State advance(const State& state, TokenId before, TokenId token) const;

 private:
  static constexpr std::uint32_t kReach = 256;  // how far a token is looked for, in both directions

  State follow(const State& state, TokenId token) const;
  State lose_track(const State& state, TokenId before, TokenId token) const;

  const std::vector<TokenId> text_;
};

}  // namespace pia
