// What is wrong with a segment, if anything.
#include "segment.h"

namespace pia {

std::optional<std::string> Segment::find_fault(std::uint32_t mask, std::uint32_t index) const {
  const Slot* slots = slots_.load(std::memory_order_relaxed);
  std::uint32_t count = 0;
  std::vector<bool> is_taken(edge_used_, false);
  for (std::uint32_t i = 0; i < num_slots_; ++i) {
    if (slots[i].num_edges == 0) continue;
    ++count;
    if ((slots[i].tag & mask) != index) return "a context lies in the wrong segment";
    if (auto fault = find_place_fault(i)) return fault;
    if (auto fault = find_edge_fault(slots[i], is_taken)) return fault;
  }
  if (count != num_contexts_) return "the number of contexts is wrong";
  return std::nullopt;
}

std::optional<std::string> Segment::find_place_fault(std::uint32_t place) const {
  const Slot* slots = slots_.load(std::memory_order_relaxed);
  const Slot& slot = slots[place];
  const std::uint32_t begin = home(slot.key, range_.load(std::memory_order_relaxed));
  if (begin > place) return "a context lies before its home";
  for (std::uint32_t i = begin; i < place; ++i) {
    if (slots[i].num_edges == 0) return "a gap hides a context";
    if (slots[i].key > slot.key) return "contexts are out of order";
    if (slots[i].key == slot.key && slots[i].tag == slot.tag) return "a context lies there twice";
  }
  return std::nullopt;
}

std::optional<std::string> Segment::find_edge_fault(const Slot& slot, std::vector<bool>& is_taken) const {
  if (slot.total == 0) return "a total is not positive";
  if (slot.num_edges == 1) return std::nullopt;
  if (slot.num_edges > kMaxEdges) return "a context has too many continuations";
  const std::uint32_t size = kClassSizes[class_of(slot.num_edges)];
  if (slot.value > edge_used_ || size > edge_used_ - slot.value) return "a block lies outside the arena";
  for (std::uint32_t i = slot.value; i < slot.value + size; ++i) {
    if (is_taken[i]) return "two blocks overlap";
    is_taken[i] = true;
  }
  const Edge* edges = edges_ + slot.value;
  std::uint64_t sum = 0;
  for (std::uint32_t i = 0; i < slot.num_edges; ++i) {
    if (edges[i].count == 0) return "a count is zero";
    if (i > 0 && !comes_before(edges[i - 1], edges[i])) return "continuations are out of order";
    for (std::uint32_t j = 0; j < i; ++j) {
      if (edges[j].token == edges[i].token) return "a continuation lies there twice";
    }
    sum += edges[i].count;
  }
  if (sum != slot.total) return "a total is not the sum of its counts";
  return std::nullopt;
}

}  // namespace pia
