// Grows a draft tree best-first by path probability.
//
// The `budget` nodes kept are those with the highest chance to be accepted, so the sum of their probabilities is the
// expected number of accepted drafts, and any prefix of the node list is itself the best tree of its size.
#pragma once

#include "next_token_model.h"

namespace pia {

struct DraftNode {
  TokenId token;
  std::int32_t parent;  // -1: follows the last accepted token
  float prob;           // of the whole path
  std::uint32_t depth;  // 1 for children of the root
  Source source;
};

class DraftBuilder {
 public:
  explicit DraftBuilder(std::shared_ptr<MixingModel> mixing) : model_(std::move(mixing)) {}

  // The tree that goes on from `text`. The nodes are valid until the next call.
  std::span<const DraftNode> build(Tokens text, const PredictedOutput::State& state, const DraftSources& sources,
                                   std::size_t budget, std::uint32_t max_depth);

  // Learns from what came true: the tokens of `text` from `first` on, before which the prediction stood at `state`.
  // Returns where it stands now. The tables must not have counted these tokens yet.
  PredictedOutput::State learn(Tokens text, std::size_t first, PredictedOutput::State state,
                               const DraftSources& sources);

 private:
  // A node that may enter the tree.
  struct Pending {
    float prob;
    std::uint32_t index;  // in pending_nodes_
  };

  void expand(Tokens text, const DraftSources& sources, std::int32_t parent);
  const PredictedOutput::State& state_behind(Tokens text, const DraftSources& sources, std::int32_t at);
  void calibrate();
  void learn_paths(Tokens truth);
  Tokens recent_tokens(Tokens text, std::int32_t node);
  void push(const DraftNode& node);
  DraftNode pop();

  NextTokenModel model_;
  std::vector<DraftNode> nodes_;
  std::vector<PredictedOutput::State> states_;  // behind the root and behind each node that was looked behind
  std::vector<float> path_probs_;               // of the nodes, before calibration
  // The frontier: the best nodes not yet in the tree, best last, never more of them than the tree still has room for.
  std::vector<Pending> frontier_;
  std::vector<DraftNode> pending_nodes_;
  std::size_t num_wanted_ = 0;
  std::array<TokenId, kMaxOrder> recent_;
};

}  // namespace pia
