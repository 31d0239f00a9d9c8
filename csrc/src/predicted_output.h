// A text that the caller expects back, followed token by token: an edited file, a template, the previous answer.
//
// Where the output leaves the prediction there are few explanations: a token was replaced (go on behind it), something
// was put in (go on where we are), something was left out (go on where the new tokens are found further ahead). The
// first two are kept as hypotheses side by side until one of them is confirmed; the third is looked for. Larger moves
// are left to the n-gram tables, which have learned the predicted text too.
#pragma once

#include <cstdint>
#include <vector>

#include "types.h"

namespace pia {

class PredictedOutput {
 public:
  static constexpr std::size_t kNumHypotheses = 2;

  // Where in the prediction an output stands.
  struct State {
    std::uint32_t next = 0;         // of the prediction's tokens, the one to come
    std::uint32_t alternative = 0;  // or this one, if not the same
    std::uint32_t streak = 0;       // how many tokens in a row have been right
  };

  explicit PredictedOutput(Tokens text) : text_(text.begin(), text.end()) {}

  bool is_empty() const { return text_.empty(); }
  Tokens text() const { return text_; }

  // The token that a hypothesis expects next; null where it has none of its own.
  const TokenId* expected(const State& state, std::size_t hypothesis) const {
    if (hypothesis == 1 && state.alternative == state.next) return nullptr;
    const std::uint32_t at = hypothesis == 0 ? state.next : state.alternative;
    return at < text_.size() ? &text_[at] : nullptr;
  }

  // Where the output stands one token later. `before` is the token before it, or the same where there is none.
  State advance(const State& state, TokenId before, TokenId token) const;

 private:
  static constexpr std::uint32_t kReach = 256;  // how far a token is looked for, in both directions

  State lose_track(const State& state, TokenId before, TokenId token) const;

  const std::vector<TokenId> text_;
};

}  // namespace pia
