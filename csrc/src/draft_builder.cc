#include "draft_builder.h"

#include <algorithm>

namespace pia {

namespace {

// Less likely paths than this are never worth a place, however large the budget.
constexpr float kMinPathProb = 1e-6f;

}  // namespace

std::span<const DraftNode> DraftBuilder::build(Tokens text, const DraftSources& sources, std::size_t budget,
                                               std::uint32_t max_depth) {
  nodes_.clear();
  frontier_.clear();
  next_rank_ = 0;
  cutoff_ = kMinPathProb;
  if (budget > 0) {
    model_.refresh();
    expand(text, sources, -1);
  }
  while (!frontier_.empty()) {
    nodes_.push_back(pop());
    if (nodes_.size() == budget) break;
    if (nodes_.back().depth < max_depth) {
      expand(text, sources, static_cast<std::int32_t>(nodes_.size()) - 1);
      trim(budget - nodes_.size());
    }
  }
  calibrate();
  return nodes_;
}

void DraftBuilder::expand(Tokens text, const DraftSources& sources, std::int32_t parent) {
  const float prob = parent < 0 ? 1.0f : nodes_[static_cast<std::size_t>(parent)].prob;
  if (prob * NextTokenModel::kMaxProb < cutoff_) return;  // no child could enter
  const std::uint32_t depth = parent < 0 ? 1 : nodes_[static_cast<std::size_t>(parent)].depth + 1;
  for (const Candidate& next : model_.predict(recent_tokens(text, parent), sources, cutoff_ / prob)) {
    push({next.token, parent, prob * next.prob, depth, next.source});
  }
}

// Replaces the products of probabilities by what such products have been worth. The order stays: best first.
void DraftBuilder::calibrate() {
  path_probs_.clear();
  float last = 1.0f;
  for (DraftNode& node : nodes_) {
    path_probs_.push_back(node.prob);
    last = std::min(last, model_.mixing().calibrated(node.prob));
    node.prob = last;
  }
}

void DraftBuilder::learn(Tokens text, std::size_t first, const DraftSources& sources) {
  learn_paths(text.subspan(first));
  for (std::size_t i = std::max<std::size_t>(first, 1); i < text.size(); ++i) {
    const std::size_t length = std::min<std::size_t>(i, kMaxOrder);
    model_.learn(text.subspan(i - length, length), text[i], sources);
  }
}

// A node was right if its path is how the text went on, and its fate is unknown if its path leads beyond the text.
void DraftBuilder::learn_paths(Tokens truth) {
  enum class Fate : std::uint8_t { kRight, kWrong, kUnknown };
  std::vector<Fate> fates;
  fates.reserve(nodes_.size());
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    const DraftNode& node = nodes_[i];
    Fate fate = node.parent < 0 ? Fate::kRight : fates[static_cast<std::size_t>(node.parent)];
    if (fate == Fate::kRight) {
      if (node.depth > truth.size()) {
        fate = Fate::kUnknown;
      } else if (truth[node.depth - 1] != node.token) {
        fate = Fate::kWrong;
      }
    }
    fates.push_back(fate);
    if (fate != Fate::kUnknown) model_.mixing().learn_path(path_probs_[i], fate == Fate::kRight);
  }
  nodes_.clear();
}

// The last tokens up to and including `node`, oldest first: its path, and before that the text.
Tokens DraftBuilder::recent_tokens(Tokens text, std::int32_t node) {
  std::size_t begin = kMaxOrder;
  for (; node >= 0 && begin > 0; node = nodes_[static_cast<std::size_t>(node)].parent) {
    recent_[--begin] = nodes_[static_cast<std::size_t>(node)].token;
  }
  for (std::size_t left = text.size(); left > 0 && begin > 0;) recent_[--begin] = text[--left];
  return Tokens(recent_).subspan(begin);
}

namespace {

constexpr auto kIsWorse = [](const auto& a, const auto& b) {
  return a.node.prob != b.node.prob ? a.node.prob < b.node.prob : a.rank > b.rank;
};

}  // namespace

void DraftBuilder::push(const DraftNode& node) {
  frontier_.push_back({node, next_rank_++});
  std::push_heap(frontier_.begin(), frontier_.end(), kIsWorse);
}

DraftNode DraftBuilder::pop() {
  std::pop_heap(frontier_.begin(), frontier_.end(), kIsWorse);
  const DraftNode node = frontier_.back().node;
  frontier_.pop_back();
  return node;
}

// Only the best `num_wanted` can still enter the tree: forgets the rest now and then, and whatever is less likely than
// the last of these from then on.
void DraftBuilder::trim(std::size_t num_wanted) {
  if (frontier_.size() < 2 * num_wanted) return;
  const auto is_better = [](const Pending& a, const Pending& b) { return kIsWorse(b, a); };
  const auto last = frontier_.begin() + static_cast<std::ptrdiff_t>(num_wanted) - 1;
  std::nth_element(frontier_.begin(), last, frontier_.end(), is_better);
  cutoff_ = last->node.prob;
  frontier_.resize(num_wanted);
  std::make_heap(frontier_.begin(), frontier_.end(), kIsWorse);
}

}  // namespace pia
