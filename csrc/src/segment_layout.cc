// How a segment's arrays are laid out: growth, splits, eviction.
#include "segment.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <new>

namespace pia {

namespace {

constexpr std::uint32_t kMinRange = 6;
constexpr std::uint32_t kMaxOverflow = 32;

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

}  // namespace pia
