// What the fuzz targets share: reading an input as numbers, and giving up.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "draft_session.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace fuzz {

// Aborts, so that whoever runs the target keeps the input.
inline void require(bool is_right, const char* what) {
  if (is_right) return;
  std::fprintf(stderr, "FAILED: %s\n", what);
  std::abort();
}

// Reads an input number by number; behind its end there are only zeros.
class Bytes {
 public:
  Bytes(const std::uint8_t* data, std::size_t size) : at_(data), end_(data + size) {}

  bool is_empty() const { return at_ == end_; }
  std::size_t num_left() const { return static_cast<std::size_t>(end_ - at_); }
  std::uint32_t byte() { return is_empty() ? 0 : *at_++; }
  std::uint32_t half() { return byte() | byte() << 8; }
  std::uint32_t word() { return half() | half() << 16; }

 private:
  const std::uint8_t* at_;
  const std::uint8_t* end_;
};

inline void check_tree(std::span<const pia::DraftNode> nodes, std::size_t budget, std::uint32_t max_depth) {
  require(nodes.size() <= budget, "a tree is larger than its budget");
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    const pia::DraftNode& node = nodes[i];
    require(node.parent >= -1 && node.parent < static_cast<std::int32_t>(i), "a child comes before its parent");
    const std::uint32_t above = node.parent < 0 ? 0 : nodes[static_cast<std::size_t>(node.parent)].depth;
    require(node.depth == above + 1 && node.depth <= max_depth, "a node has the wrong depth");
    require(node.prob > 0 && node.prob <= 1, "a probability is out of range");
    require(i == 0 || node.prob <= nodes[i - 1].prob, "nodes are not in best-first order");
    for (std::size_t j = 0; j < i; ++j) {
      require(nodes[j].parent != node.parent || nodes[j].token != node.token, "two children are the same");
    }
  }
}

}  // namespace fuzz
