#include "draft_builder.h"

#include <algorithm>

namespace pia {

namespace {

// Less likely paths than this are never worth a place, however large the budget.
constexpr float kMinPathProb = 1e-6f;

// A node is looked behind only if a child with this probability would enter the tree. Children more certain than that
// exist, but behind a node that is itself about to be the last they win little, and some look-ups are saved.
constexpr float kExpectedChild = 0.7f;

}  // namespace

// A node was right if its path is how the text went on.
void judge_paths(const Draft& draft, Tokens truth, std::vector<PathLesson>& lessons) {
  enum class Fate : std::uint8_t { kRight, kWrong, kUnknown };
  std::vector<Fate> fates;
  fates.reserve(draft.nodes.size());
  for (std::size_t i = 0; i < draft.nodes.size(); ++i) {
    const DraftNode& node = draft.nodes[i];
    Fate fate = node.parent < 0 ? Fate::kRight : fates[static_cast<std::size_t>(node.parent)];
    if (fate == Fate::kRight) {
      if (node.depth > truth.size()) {
        fate = Fate::kUnknown;
      } else if (truth[node.depth - 1] != node.token) {
        fate = Fate::kWrong;
      }
    }
    fates.push_back(fate);
    if (fate != Fate::kUnknown) lessons.push_back({draft.path_probs[i], fate == Fate::kRight});
  }
}

void DraftBuilder::build(Tokens text, const PredictedOutput::State& state, const DraftSources& sources,
                         std::size_t budget, std::uint32_t max_depth, Draft& draft) {
  nodes_.clear();
  states_.assign(1, state);
  frontier_.clear();
  pending_nodes_.clear();
  num_wanted_ = budget;
  if (budget > 0) {
    model_.refresh();
    expand(text, sources, -1);
  }
  while (!frontier_.empty()) {
    nodes_.push_back(pop());
    if (num_wanted_ > 0 && nodes_.back().depth < max_depth) {
      expand(text, sources, static_cast<std::int32_t>(nodes_.size()) - 1);
    }
  }
  draft.nodes.assign(nodes_.begin(), nodes_.end());
  calibrate(draft);
}

// Where the output would stand in the prediction behind a node; known already behind its parent.
const PredictedOutput::State& DraftBuilder::state_behind(Tokens text, const DraftSources& sources, std::int32_t at) {
  if (at < 0 || sources.predicted.is_empty()) return states_.front();
  const DraftNode& node = nodes_[static_cast<std::size_t>(at)];
  const TokenId last = text.empty() ? node.token : text.back();
  const TokenId before = node.parent < 0 ? last : nodes_[static_cast<std::size_t>(node.parent)].token;
  states_.resize(nodes_.size() + 1);
  const PredictedOutput::State& parent = states_[static_cast<std::size_t>(node.parent + 1)];
  return states_[static_cast<std::size_t>(at + 1)] = sources.predicted.advance(parent, before, node.token);
}

void DraftBuilder::expand(Tokens text, const DraftSources& sources, std::int32_t parent) {
  const float prob = parent < 0 ? 1.0f : nodes_[static_cast<std::size_t>(parent)].prob;
  const float cutoff = frontier_.size() < num_wanted_ ? kMinPathProb : frontier_.front().prob;
  if (prob * kExpectedChild < cutoff) return;
  const std::uint32_t depth = parent < 0 ? 1 : nodes_[static_cast<std::size_t>(parent)].depth + 1;
  const PredictedOutput::State& state = state_behind(text, sources, parent);
  for (const Candidate& next : model_.predict(recent_tokens(text, parent), state, sources, cutoff / prob)) {
    push({next.token, parent, prob * next.prob, depth, next.source});
  }
}

// Replaces the products of probabilities by what such products have been worth. The order stays: best first.
void DraftBuilder::calibrate(Draft& draft) const {
  draft.path_probs.clear();
  float last = 1.0f;
  for (DraftNode& node : draft.nodes) {
    draft.path_probs.push_back(node.prob);
    last = std::min(last, model_.mixing().calibrated(node.prob));
    node.prob = last;
  }
}

void DraftBuilder::learn(std::span<const PathLesson> lessons, Tokens text, std::size_t first,
                         PredictedOutput::State state, const DraftSources& sources) {
  for (const PathLesson& lesson : lessons) model_.mixing().learn_path(lesson.path_prob, lesson.is_right);
  for (std::size_t i = first; i < text.size(); ++i) {
    const std::size_t length = std::min<std::size_t>(i, kMaxOrder);
    model_.learn(text.subspan(i - length, length), state, text[i], sources);
    if (!sources.predicted.is_empty()) state = sources.predicted.advance(state, text[i > 0 ? i - 1 : i], text[i]);
  }
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

void DraftBuilder::push(const DraftNode& node) {
  const auto is_worse = [](float prob, const Pending& other) { return prob <= other.prob; };  // ties: the older first
  const auto at = std::upper_bound(frontier_.begin(), frontier_.end(), node.prob, is_worse);
  if (frontier_.size() == num_wanted_) {
    if (at == frontier_.begin()) return;
    std::move(frontier_.begin() + 1, at, frontier_.begin());
    *(at - 1) = {node.prob, static_cast<std::uint32_t>(pending_nodes_.size())};
  } else {
    frontier_.insert(at, {node.prob, static_cast<std::uint32_t>(pending_nodes_.size())});
  }
  pending_nodes_.push_back(node);
}

DraftNode DraftBuilder::pop() {
  const DraftNode node = pending_nodes_[frontier_.back().index];
  frontier_.pop_back();
  --num_wanted_;
  return node;
}

}  // namespace pia
