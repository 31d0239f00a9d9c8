#include "outcomes.h"

#include <algorithm>

namespace pia {

namespace {

constexpr std::int32_t kNotFed = -2;

// The fed child of a fed node (or of the root, -1) that carries this token.
std::int32_t fed_child(const FedDraft& fed, std::int32_t parent, TokenId token) {
  for (auto i = static_cast<std::size_t>(parent + 1); i < fed.tokens.size(); ++i) {
    if (fed.tokens[i] == token && fed.parents[i] == parent) return static_cast<std::int32_t>(i);
  }
  return kNotFed;
}

std::vector<TokenId> path_to(std::span<const DraftNode> nodes, std::size_t at) {
  std::vector<TokenId> path(nodes[at].depth);
  for (auto node = static_cast<std::int32_t>(at); node >= 0; node = nodes[static_cast<std::size_t>(node)].parent) {
    path[nodes[static_cast<std::size_t>(node)].depth - 1] = nodes[static_cast<std::size_t>(node)].token;
  }
  return path;
}

}  // namespace

std::vector<std::vector<TokenId>> likeliest_outcomes(std::span<const DraftNode> grown, const FedDraft& fed,
                                                     std::size_t max_outcomes) {
  std::vector<std::vector<TokenId>> outcomes;
  std::vector<std::int32_t> fed_as;  // which fed node each grown one is
  fed_as.reserve(grown.size());
  for (std::size_t i = 0; i < grown.size() && outcomes.size() < max_outcomes; ++i) {
    const std::int32_t parent = grown[i].parent < 0 ? -1 : fed_as[static_cast<std::size_t>(grown[i].parent)];
    fed_as.push_back(parent == kNotFed ? kNotFed : fed_child(fed, parent, grown[i].token));
    if (parent != kNotFed && fed_as.back() == kNotFed) outcomes.push_back(path_to(grown, i));
  }
  return outcomes;
}

}  // namespace pia
