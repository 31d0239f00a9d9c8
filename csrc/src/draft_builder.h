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

struct Draft {
  std::vector<DraftNode> nodes;
  std::vector<float> path_probs;  // of the nodes, before calibration

  void clear() {
    nodes.clear();
    path_probs.clear();
  }
};

// How a path of a draft fared.
struct PathLesson {
  float path_prob;
  bool is_right;
};

// What the paths of `draft` were worth, now that `truth` is how the text went on; appended to `lessons`. Of a path that
// leads beyond `truth` nothing is known.
void judge_paths(const Draft& draft, Tokens truth, std::vector<PathLesson>& lessons);

class DraftBuilder {
 public:
  explicit DraftBuilder(std::shared_ptr<MixingModel> mixing) : model_(std::move(mixing)) {}

  // Makes `draft` the tree that goes on from `text`, of which the last kMaxOrder tokens matter.
  void build(Tokens text, const PredictedOutput::State& state, const DraftSources& sources, std::size_t budget,
             std::uint32_t max_depth, Draft& draft);

  // Learns from what came true: how paths fared, and the tokens of `text` from `first` on, before which the prediction
  // stood at `state`. The tables must not have counted these tokens yet.
  void learn(std::span<const PathLesson> lessons, Tokens text, std::size_t first, PredictedOutput::State state,
             const DraftSources& sources);

 private:
  // A node that may enter the tree.
  struct Pending {
    float prob;
    std::uint32_t index;  // in pending_nodes_
  };

  void expand(Tokens text, const DraftSources& sources, std::int32_t parent);
  const PredictedOutput::State& state_behind(Tokens text, const DraftSources& sources, std::int32_t at);
  void calibrate(Draft& draft) const;
  Tokens recent_tokens(Tokens text, std::int32_t node);
  void push(const DraftNode& node);
  DraftNode pop();

  NextTokenModel model_;
  std::vector<DraftNode> nodes_;  // in the tree so far
  std::vector<PredictedOutput::State> states_;  // behind the root and behind each node that was looked behind
  // The frontier: the best nodes not yet in the tree, best last, never more of them than the tree still has room for.
  std::vector<Pending> frontier_;
  std::vector<DraftNode> pending_nodes_;
  std::size_t num_wanted_ = 0;
  std::array<TokenId, kMaxOrder> recent_;
};

}  // namespace pia
