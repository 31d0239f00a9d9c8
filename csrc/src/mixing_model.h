// What is learned online about the tables: how far each kind of count can be trusted, and how path probabilities come
// true. It holds no text.
//
// Logistic mixing, as in the PAQ family of compressors (Mahoney 2005), with tokens in place of bits. What a context says
// about a token is reduced to a cell: which table and shape, how often the token and the context were seen, how many
// tokens followed. A cell learns how often its tokens came true. A token's probability is the logistic function of a
// weighted sum of its cells' log-odds. The weights belong to the longest contexts known and to the token's rank, and
// follow the gradient of the coding cost. So nothing is tuned to a task: every emitted token is a lesson.
//
// Threads: parameters are relaxed atomics. Updates of two threads may overwrite each other, which loses a lesson and
// nothing else.
#pragma once

#include <array>
#include <atomic>
#include <vector>

#include "predicted_output.h"
#include "recycled_table.h"
#include "types.h"

namespace pia {

// Inputs come in groups of eight, a group per kind of table: one for each shape, and one more. Groups that are needed
// less often come last, so that the others need not wait for them.
enum Group : std::size_t { kOwnGroup, kSharedGroup, kRecycledGroup, kCorpusGroup, kNumGroups };
inline constexpr std::size_t kGroupSize = 8;
inline constexpr std::size_t kNumInputs = kNumGroups * kGroupSize;
static_assert(kNumShapes < kGroupSize && kNumRecycledShapes + 1 < kGroupSize);

// Behind the recycled contexts, what the n-grams of a lookahead window say.
inline constexpr std::size_t kPoolInput = kRecycledGroup * kGroupSize + kNumRecycledShapes;

// The last input of the first group is constant; those of the next two speak of a predicted output.
inline constexpr std::size_t kBiasInput = kGroupSize - 1;
inline constexpr float kBias = 0.4f;

using Inputs = std::array<float, kNumInputs>;
using CellId = std::uint32_t;

// For each group, how many of its dense shapes were known.
using Reach = std::array<std::uint8_t, kNumGroups>;

class MixingModel {
 public:
  static constexpr std::size_t kNumRanks = 8;  // the last one stands for all further ranks
  // The longest context with counts, by the longest with recycled tokens.
  static constexpr std::size_t kNumRecycledReaches = (kNumDense + 1) * (kNumRecycledShapes + 1);

  // A copy of the weights, so that a whole tree is grown with the same ones and without atomics.
  struct Weights {
    std::array<std::array<float, 2 * kGroupSize>, (kNumDense + 1) * (kNumDense + 1)> by_reach;
    std::array<std::array<float, kGroupSize>, kNumRecycledReaches> by_recycled_reach;
    std::array<std::array<float, kGroupSize>, kNumDense + 1> by_corpus_reach;
    std::array<Inputs, kNumRanks> by_rank;

    Inputs at(const Reach& reach) const;
  };

  MixingModel();

  // The cells of a context that was seen `total` times with so many different tokens: the first of a row, to which
  // `count_step` of a token's count is added.
  static CellId cells_of(std::size_t group, std::size_t shape, std::uint32_t total, std::uint32_t num_distinct);
  static CellId count_step(std::uint32_t count);
  // The cells of a hypothesis on a predicted output: one for all tokens but the predicted, and behind it one for that.
  static CellId prediction_cells(Trust trust);
  // The cells of a context with recycled tokens, of this request or of others, whose likeliest is so likely: the first of a
  // row, to which a token's likelihood is added.
  static CellId recycled_cells(std::size_t shape, bool is_own, Likelihood likeliest);

  // The cells of n-grams in a pool that begin with so many of the last tokens and go on in so many ways, likewise; to which
  // a token's `recency_step` is added, its rank among them by use.
  static CellId pool_cells(std::size_t match_length, std::size_t num_ways);
  static std::uint8_t recency_step(std::size_t rank);

  float log_odds(CellId cell) const { return log_odds_[cell].load(std::memory_order_relaxed); }
  void copy_weights(Weights& weights) const;

  // Of `num_tokens` tokens that this cell spoke for, `num_hits` came true.
  void learn_cell(CellId cell, std::uint32_t num_tokens, std::uint32_t num_hits);
  // `active` lists the inputs that are not zero.
  void learn_weights(const Reach& reach, std::size_t rank, const Inputs& inputs, std::span<const std::uint8_t> active,
                     float error);

  // --- Paths -------------------------------------------------------------------------------------------------------
  // The product of the tokens' probabilities along a path, corrected by how such paths fared.
  float calibrated(float path_prob) const;
  void learn_path(float path_prob, bool is_right);

 private:
  struct Cell {
    std::atomic<float> prob;
    std::atomic<float> num_seen;
  };
  struct Bin {
    std::atomic<float> expected;
    std::atomic<float> right;
  };
  using Weight = std::atomic<float>;

  static constexpr std::size_t kNumBins = 41;  // of path probability, two per factor of two
  static float place_of(float path_prob);
  float factor(std::size_t bin) const;

  std::vector<Cell> cells_;
  std::vector<std::atomic<float>> log_odds_;  // of the cells; apart, since drafting reads nothing else
  std::array<std::array<Weight, 2 * kGroupSize>, (kNumDense + 1) * (kNumDense + 1)> by_reach_;
  std::array<std::array<Weight, kGroupSize>, kNumRecycledReaches> by_recycled_reach_;
  std::array<std::array<Weight, kGroupSize>, kNumDense + 1> by_corpus_reach_;
  std::array<std::array<Weight, kNumInputs>, kNumRanks> by_rank_;
  std::array<Bin, kNumBins> bins_;
};

}  // namespace pia
