#include "segment.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace pia {

namespace {

// Denser than this, runs get long: time for a rebuild, which leaves a fifth of the range free again.
bool is_full(std::uint32_t num_contexts, std::uint32_t range) { return num_contexts * 8 > range * 7; }

constexpr std::uint32_t kMaxTotal = std::numeric_limits<std::uint32_t>::max();

std::uint8_t raised(std::uint8_t credit) { return std::min<std::uint8_t>(credit + 1, Segment::kMaxCredit); }

}  // namespace

std::uint32_t Segment::class_of(std::uint32_t num_edges) {
  std::uint32_t size_class = 0;
  while (kClassSizes[size_class] < num_edges) ++size_class;
  return size_class;
}

bool Segment::add(std::uint64_t hash, TokenId token, MemoryMeter& meter) {
  for (int attempt = 0; attempt < 3; ++attempt) {
    const Place place = seek(hash);
    Slot* slot = slots_.load(std::memory_order_relaxed) + place.index;
    if (place.is_known ? reinforce(*slot, token) : insert(place.index, hash, token)) return true;
    const std::uint32_t num_edges = place.is_known ? std::min(slot->num_edges + 1u, kMaxEdges) : 0;
    if (!make_room(num_edges, meter)) return false;
  }
  return false;
}

// Makes a new context at its place, moving what lies behind it up to the next gap. False if that would be too dense.
bool Segment::insert(std::uint32_t at, std::uint64_t hash, TokenId token) {
  if (is_full(num_contexts_ + 1, range_.load(std::memory_order_relaxed))) return false;
  Slot* slots = slots_.load(std::memory_order_relaxed);
  std::uint32_t gap = at;
  while (gap < num_slots_ && slots[gap].num_edges != 0) ++gap;
  if (gap == num_slots_) return false;
  std::move_backward(slots + at, slots + gap, slots + gap + 1);
  slots[at] = Slot{static_cast<std::uint32_t>(hash), token, 1, key_of(hash), 1, 1};
  ++num_contexts_;
  return true;
}

// Where `token` is among the edges, or their end. Without an early way out in the inner loop, four are compared at once.
Edge* Segment::find_edge(Edge* edges, std::uint32_t num_edges, TokenId token) {
  Edge* const end = edges + num_edges;
  for (; end - edges >= 4; edges += 4) {
    const unsigned found = (edges[0].token == token) | (edges[1].token == token) << 1 | (edges[2].token == token) << 2 |
                           (edges[3].token == token) << 3;
    if (found) return edges + std::countr_zero(found);
  }
  return std::find_if(edges, end, [token](const Edge& e) { return e.token == token; });
}

// Counts `token` after a known context. False, and nothing changed, if the arena has no room for it.
bool Segment::reinforce(Slot& slot, TokenId token) {
  if (slot.total == kMaxTotal) return true;
  if (slot.num_edges == 1 && slot.value == token) {
    ++slot.total;
  } else if (slot.num_edges == 1) {
    if (!append_edge(slot, token)) return false;
  } else {
    Edge* edges = edges_ + slot.value;
    Edge* known = find_edge(edges, slot.num_edges, token);
    if (known != edges + slot.num_edges) {
      raise(edges, known);
      ++slot.total;
    } else if (slot.num_edges < kMaxEdges) {
      if (!append_edge(slot, token)) return false;
    } else {  // the rarest gives way
      slot.total -= known[-1].count - 1;
      known[-1] = {token, 0};
      raise(edges, known - 1);
    }
  }
  slot.credit = raised(slot.credit);
  return true;
}

// Counts `edge` once more and moves it to its new place among the `edges` before it.
void Segment::raise(Edge* edges, Edge* edge) {
  const Edge counted{edge->token, edge->count + 1};
  Edge* to = edge;
  while (to > edges && comes_before(counted, to[-1])) --to;
  std::move_backward(to, edge, edge + 1);
  *to = counted;
}

// Gives a context one more continuation, seen once, in a larger block if need be.
bool Segment::append_edge(Slot& slot, TokenId token) {
  const std::uint32_t count = slot.num_edges;
  const std::uint32_t wanted = class_of(count + 1);
  if (count == 1 || wanted != class_of(count)) {
    const std::uint32_t block = take_block(wanted);
    if (block == kNoBlock) return false;
    const Edge single{slot.value, slot.total};
    std::ranges::copy(edges_of(slot, single), edges_ + block);
    if (count > 1) give_block(slot.value, class_of(count));
    slot.value = block;
  }
  Edge* const edges = edges_ + slot.value;  // not before: the value of a single edge is a token, and no place
  edges[count] = {token, 0};
  raise(edges, edges + count);
  ++slot.total;
  slot.num_edges = static_cast<std::uint8_t>(count + 1);
  return true;
}

void Segment::subtract(std::uint64_t hash, TokenId token, MemoryMeter& meter) {
  const Place place = seek(hash);
  if (!place.is_known) return;
  Slot& slot = slots_.load(std::memory_order_relaxed)[place.index];
  if (slot.num_edges > 1) return lower(slot, token);
  if (slot.value != token || --slot.total > 0) return;
  erase(place.index);
  if (num_contexts_ == 0 || num_contexts_ * 4 < num_slots_) shrink(0, meter);
}

// Takes one count of `token` back from a context with several continuations, and moves it to its new place.
void Segment::lower(Slot& slot, TokenId token) {
  Edge* edges = edges_ + slot.value;
  Edge* end = edges + slot.num_edges;
  Edge* edge = find_edge(edges, slot.num_edges, token);
  if (edge == end) return;
  const Edge counted{token, edge->count - 1};
  for (; edge + 1 < end && comes_before(edge[1], counted); ++edge) *edge = edge[1];
  *edge = counted;
  --slot.total;
  if (counted.count == 0) drop_last_edge(slot);
}

// What a block is too large by becomes a free block of its own, so that this needs no memory.
void Segment::drop_last_edge(Slot& slot) {
  const std::uint32_t count = --slot.num_edges;
  const std::uint32_t old_class = class_of(count + 1);
  if (count == 1) {
    const TokenId left = edges_[slot.value].token;
    give_block(slot.value, old_class);
    slot.value = left;
  } else if (const std::uint32_t new_class = class_of(count); new_class != old_class) {
    const std::uint32_t size = kClassSizes[new_class];
    const std::uint32_t rest = kClassSizes[old_class] - size;
    if (rest > 1) {
      give_block(slot.value + size, class_of(rest));
    } else {
      edge_garbage_ += rest;
    }
  }
}

// Takes a context out; those behind it that were kept from their home move up.
void Segment::erase(std::uint32_t at) {
  Slot* slots = slots_.load(std::memory_order_relaxed);
  const std::uint32_t range = range_.load(std::memory_order_relaxed);
  for (; at + 1 < num_slots_ && slots[at + 1].num_edges != 0 && home(slots[at + 1].key, range) <= at; ++at) {
    slots[at] = slots[at + 1];
  }
  slots[at] = Slot{};
  --num_contexts_;
}

// A free block is chained through the token of its first edge.
std::uint32_t Segment::take_block(std::uint32_t size_class) {
  const std::uint32_t block = free_blocks_[size_class];
  if (block != kNoBlock) {
    free_blocks_[size_class] = edges_[block].token;
    edge_garbage_ -= kClassSizes[size_class];
    return block;
  }
  const std::uint32_t size = kClassSizes[size_class];
  if (edge_used_ + size > edge_capacity_) return kNoBlock;
  edge_used_ += size;
  return edge_used_ - size;
}

void Segment::give_block(std::uint32_t block, std::uint32_t size_class) {
  edges_[block].token = free_blocks_[size_class];
  free_blocks_[size_class] = block;
  edge_garbage_ += kClassSizes[size_class];
}

}  // namespace pia
