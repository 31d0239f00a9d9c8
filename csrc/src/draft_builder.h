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
  std::span<const DraftNode> build(Tokens text, const DraftSources& sources, std::size_t budget,
                                   std::uint32_t max_depth);

  // Learns from what came true: the tokens of `text` from `first` on. The tables must not have counted them yet.
  void learn(Tokens text, std::size_t first, const DraftSources& sources);

 private:
  // A frontier entry is a node not yet in the tree; `rank` settles ties by age.
  struct Pending {
    DraftNode node;
    std::uint32_t rank;
  };

  void expand(Tokens text, const DraftSources& sources, std::int32_t parent);
  void calibrate();
  void learn_paths(Tokens truth);
  Tokens recent_tokens(Tokens text, std::int32_t node);
  void push(const DraftNode& node);
  DraftNode pop();
  void trim(std::size_t num_wanted);

  NextTokenModel model_;
  std::vector<DraftNode> nodes_;
  std::vector<float> path_probs_;  // of the nodes, before calibration
  std::vector<Pending> frontier_;  // a heap, best on top
  std::array<TokenId, kMaxOrder> recent_;
  std::uint32_t next_rank_ = 0;
  float cutoff_ = 0;  // paths less likely than this can no longer enter the tree
};

}  // namespace pia
