#include "segment.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <new>

namespace pia {

namespace {

constexpr std::uint32_t kMinRange = 6;
constexpr std::uint32_t kMaxOverflow = 32;

// Denser than this, runs get long: time for a rebuild, which leaves a fifth of the range free again.
bool is_full(std::uint32_t num_contexts, std::uint32_t range) { return num_contexts * 8 > range * 7; }

// How many slots for so many contexts, and how many of them keys map to.
struct SlotPlan {
  std::uint32_t num_slots;
  std::uint32_t range;
};

// Array sizes come in eight steps per doubling, so that what one segment gives back fits the next and the heap does not
// fall to pieces.
std::uint32_t rounded(std::uint32_t size) {
  const std::uint32_t step = std::max(2u, std::bit_floor(size) / 8);
  return (size + step - 1) / step * step;
}

SlotPlan plan_slots(std::size_t num_contexts) {
  const std::uint32_t wanted = std::max(kMinRange, static_cast<std::uint32_t>(num_contexts * 4 / 3 + 2));
  const std::uint32_t overflow = std::min(wanted, kMaxOverflow);
  const std::uint32_t num_slots = rounded(wanted + overflow);
  return {num_slots, num_slots - overflow};
}

// With slack enough that small arenas, too, grow in few steps.
std::uint32_t plan_arena(std::uint32_t num_edges, std::uint32_t num_free_edges) {
  const std::uint32_t slack = std::max({num_edges / 8, std::min(num_edges, 64u), num_free_edges});
  return slack ? rounded(num_edges + slack) : 0;
}

// A context that was common once is gone after so many rounds without being seen.
constexpr std::uint8_t kMaxCredit = 32;

constexpr std::uint32_t kMaxTotal = std::numeric_limits<std::uint32_t>::max();

std::uint8_t raised(std::uint8_t credit) { return std::min<std::uint8_t>(credit + 1, kMaxCredit); }

}  // namespace

Segment::~Segment() { free_arrays(); }

void Segment::free_arrays() {
  delete[] slots_.load(std::memory_order_relaxed);
  delete[] edges_;
  slots_.store(nullptr, std::memory_order_relaxed);
  range_.store(0, std::memory_order_relaxed);
  edges_ = nullptr;
  num_slots_ = num_contexts_ = edge_capacity_ = edge_used_ = edge_garbage_ = 0;
  free_blocks_ = filled(kNoBlock);
}

Segment::Staging& Segment::staging() {
  thread_local Staging staged;
  return staged;
}

std::uint32_t Segment::class_of(std::uint32_t num_edges) {
  std::uint32_t size_class = 0;
  while (kClassSizes[size_class] < num_edges) ++size_class;
  return size_class;
}

Segment::Place Segment::seek(std::uint64_t hash) const {
  const Slot* slots = slots_.load(std::memory_order_relaxed);
  const std::uint16_t key = key_of(hash);
  const auto tag = static_cast<std::uint32_t>(hash);
  std::uint32_t i = home(key, range_.load(std::memory_order_relaxed));
  for (; i < num_slots_; ++i) {
    const Slot& slot = slots[i];
    if (slot.num_edges == 0 || slot.key > key) break;
    if (slot.key == key && slot.tag == tag) return {i, true};
  }
  return {i, false};
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
  Edge* edges = edges_ + slot.value;
  if (count == 1 || wanted != class_of(count)) {
    const std::uint32_t block = take_block(wanted);
    if (block == kNoBlock) return false;
    const Edge single{slot.value, slot.total};
    edges = edges_ + block;
    std::ranges::copy(edges_of(slot, single), edges);
    if (count > 1) give_block(slot.value, class_of(count));
    slot.value = block;
  }
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
  if (num_contexts_ > 0 && num_contexts_ * 4 >= num_slots_) return;
  Staging& staged = staging();
  stage_if(staged, [](const Slot&) { return true; });
  reload(staged, 0, meter);  // smaller, so never refused
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

// Gives the slots room, or the arena if it is `num_edges` that found none; keeps as many contexts as the memory allows.
bool Segment::make_room(std::uint32_t num_edges, MemoryMeter& meter) {
  const std::uint32_t num_free = num_edges ? kClassSizes[class_of(num_edges)] : 0;
  if (num_edges ? grow_arena(num_free, meter) : grow_slots(meter)) return true;
  Staging& staged = staging();
  stage_if(staged, [](const Slot&) { return true; });
  if (reload(staged, num_free, meter)) return true;
  for (const std::uint32_t quarters : {1u, 2u, 3u, 4u}) {
    stage_survivors(staged, (num_contexts_ * quarters + 3) / 4);
    if (reload(staged, num_free, meter)) return true;
  }
  return false;
}

// Settles with the meter what arrays of these sizes take more or less than those at hand.
bool Segment::recharge(std::size_t num_slots, std::size_t num_edges, MemoryMeter& meter) const {
  const std::size_t before = num_bytes();
  const std::size_t after = allocated_bytes(num_slots, num_edges);
  if (after > before) return meter.try_charge(after - before);
  meter.release(before - after);
  return true;
}

// Spreads the slots over a larger array. False, and nothing changed, if there is no memory.
bool Segment::grow_slots(MemoryMeter& meter) {
  const SlotPlan plan = plan_slots(std::max(num_contexts_ + 1, num_slots_ ? 0 : num_expected_));
  if (!recharge(plan.num_slots, edge_capacity_, meter)) return false;
  Slot* slots = new (std::nothrow) Slot[plan.num_slots]();
  Slot* old = slots_.load(std::memory_order_relaxed);
  std::uint32_t next = 0;
  for (std::uint32_t i = 0; slots && i < num_slots_; ++i) {
    if (old[i].num_edges == 0) continue;
    next = std::max(next, home(old[i].key, plan.range));
    if (next == plan.num_slots) {  // practically never: a reload will deal with it
      delete[] slots;
      slots = nullptr;
      break;
    }
    slots[next++] = old[i];
  }
  if (!slots) {
    meter.release(allocated_bytes(plan.num_slots, 0) - allocated_bytes(num_slots_, 0));
    return false;
  }
  slots_.store(slots, std::memory_order_relaxed);
  range_.store(plan.range, std::memory_order_relaxed);
  num_slots_ = plan.num_slots;
  delete[] old;
  return true;
}

// Moves the edges to a larger array as they lie. False, and nothing changed, if there is no memory, or if so much of it
// lies fallow that a reload is due.
bool Segment::grow_arena(std::uint32_t num_free_edges, MemoryMeter& meter) {
  if (edge_garbage_ * 4 > edge_used_) return false;
  const std::uint32_t capacity =
      plan_arena(edge_used_, edge_capacity_ ? num_free_edges : std::max(num_free_edges, num_expected_ / 2));
  if (!recharge(num_slots_, capacity, meter)) return false;
  Edge* edges = new (std::nothrow) Edge[capacity];
  if (!edges) {
    meter.release(allocated_bytes(0, capacity - edge_capacity_));
    return false;
  }
  std::copy_n(edges_, edge_used_, edges);
  delete[] edges_;
  edges_ = edges;
  edge_capacity_ = capacity;
  return true;
}

template <class Keep>
void Segment::stage_if(Staging& staged, Keep&& keep) const {
  staged.slots.clear();
  staged.edges.clear();
  staged.num_arena_edges = 0;
  const Slot* slots = slots_.load(std::memory_order_relaxed);
  for (std::uint32_t i = 0; i < num_slots_; ++i) {
    if (slots[i].num_edges == 0 || !keep(slots[i])) continue;
    Slot& slot = staged.slots.emplace_back(slots[i]);
    if (slot.num_edges == 1) continue;
    const Edge* edges = edges_ + slot.value;
    slot.value = static_cast<std::uint32_t>(staged.edges.size());
    staged.edges.insert(staged.edges.end(), edges, edges + slot.num_edges);
    staged.num_arena_edges += kClassSizes[class_of(slot.num_edges)];
  }
}

// Seen seldom and not lately = low credit: least frequently used, with dynamic ageing. What is evicted sets the new
// zero, so a newcomer stands above what was seen as often as the evicted, but longer ago. Ties are cut evenly over the
// segment.
void Segment::stage_survivors(Staging& staged, std::uint32_t num_victims) const {
  std::array<std::uint32_t, kMaxCredit + 1> histogram{};
  const Slot* slots = slots_.load(std::memory_order_relaxed);
  for (std::uint32_t i = 0; i < num_slots_; ++i) {
    if (slots[i].num_edges) ++histogram[slots[i].credit];
  }
  std::uint32_t threshold = 0;
  std::uint32_t below = 0;
  while (threshold < kMaxCredit && below + histogram[threshold] < num_victims) below += histogram[threshold++];
  const std::uint32_t num_ties = histogram[threshold];
  const std::uint32_t quota = std::min(num_victims - below, num_ties);
  std::uint32_t carry = 0;
  stage_if(staged, [&](const Slot& slot) {
    if (slot.credit != threshold) return slot.credit > threshold;
    carry += quota;
    if (carry < num_ties) return true;
    carry -= num_ties;
    return false;
  });
  for (Slot& slot : staged.slots) slot.credit = static_cast<std::uint8_t>(slot.credit - threshold);
}

// Replaces the contents by `staged`, in arrays made to measure. False, and nothing changed, if the meter refuses.
bool Segment::reload(const Staging& staged, std::uint32_t num_free_edges, MemoryMeter& meter) {
  if (staged.slots.empty() && num_slots_ > 0) {
    clear(meter);
    return true;
  }
  const SlotPlan plan = plan_slots(staged.slots.size());
  const std::uint32_t capacity = plan_arena(staged.num_arena_edges, num_free_edges);
  if (!recharge(plan.num_slots, capacity, meter)) return false;
  free_arrays();
  try {
    slots_.store(new Slot[plan.num_slots](), std::memory_order_relaxed);
    edges_ = capacity ? new Edge[capacity] : nullptr;
  } catch (...) {
    free_arrays();
    meter.release(allocated_bytes(plan.num_slots, capacity));
    throw;
  }
  range_.store(plan.range, std::memory_order_relaxed);
  num_slots_ = plan.num_slots;
  edge_capacity_ = capacity;
  place(staged);
  return true;
}

// Keys come in ascending order, so each context goes to its home or right behind its predecessor. One that would run
// over the end (practically never) is given up.
void Segment::place(const Staging& staged) {
  Slot* slots = slots_.load(std::memory_order_relaxed);
  std::uint32_t next = 0;
  for (const Slot& from : staged.slots) {
    const std::uint32_t at = std::max(next, home(from.key, range_.load(std::memory_order_relaxed)));
    if (at >= num_slots_) break;
    Slot& slot = slots[at] = from;
    if (slot.num_edges > 1) {
      slot.value = take_block(class_of(slot.num_edges));
      std::copy_n(staged.edges.data() + from.value, slot.num_edges, edges_ + slot.value);
    }
    next = at + 1;
    ++num_contexts_;
  }
}

bool Segment::split_into(Segment& other, std::uint32_t bit, MemoryMeter& meter) {
  Staging& staged = staging();
  stage_if(staged, [bit](const Slot& slot) { return (slot.tag & bit) != 0; });
  if (!other.reload(staged, 0, meter)) return false;
  stage_if(staged, [bit](const Slot& slot) { return (slot.tag & bit) == 0; });
  // Smaller than before, so the meter can't refuse, but for the least sizes: then the old arrays will do.
  if (!reload(staged, 0, meter)) {
    other.clear(meter);
    return false;
  }
  return true;
}

void Segment::shrink(float share, MemoryMeter& meter) {
  Staging& staged = staging();
  stage_survivors(staged, static_cast<std::uint32_t>(std::ceil(static_cast<float>(num_contexts_) * share)));
  reload(staged, 0, meter);
}

void Segment::clear(MemoryMeter& meter) {
  meter.release(num_bytes());
  free_arrays();
}

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
