#include "next_token_model.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "fast_math.h"

namespace pia {

namespace {

constexpr std::size_t kNumMarks = 1024;  // at most half of them are ever taken
// A continuation is passed over if its share of a context's counts is below this part of the probability asked for: it
// would need other contexts to speak for it, and those are read too.
constexpr float kMinShare = 1.0f;

// 1 / n, without the wait for a division where n is small.
inline float reciprocal(std::uint32_t n) {
  static constexpr auto table = [] {
    std::array<float, 256> values{};
    for (std::size_t i = 1; i < values.size(); ++i) values[i] = 1.0f / static_cast<float>(i);
    return values;
  }();
  return n < table.size() ? table[n] : 1.0f / static_cast<float>(n);
}

// Calls `look(shape)` for each shape that fits, until a dense one is unknown: what is unknown stays so when it gets longer.
template <class Look>
void for_each_known(const ContextHashes& hashes, Look&& look) {
  for (std::size_t shape = 0; shape < hashes.num_dense && look(shape); ++shape) {
  }
  for (std::size_t shape = kNumDense; shape < kNumDense + hashes.num_sparse; ++shape) look(shape);
}

// A predicted token is always looked at closely.
constexpr float kPredictedScore = 100.0f;

// Smaller errors teach the weights next to nothing.
constexpr float kMinError = 0.01f;

// How much the model's own word counts in the quick guess, by shape.
constexpr std::array<float, kNumRecycledShapes> kRecycledWeights = {0.5f, 1.5f, 2.5f};

// And an n-gram of a pool, for each token that it shares with the text.
constexpr float kPoolWeight = 0.5f;

constexpr Source source_of(std::size_t group) {
  return group == kOwnGroup ? Source::kOwn : group == kSharedGroup ? Source::kShared : Source::kCorpus;
}

constexpr int kMarkShift = 32 - std::countr_zero(kNumMarks);

// How much a shape counts in the quick guess: the longer the context the more.
constexpr std::array<float, kNumShapes> kQuickWeights = [] {
  std::array<float, kNumShapes> weights{};
  for (std::size_t shape = 0; shape < kNumShapes; ++shape) {
    weights[shape] = shape < kNumDense ? static_cast<float>(shape + 1) : 0.7f * static_cast<float>(kShapes[shape].length);
  }
  return weights;
}();

// Eight sums side by side, so that the compiler need not keep the order of one.
template <std::size_t num_inputs>
inline float dot(const Inputs& a, const Inputs& b) {
  std::array<float, kGroupSize> sums{};
  for (std::size_t i = 0; i < num_inputs; i += kGroupSize) {
    for (std::size_t j = 0; j < kGroupSize; ++j) sums[j] += a[i + j] * b[i + j];
  }
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

}  // namespace

NextTokenModel::NextTokenModel(std::shared_ptr<MixingModel> mixing) : mixing_(std::move(mixing)), marks_(kNumMarks) {
  candidates_.reserve(kMaxCandidates);
  refresh();
}

std::span<const Candidate> NextTokenModel::predict(Tokens recent, const PredictedOutput::State& state,
                                                   const DraftSources& sources, float min_prob) {
  gather(recent, state, sources, min_prob);
  mix();
  candidates_.clear();
  float sum = 0;
  for (std::size_t i = 0; i < num_kept_; ++i) sum += probs_[i];
  const float scale = sum > 1.0f ? 1.0f / sum : 1.0f;
  for (std::size_t i = 0; i < num_kept_; ++i) {
    const Row& row = rows_[kept_[i]];
    const float prob = std::min(probs_[i] * scale, kMaxProb);
    if (prob >= min_prob) candidates_.push_back({row.token, prob, row.source});
  }
  // Ties go to the smaller id, so that drafts never depend on where tokens lie in memory.
  std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) {
    return a.prob != b.prob ? a.prob > b.prob : a.token < b.token;
  });
  return candidates_;
}

void NextTokenModel::learn(Tokens recent, const PredictedOutput::State& state, TokenId token,
                           const DraftSources& sources) {
  gather(recent, state, sources, 0.0f);
  mix();
  std::array<std::uint8_t, kNumInputs> active;
  std::size_t num_active = 0;
  active[num_active++] = kBiasInput;
  for (std::size_t i = 0; i < num_contexts_; ++i) active[num_active++] = contexts_[i].input;
  for (std::size_t i = 0; i < num_kept_; ++i) {
    const float error = (rows_[kept_[i]].token == token ? 1.0f : 0.0f) - probs_[i];
    if (std::abs(error) > kMinError) mixing_->learn_weights(reach_, i, inputs_[i], {active.data(), num_active}, error);
  }
  learn_cells(token);
}

// --- What the tables know --------------------------------------------------------------------------------------------

// Not more than 1 / min_prob tokens can be as likely as that.
void NextTokenModel::gather(Tokens recent, const PredictedOutput::State& state, const DraftSources& sources,
                            float min_prob) {
  const auto num_wanted = static_cast<std::size_t>(std::min(1.0f / std::max(min_prob, 0.01f) + 1.0f, 100.0f));
  max_kept_ = std::min(kMaxCandidates, num_wanted);
  max_edges_read_ = std::min(kMaxEdgesRead, num_wanted);
  min_share_ = kMinShare * min_prob;
  ContextHashes hashes;
  hash_contexts(recent.data() + recent.size(), recent.size(), hashes);
  begin_rows();
  // The shared table is far larger than the CPU's caches. It is asked for what is needed, in three stages, while there is
  // other work to do.
  if (sources.reads_counts) {
    hashes.for_each([&](std::uint64_t hash) { sources.shared.prefetch_header(hash); });
    gather_group(sources.own, hashes, kOwnGroup);
    hashes.for_each([&](std::uint64_t hash) { sources.shared.prefetch(hash); });
  }
  gather_recycled(sources.recycled, hashes);
  if (sources.pool) gather_pool(*sources.pool, recent);
  gather_predicted(sources.predicted, state);
  if (sources.reads_counts) {
    for_each_known(hashes, [&](std::size_t shape) { return sources.shared.prefetch_edges(hashes.values[shape]); });
    gather_group(sources.shared, hashes, kSharedGroup);
  }
  if (!sources.corpora.empty()) gather_corpora(sources.corpora, hashes);
  keep_best_rows();
  fill_inputs();
}

template <class Table>
void NextTokenModel::gather_group(const Table& table, const ContextHashes& hashes, std::size_t group) {
  for_each_known(hashes, [&](std::size_t shape) {
    const auto read = [&](const Continuations& found) { add_context(found, group, shape); };
    const bool is_known = table.visit(hashes.values[shape], read);
    if (is_known && shape < kNumDense) reach_[group] = static_cast<std::uint8_t>(shape + 1);
    return is_known;
  });
}

// Several corpora speak as one: their counts are added up.
void NextTokenModel::gather_corpora(const Corpora& corpora, const ContextHashes& hashes) {
  num_groups_ = kNumGroups;
  for (const auto& corpus : corpora) hashes.for_each([&](std::uint64_t hash) { corpus->prefetch_header(hash); });
  for (const auto& corpus : corpora) hashes.for_each([&](std::uint64_t hash) { corpus->prefetch(hash); });
  for (const auto& corpus : corpora) hashes.for_each([&](std::uint64_t hash) { corpus->prefetch_edges(hash); });
  if (corpora.size() == 1) return gather_group(*corpora.front(), hashes, kCorpusGroup);
  for_each_known(hashes, [&](std::size_t shape) {
    merged_.clear();
    std::uint64_t total = 0;
    const auto add = [&](const Continuations& found) {
      total += found.total;
      for (const Edge& edge : found.edges) {
        const auto same = [&](const Edge& other) { return other.token == edge.token; };
        const auto at = std::find_if(merged_.begin(), merged_.end(), same);
        if (at == merged_.end()) {
          merged_.push_back(edge);
        } else {
          at->count += edge.count;
        }
      }
    };
    for (const auto& corpus : corpora) corpus->visit(hashes.values[shape], add);
    if (merged_.empty()) return false;
    std::sort(merged_.begin(), merged_.end(), comes_before);
    add_context({static_cast<std::uint32_t>(std::min<std::uint64_t>(total, UINT32_MAX)), merged_}, kCorpusGroup, shape);
    if (shape < kNumDense) reach_[kCorpusGroup] = static_cast<std::uint8_t>(shape + 1);
    return true;
  });
}

// A hypothesis is a context with one continuation, and its cells are by trust instead of by count. The first one has an
// input of its own, the others share one.
void NextTokenModel::gather_predicted(const PredictedOutput& predicted, const PredictedOutput::State& state) {
  if (predicted.is_empty()) return;
  for (std::size_t i = 0; i < state.num; ++i) {
    const TokenId* expected = predicted.expected(state.hypotheses[i]);
    if (!expected) continue;
    if (rows_[row_of(*expected)].source == Source::kPredicted) continue;  // an earlier one expects the same
    Context& context = begin_context((i == 0 ? kSharedGroup : kRecycledGroup) * kGroupSize + kNumShapes,
                                     MixingModel::prediction_cells(state.hypotheses[i].trust));
    offer(context, *expected, kPredictedScore, Source::kPredicted, 1);
    if (i > 0) num_groups_ = std::max<std::size_t>(num_groups_, kRecycledGroup + 1);
  }
}

// Of each context the latest word: this request's own, or else that of others.
void NextTokenModel::gather_recycled(const RecycledTables& tables, const ContextHashes& hashes) {
  if (!tables.own) return;
  num_groups_ = std::max<std::size_t>(num_groups_, kRecycledGroup + 1);
  const std::size_t count = std::min<std::size_t>(hashes.num_dense, kNumRecycledShapes);
  for (std::size_t shape = 0; shape < count; ++shape) {
    const std::uint64_t hash = hashes.values[shape];
    const TopTokens* found = tables.fresh ? tables.fresh->find(hash) : nullptr;
    if (!found) found = tables.own->find(hash);
    TopTokens of_others;
    if (!found && !tables.shared->find(hash, of_others)) continue;
    add_recycled(found ? *found : of_others, shape, found != nullptr);
  }
}

void NextTokenModel::add_recycled(const TopTokens& top, std::size_t shape, bool is_own) {
  Context& context = begin_context(kRecycledGroup * kGroupSize + shape,
                                   MixingModel::recycled_cells(shape, is_own, top.likelihoods[0]));
  reach_[kRecycledGroup] = static_cast<std::uint8_t>(shape + 1);
  for (std::size_t i = 0; i < kNumTop && top.likelihoods[i] > 0; ++i) {
    const float prob = prob_of(top.likelihoods[i]);
    if (prob < min_share_) break;
    offer(context, top.tokens[i], kRecycledWeights[shape] * prob, Source::kRecycled, top.likelihoods[i]);
  }
}

// What n-grams say that begin with the most of the last tokens.
void NextTokenModel::gather_pool(const NgramPool& pool, Tokens recent) {
  num_groups_ = std::max<std::size_t>(num_groups_, kRecycledGroup + 1);
  const NgramPool::NextTokens next = pool.next_tokens(recent);
  if (next.num == 0) return;
  Context& context = begin_context(kPoolInput, MixingModel::pool_cells(next.match_length, next.num));
  const float weight = kPoolWeight * static_cast<float>(next.match_length);
  for (std::size_t i = 0; i < std::min<std::size_t>(next.num, max_edges_read_); ++i) {
    offer(context, next.tokens[i], weight / static_cast<float>(i + 1), Source::kJacobi, MixingModel::recency_step(i));
  }
}

void NextTokenModel::add_context(const Continuations& found, std::size_t group, std::size_t shape) {
  const auto num_edges = static_cast<std::uint32_t>(found.edges.size());
  Context& context =
      begin_context(group * kGroupSize + shape, MixingModel::cells_of(group, shape, found.total, num_edges));
  const float share = kQuickWeights[shape] * reciprocal(found.total + 1);
  const auto min_count = static_cast<std::uint32_t>(min_share_ * static_cast<float>(found.total));
  for (const Edge edge : found.edges.first(std::min<std::size_t>(num_edges, max_edges_read_))) {
    if (edge.count < min_count) break;
    const auto step = static_cast<std::uint8_t>(MixingModel::count_step(edge.count));
    offer(context, edge.token, share * static_cast<float>(edge.count), source_of(group), step);
  }
}

NextTokenModel::Context& NextTokenModel::begin_context(std::size_t input, CellId cells) {
  Context& context = contexts_[num_contexts_++];
  context.input = static_cast<std::uint8_t>(input);
  context.num_edges = 0;
  context.cells = cells;
  return context;
}

// One more token that a context speaks for, so much in the quick guess, and by this step of its cells.
void NextTokenModel::offer(Context& context, TokenId token, float score, Source source, std::uint8_t step) {
  const std::uint32_t at = row_of(token);
  scores_[at] += score;
  Row& row = rows_[at];
  if (score > row.best_share) {
    row.best_share = score;
    row.source = source;
  }
  context.rows[context.num_edges] = static_cast<RowId>(at);
  context.count_steps[context.num_edges++] = step;
}

void NextTokenModel::begin_rows() {
  num_rows_ = 0;
  num_groups_ = kSharedGroup + 1;
  num_contexts_ = 0;
  reach_ = {};
  if (++epoch_ == 0) {  // wrapped: old marks could look new
    std::fill(marks_.begin(), marks_.end(), Mark{});
    epoch_ = 1;
  }
}

std::uint32_t NextTokenModel::row_of(TokenId token) {
  std::uint32_t at = (token * 0x9e3779b1u) >> kMarkShift;
  for (;; at = (at + 1) & (kNumMarks - 1)) {
    Mark& mark = marks_[at];
    if (mark.epoch != epoch_) {
      mark = {epoch_, static_cast<std::uint32_t>(num_rows_)};
      rows_[num_rows_] = {token, 0.0f, Source::kOwn, kNotKept};
      scores_[num_rows_++] = 0.0f;
      return mark.row;
    }
    if (rows_[mark.row].token == token) return mark.row;
  }
}

// Sorts the best rows into `kept_` by insertion: most rows fall short of the last one kept and cost one comparison.
void NextTokenModel::keep_best_rows() {
  num_kept_ = 0;
  for (std::size_t row = 0; row < num_rows_; ++row) {
    const float score = scores_[row];
    const auto is_worse = [&](std::size_t other) {
      return scores_[other] < score || (scores_[other] == score && rows_[other].token > rows_[row].token);
    };
    if (num_kept_ == max_kept_ && !is_worse(kept_[max_kept_ - 1])) continue;
    std::size_t at = num_kept_ < max_kept_ ? num_kept_++ : max_kept_ - 1;
    for (; at > 0 && is_worse(kept_[at - 1]); --at) kept_[at] = kept_[at - 1];
    kept_[at] = static_cast<RowId>(row);
  }
  for (std::size_t i = 0; i < num_kept_; ++i) rows_[kept_[i]].rank = static_cast<std::uint8_t>(i);
}

// --- From counts to probabilities ------------------------------------------------------------------------------------

// Every token starts with what known contexts say of a token they never saw.
void NextTokenModel::fill_inputs() {
  Inputs unseen{};
  unseen[kBiasInput] = kBias;
  for (std::size_t i = 0; i < num_contexts_; ++i) {
    unseen[contexts_[i].input] = mixing_->log_odds(contexts_[i].cells);
  }
  std::fill_n(inputs_.begin(), num_kept_, unseen);
  for (std::size_t i = 0; i < num_contexts_; ++i) {
    const Context& context = contexts_[i];
    for (std::size_t j = 0; j < context.num_edges; ++j) {
      const std::uint8_t rank = rows_[context.rows[j]].rank;
      if (rank != kNotKept) inputs_[rank][context.input] = mixing_->log_odds(context.cells + context.count_steps[j]);
    }
  }
}

void NextTokenModel::mix() {
  if (num_groups_ <= kRecycledGroup) {
    mix_inputs<kRecycledGroup * kGroupSize>();
  } else if (num_groups_ <= kCorpusGroup) {
    mix_inputs<kCorpusGroup * kGroupSize>();
  } else {
    mix_inputs<kNumInputs>();
  }
}

template <std::size_t num_inputs>
void NextTokenModel::mix_inputs() {
  const Inputs base = weights_.at(reach_);
  for (std::size_t i = 0; i < num_kept_; ++i) {
    Inputs weights = weights_.by_rank[std::min(i, MixingModel::kNumRanks - 1)];
    for (std::size_t j = 0; j < num_inputs; ++j) weights[j] += base[j];
    probs_[i] = dot<num_inputs>(weights, inputs_[i]);
  }
  for (std::size_t i = 0; i < num_kept_; ++i) probs_[i] = 1.0f / (1.0f + fast_exp(-probs_[i]));
}

// --- Lessons ---------------------------------------------------------------------------------------------------------

void NextTokenModel::learn_cells(TokenId token) {
  const auto is_it = [&](RowId row) { return rows_[row].token == token; };
  const bool is_kept = std::any_of(kept_.begin(), kept_.begin() + num_kept_, is_it);
  for (std::size_t i = 0; i < num_contexts_; ++i) {
    const Context& context = contexts_[i];
    std::uint32_t num_seen = 0;
    bool is_seen = false;
    for (std::size_t j = 0; j < context.num_edges; ++j) {
      const Row& row = rows_[context.rows[j]];
      if (row.rank == kNotKept) continue;
      ++num_seen;
      is_seen |= row.token == token;
      mixing_->learn_cell(context.cells + context.count_steps[j], 1, row.token == token ? 1 : 0);
    }
    const auto num_unseen = static_cast<std::uint32_t>(num_kept_) - num_seen;
    if (num_unseen == 0) continue;
    mixing_->learn_cell(context.cells, num_unseen, is_kept && !is_seen ? 1 : 0);
  }
}

}  // namespace pia
