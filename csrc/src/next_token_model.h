// Which tokens may follow a context, and how likely each is: what the tables know, weighed by the mixing model.
#pragma once

#include <memory>
#include <vector>

#include "context_hash.h"
#include "context_table.h"
#include "corpus.h"
#include "mixing_model.h"
#include "ngram_pool.h"
#include "predicted_output.h"
#include "recycled_table.h"

namespace pia {

// What the model found likely in this request, lately and before, and in others. Null where nothing is recycled.
struct RecycledTables {
  const RecycledTable* fresh = nullptr;
  const RecycledTable* own = nullptr;
  const SharedRecycledTable* shared = nullptr;
};

// Where one request drafts from.
struct DraftSources {
  const ContextTable& own;     // its prompt and its output so far
  const ContextTable& shared;  // what other requests produced
  const PredictedOutput& predicted;
  const Corpora& corpora;
  RecycledTables recycled;
  const NgramPool* pool = nullptr;  // guesses of a lookahead window
  bool reads_counts = true;  // of `own` and `shared`
};

struct Candidate {
  TokenId token;
  float prob;
  Source source;  // whose counts speak for it most
};

class NextTokenModel {
 public:
  static constexpr std::size_t kMaxCandidates = 16;
  static constexpr float kMaxProb = 0.999f;

  explicit NextTokenModel(std::shared_ptr<MixingModel> mixing);

  // Fetches the weights as they are now; to be called before a tree is grown.
  void refresh() { mixing_->copy_weights(weights_); }

  // The likeliest next tokens after `recent` (oldest first; its last kMaxOrder tokens matter), best first, as far as they
  // reach `min_prob`. The result is valid until the next call.
  std::span<const Candidate> predict(Tokens recent, const PredictedOutput::State& state, const DraftSources& sources,
                                     float min_prob);

  // Teaches the mixing model that `token` followed `recent`. The tables must not have counted it yet.
  void learn(Tokens recent, const PredictedOutput::State& state, TokenId token, const DraftSources& sources);

  MixingModel& mixing() const { return *mixing_; }

 private:
  static constexpr std::size_t kMaxEdgesRead = 12;  // of each context, the most frequent
  static constexpr std::size_t kNumCountGroups = kNumGroups - 1;
  static constexpr std::size_t kMaxRows = kNumCountGroups * kNumShapes * kMaxEdgesRead +
                                          PredictedOutput::kNumHypotheses + kNumRecycledShapes * kNumTop + kMaxEdgesRead;
  using RowId = std::uint16_t;
  static constexpr std::uint8_t kNotKept = 0xff;

  // A token on its way to become a candidate. A quick guess, its score, decides which few are worth a closer look.
  struct Row {
    TokenId token;
    float best_share;  // of one context
    Source source;     // whose context that is
    std::uint8_t rank;
  };
  // A known context. Its cells are not looked up before it is clear which tokens are kept.
  struct Context {
    std::uint8_t input;  // which of the inputs it feeds
    std::uint8_t num_edges;
    CellId cells;  // to which the step of a token's count is added
    std::array<RowId, kMaxEdgesRead> rows;
    std::array<std::uint8_t, kMaxEdgesRead> count_steps;
  };
  struct Mark {
    std::uint32_t epoch = 0;
    std::uint32_t row = 0;
  };

  void gather(Tokens recent, const PredictedOutput::State& state, const DraftSources& sources, float min_prob);
  template <class Table>
  void gather_group(const Table& table, const ContextHashes& hashes, std::size_t group);
  void gather_corpora(const Corpora& corpora, const ContextHashes& hashes);
  void gather_recycled(const RecycledTables& tables, const ContextHashes& hashes);
  void add_recycled(const TopTokens& top, std::size_t shape, bool is_own);
  void gather_pool(const NgramPool& pool, Tokens recent);
  Context& begin_context(std::size_t input, CellId cells);
  void offer(Context& context, TokenId token, float score, Source source, std::uint8_t step);
  void gather_predicted(const PredictedOutput& predicted, const PredictedOutput::State& state);
  void add_context(const Continuations& found, std::size_t group, std::size_t shape);
  void begin_rows();
  std::uint32_t row_of(TokenId token);
  void keep_best_rows();
  void fill_inputs();
  void mix();
  template <std::size_t num_inputs>
  void mix_inputs();
  void learn_cells(TokenId token);

  const std::shared_ptr<MixingModel> mixing_;
  MixingModel::Weights weights_;

  // The context at hand.
  std::size_t num_rows_ = 0;
  std::array<Row, kMaxRows> rows_;
  std::array<float, kMaxRows> scores_;
  std::vector<Mark> marks_;  // token -> row, open addressing, emptied by a new epoch
  std::uint32_t epoch_ = 0;
  std::array<Context, kNumCountGroups * kNumShapes + PredictedOutput::kNumHypotheses + kNumRecycledShapes + 1>
      contexts_;
  std::size_t num_contexts_ = 0;
  Reach reach_{};
  std::size_t num_groups_ = 0;  // of inputs that are not zero
  std::vector<Edge> merged_;  // continuations in several corpora
  std::size_t max_edges_read_ = kMaxEdgesRead;
  float min_share_ = 0;
  std::size_t max_kept_ = kMaxCandidates;
  std::array<RowId, kMaxCandidates> kept_;  // rows, best score first
  std::size_t num_kept_ = 0;
  alignas(64) std::array<Inputs, kMaxCandidates> inputs_;
  std::array<float, kMaxCandidates> probs_;
  std::vector<Candidate> candidates_;
};

}  // namespace pia
