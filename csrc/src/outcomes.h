// What a forward over a draft may emit: a path of the draft, and one token that leads out of it.
#pragma once

#include <span>
#include <vector>

#include "draft_builder.h"

namespace pia {

// The draft that a forward verifies; parents come before their children.
struct FedDraft {
  std::span<const TokenId> tokens;
  std::span<const std::int32_t> parents;
};

// The likeliest outcomes, best first, at most so many. They are read off `grown`, a tree for the same text that was grown
// further than what is fed: its nodes are best first, so the first ones that are not fed are the likeliest to come next.
std::vector<std::vector<TokenId>> likeliest_outcomes(std::span<const DraftNode> grown, const FedDraft& fed,
                                                     std::size_t max_outcomes);

}  // namespace pia
