#include "mixing_model.h"

#include <algorithm>
#include <cmath>

#include "fast_math.h"

namespace pia {

namespace {

// Steps of the gradient: for the weights by reach; those by rank are shared by more lessons and go half as fast.
constexpr float kReachRate = 0.004f;
constexpr float kRankRate = 0.002f;

// A cell averages its first lessons and then follows at this rate.
constexpr float kMinCellRate = 0.005f;
constexpr float kMaxSeen = 255.0f;

constexpr float kDenseWeight = 0.25f;
constexpr float kSparseWeight = 0.15f;

// First guesses: of a token that never followed, and of how often a single token is the wrong one.
constexpr float kUnseenProb = 0.02f;
constexpr float kDenseDoubt = 0.45f;
constexpr float kSparseDoubt = 0.6f;

// How fast path statistics fade, and how many expected tokens they start with.
constexpr float kPathDecay = 0.9998f;
constexpr float kPathPrior = 0.5f;

// Counts and totals in steps that widen: each bucket begins here.
constexpr std::array<std::uint32_t, 10> kCountSteps = {0, 1, 2, 3, 4, 6, 10, 17, 40, 100};
constexpr std::array<std::uint32_t, 11> kTotalSteps = {1, 2, 3, 4, 6, 10, 17, 33, 80, 200, 1000};
constexpr std::size_t kNumSpreads = 4;
constexpr std::size_t kCellsPerShape = kCountSteps.size() * kTotalSteps.size() * kNumSpreads;
constexpr std::size_t kNumCountCells = kNumGroups * kNumShapes * kCellsPerShape;
constexpr std::size_t kNumPredictionCells = kNumTrusts * 2;
constexpr std::size_t kFirstRecycledCell = kNumCountCells + kNumPredictionCells;
constexpr std::size_t kNumTops = 4;  // how likely the likeliest token is, coarsely
constexpr std::size_t kNumRecycledCells = kNumRecycledShapes * 2 * kNumTops * kNumLikelihoods;
constexpr std::size_t kFirstPoolCell = kFirstRecycledCell + kNumRecycledCells;
constexpr std::size_t kNumMatchLengths = 4;  // the last one stands for all longer ones
constexpr std::size_t kNumWays = 4;          // one, two, some, many
constexpr std::size_t kNumRecencies = 8;     // 0: not in the pool
constexpr std::size_t kNumPoolCells = kNumMatchLengths * kNumWays * kNumRecencies;
constexpr std::size_t kNumCells = kFirstPoolCell + kNumPoolCells;

constexpr std::uint32_t kTabled = 256;

template <std::size_t n>
constexpr auto bucket_table(const std::array<std::uint32_t, n>& steps) {
  std::array<std::uint8_t, kTabled> table{};
  for (std::uint32_t value = 0; value < kTabled; ++value) {
    for (std::size_t i = 0; i < n; ++i) {
      if (value >= steps[i]) table[value] = static_cast<std::uint8_t>(i);
    }
  }
  return table;
}

constexpr auto kCountBuckets = bucket_table(kCountSteps);
constexpr auto kTotalBuckets = bucket_table(kTotalSteps);

std::size_t total_bucket(std::uint32_t total) {
  return total < kTabled ? kTotalBuckets[total] : kTotalSteps.size() - (total < kTotalSteps.back() ? 2 : 1);
}

// How scattered the continuations of a context are: always the same, or few, some, many for its total.
std::size_t spread_of(std::uint32_t num_distinct, std::uint32_t total) {
  if (num_distinct == 1) return 0;
  const auto distinct = std::uint64_t{num_distinct};
  if (4 * distinct < total) return 1;
  return 5 * distinct < 3 * std::uint64_t{total} ? 2 : 3;
}

float log_odds_of(float prob) {
  const float p = std::clamp(prob, 1e-5f, 1.0f - 1e-5f);
  return fast_log(p / (1.0f - p));
}

// What a cell believes before its first lesson. Where all tokens but one have never followed, that one is the likelier
// to follow again the longer the context and the more often it was seen; else a token has its share of the counts, less
// a discount while they are few.
float first_guess(const ContextShape& shape, bool is_certain, std::size_t count_step, std::size_t total_step) {
  const auto total = static_cast<float>(kTotalSteps[total_step]);
  const auto count = std::min(static_cast<float>(kCountSteps[count_step]), total);
  if (count == 0) return kUnseenProb;
  if (is_certain) {
    const float doubt = (shape.skip == 0 ? kDenseDoubt : kSparseDoubt) / std::sqrt(static_cast<float>(shape.length));
    return 1.0f - doubt / (1.0f + 0.5f * (total - 1.0f));
  }
  const float discount = count < 3 ? 0.5f : 0.0f;
  return std::min((count - discount) / (total + 0.6f), 0.97f);
}

// How likely a token is after a context to which the model once gave this likelihood: the longer the context that is the
// same, the more it is worth.
float first_recycled_guess(std::size_t shape, Likelihood likelihood) {
  constexpr std::array<float, kNumRecycledShapes> kTrust = {0.4f, 0.6f, 0.8f};
  return likelihood == 0 ? kUnseenProb : kTrust[shape] * prob_of(likelihood);
}

// The n-gram used last is the likeliest to be right, and the longer the match the more.
float first_pool_guess(std::size_t match_length, std::size_t recency) {
  if (recency == 0) return kUnseenProb;
  return (0.25f + 0.1f * static_cast<float>(match_length)) / static_cast<float>(recency);
}

void add(std::atomic<float>& to, float value) {
  to.store(to.load(std::memory_order_relaxed) + value, std::memory_order_relaxed);
}

template <class From, class To>
void copy_values(const From& from, To& to) {
  for (std::size_t i = 0; i < to.size(); ++i) to[i] = from[i].load(std::memory_order_relaxed);
}

template <class To>
void set_first_weights(To& weights) {
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const std::size_t shape = i % kGroupSize;
    float weight = i == kBiasInput ? 0.0f : 1.0f;
    if (shape < kNumShapes) weight = shape < kNumDense ? kDenseWeight : kSparseWeight;
    weights[i].store(weight, std::memory_order_relaxed);
  }
}

std::size_t reach_index(const Reach& reach) { return reach[kOwnGroup] * (kNumDense + 1) + reach[kSharedGroup]; }

std::size_t recycled_reach_index(const Reach& reach) {
  return std::max(reach[kOwnGroup], reach[kSharedGroup]) * (kNumRecycledShapes + 1) + reach[kRecycledGroup];
}

}  // namespace

MixingModel::MixingModel() : cells_(kNumCells), log_odds_(kNumCells) {
  const auto set = [this](std::size_t cell, float prob) {
    cells_[cell].prob.store(prob, std::memory_order_relaxed);
    log_odds_[cell].store(log_odds_of(prob), std::memory_order_relaxed);
    cells_[cell].num_seen.store(0, std::memory_order_relaxed);
  };
  for (std::size_t cell = 0; cell < kNumCountCells; ++cell) {
    const std::size_t total_step = cell / (kCountSteps.size() * kNumSpreads) % kTotalSteps.size();
    const ContextShape& shape = kShapes[cell / kCellsPerShape % kNumShapes];
    const bool is_certain = cell / kCountSteps.size() % kNumSpreads == 0;
    set(cell, first_guess(shape, is_certain, cell % kCountSteps.size(), total_step));
  }
  for (std::size_t i = 0; i < kNumTrusts; ++i) {
    const float right = first_guess_of(static_cast<Trust>(i));
    set(kNumCountCells + 2 * i, (1.0f - right) / 8.0f);
    set(kNumCountCells + 2 * i + 1, right);
  }
  for (std::size_t i = 0; i < kNumRecycledCells; ++i) {
    const std::size_t shape = i / (2 * kNumTops * kNumLikelihoods);
    set(kFirstRecycledCell + i, first_recycled_guess(shape, static_cast<Likelihood>(i % kNumLikelihoods)));
  }
  for (std::size_t i = 0; i < kNumPoolCells; ++i) {
    set(kFirstPoolCell + i, first_pool_guess(i / (kNumWays * kNumRecencies), i % kNumRecencies));
  }
  for (auto& weights : by_reach_) set_first_weights(weights);
  for (auto& weights : by_recycled_reach_) set_first_weights(weights);
  for (auto& weights : by_corpus_reach_) set_first_weights(weights);
  for (auto& weights : by_rank_) {
    for (auto& weight : weights) weight.store(0.0f, std::memory_order_relaxed);
  }
  for (auto& bin : bins_) {
    bin.expected.store(0, std::memory_order_relaxed);
    bin.right.store(0, std::memory_order_relaxed);
  }
}

CellId MixingModel::cells_of(std::size_t group, std::size_t shape, std::uint32_t total, std::uint32_t num_distinct) {
  const std::size_t row = (group * kNumShapes + shape) * kTotalSteps.size() + total_bucket(total);
  return static_cast<CellId>((row * kNumSpreads + spread_of(num_distinct, total)) * kCountSteps.size());
}

CellId MixingModel::count_step(std::uint32_t count) {
  return count < kTabled ? kCountBuckets[count] : static_cast<CellId>(kCountSteps.size() - 1);
}

CellId MixingModel::prediction_cells(Trust trust) {
  return static_cast<CellId>(kNumCountCells + 2 * std::size_t{trust});
}

CellId MixingModel::recycled_cells(std::size_t shape, bool is_own, Likelihood likeliest) {
  const std::size_t top = std::min<std::size_t>(likeliest * kNumTops / kNumLikelihoods, kNumTops - 1);
  return static_cast<CellId>(kFirstRecycledCell + ((shape * 2 + is_own) * kNumTops + top) * kNumLikelihoods);
}

CellId MixingModel::pool_cells(std::size_t match_length, std::size_t num_ways) {
  const std::size_t length = std::min(match_length, kNumMatchLengths) - 1;
  const std::size_t ways = num_ways < 3 ? num_ways - 1 : num_ways < 6 ? 2 : 3;
  return static_cast<CellId>(kFirstPoolCell + (length * kNumWays + ways) * kNumRecencies);
}

std::uint8_t MixingModel::recency_step(std::size_t rank) {
  return static_cast<std::uint8_t>(std::min(rank + 1, kNumRecencies - 1));
}

Inputs MixingModel::Weights::at(const Reach& reach) const {
  Inputs weights;
  const auto& first = by_reach[reach_index(reach)];
  std::copy(first.begin(), first.end(), weights.begin());
  const auto& recycled = by_recycled_reach[recycled_reach_index(reach)];
  std::copy(recycled.begin(), recycled.end(), weights.begin() + kRecycledGroup * kGroupSize);
  const auto& last = by_corpus_reach[reach[kCorpusGroup]];
  std::copy(last.begin(), last.end(), weights.begin() + kCorpusGroup * kGroupSize);
  return weights;
}

void MixingModel::copy_weights(Weights& weights) const {
  for (std::size_t i = 0; i < by_reach_.size(); ++i) copy_values(by_reach_[i], weights.by_reach[i]);
  for (std::size_t i = 0; i < by_recycled_reach_.size(); ++i) {
    copy_values(by_recycled_reach_[i], weights.by_recycled_reach[i]);
  }
  for (std::size_t i = 0; i < by_corpus_reach_.size(); ++i) {
    copy_values(by_corpus_reach_[i], weights.by_corpus_reach[i]);
  }
  for (std::size_t i = 0; i < by_rank_.size(); ++i) copy_values(by_rank_[i], weights.by_rank[i]);
}

void MixingModel::learn_cell(CellId id, std::uint32_t num_tokens, std::uint32_t num_hits) {
  Cell& cell = cells_[id];
  const auto num = static_cast<float>(num_tokens);
  const float seen = cell.num_seen.load(std::memory_order_relaxed);
  const float rate = std::max(num / (seen + num + 0.6f), std::min(num * kMinCellRate, 0.5f));
  const float old_prob = cell.prob.load(std::memory_order_relaxed);
  const float prob = old_prob + rate * (static_cast<float>(num_hits) / num - old_prob);
  cell.prob.store(prob, std::memory_order_relaxed);
  log_odds_[id].store(log_odds_of(prob), std::memory_order_relaxed);
  cell.num_seen.store(std::min(seen + num, kMaxSeen), std::memory_order_relaxed);
}

void MixingModel::learn_weights(const Reach& reach, std::size_t rank, const Inputs& inputs,
                                std::span<const std::uint8_t> active, float error) {
  auto& by_reach = by_reach_[reach_index(reach)];
  auto& by_recycled = by_recycled_reach_[recycled_reach_index(reach)];
  auto& by_corpus = by_corpus_reach_[reach[kCorpusGroup]];
  auto& by_rank = by_rank_[std::min(rank, kNumRanks - 1)];
  for (const std::uint8_t i : active) {
    const std::size_t place = i % kGroupSize;
    Weight& weight = i < kRecycledGroup * kGroupSize   ? by_reach[i]
                     : i < kCorpusGroup * kGroupSize ? by_recycled[place]
                                                     : by_corpus[place];
    add(weight, kReachRate * error * inputs[i]);
    add(by_rank[i], kRankRate * error * inputs[i]);
  }
}

// Where on the row of bins a path lies: at 0 for certainty, two further for each factor of two below.
float MixingModel::place_of(float path_prob) {
  return std::clamp(-2.0f * 1.44269504f * fast_log(path_prob), 0.0f, static_cast<float>(kNumBins - 1));
}

float MixingModel::factor(std::size_t bin) const {
  return (bins_[bin].right.load(std::memory_order_relaxed) + kPathPrior) /
         (bins_[bin].expected.load(std::memory_order_relaxed) + kPathPrior);
}

float MixingModel::calibrated(float path_prob) const {
  const float place = place_of(path_prob);
  const auto bin = std::min(static_cast<std::size_t>(place), kNumBins - 2);
  const float share = place - static_cast<float>(bin);
  return std::min(path_prob * ((1.0f - share) * factor(bin) + share * factor(bin + 1)), 1.0f);
}

void MixingModel::learn_path(float path_prob, bool is_right) {
  Bin& bin = bins_[static_cast<std::size_t>(place_of(path_prob) + 0.5f)];
  const auto update = [](std::atomic<float>& sum, float value) {
    sum.store(sum.load(std::memory_order_relaxed) * kPathDecay + value, std::memory_order_relaxed);
  };
  update(bin.expected, path_prob);
  update(bin.right, is_right ? 1.0f : 0.0f);
}

}  // namespace pia
