// A small hash table of contexts: the unit of locking, growth and eviction of a ContextTable.
//
// Slots lie sorted by a 16-bit key of the hash, each at or after the place its key maps to ("ordered linear probing"):
// a search stops at the first larger key, and a rebuild is one sequential copy. A context with one continuation, as
// most have, holds it in its slot; more of them lie sorted by count in a block of the segment's edge arena.
//
// A segment never holds more than a few thousand contexts, so that every rebuild (growth, split, eviction) takes
// microseconds. Its contents depend only on what was added less what was subtracted, as long as nothing is evicted. All memory is charged to a MemoryMeter first; when nothing is left the least useful contexts go.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "memory_meter.h"
#include "rw_spin_lock.h"
#include "types.h"

namespace pia {

struct Slot {
  std::uint32_t tag;      // bits 0..31 of the hash; the low ones also choose the segment
  std::uint32_t value;    // the only continuation, or where the edges begin in the arena
  std::uint32_t total;    // sum of the counts
  std::uint16_t key;      // bits 32..47 of the hash; slots are sorted by it
  std::uint8_t num_edges; // 0 marks a free slot
  std::uint8_t credit;    // how often it was seen, less what eviction rounds took
};
static_assert(sizeof(Slot) == 16);

class alignas(64) Segment {
 public:
  static constexpr std::uint32_t kMaxEdges = 255;  // continuations kept per context; the rarest makes room
  static constexpr std::uint8_t kMaxCredit = 32;   // so many rounds of eviction, unseen, does the most common outlast

  Segment() = default;
  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  RwSpinLock lock;

  // --- Readers: hold `lock` shared -------------------------------------------------------------------------------
  // Calls `read(Continuations)` if the context is known.
  template <class Read>
  bool visit(std::uint64_t hash, Read&& read) const {
    const Place place = seek(hash);
    if (!place.is_known) return false;
    const Slot& slot = slots_.load(std::memory_order_relaxed)[place.index];
    const Edge single{slot.value, slot.total};
    const auto edges = edges_of(slot, single);
    read(Continuations{slot.total, edges.first(std::min<std::size_t>(edges.size(), kMaxContinuations))});
    return true;
  }

  // Brings the slot of `hash` towards the CPU cache; needs no lock.
  void prefetch(std::uint64_t hash) const {
    const Slot* slots = slots_.load(std::memory_order_relaxed);
    if (!slots) return;
    slots += home(key_of(hash), range_.load(std::memory_order_relaxed));
    __builtin_prefetch(slots);
    __builtin_prefetch(slots + 4);  // the next cache line: runs often reach into it
  }

  // Brings the continuations towards the CPU cache; true if the context is known.
  bool prefetch_edges(std::uint64_t hash) const {
    const Place place = seek(hash);
    if (!place.is_known) return false;
    const Slot& slot = slots_.load(std::memory_order_relaxed)[place.index];
    if (slot.num_edges > 1) __builtin_prefetch(edges_ + slot.value);
    return true;
  }

  // --- Writers: hold `lock` alone --------------------------------------------------------------------------------
  // Counts `token` after the context. Makes room by growing or, when memory is spent, by evicting. The token is not
  // counted (false) only if not even that gave room.
  bool add(std::uint64_t hash, TokenId token, MemoryMeter& meter);

  // Takes one count of `token` after the context back, if it is known. Needs no memory; what comes to zero is gone.
  void subtract(std::uint64_t hash, TokenId token, MemoryMeter& meter);

  // Lets the first array be large enough for so many contexts, rather than grow from the smallest one up.
  void expect(std::uint32_t num_contexts) { num_expected_ = num_contexts; }

  // Moves the contexts whose hash has `bit` set to the empty segment `other`. False, and nothing moved, without memory.
  bool split_into(Segment& other, std::uint32_t bit, MemoryMeter& meter);

  // Drops the least useful part (a share between 0 and 1) and gives back all memory that the rest does not need.
  void shrink(float share, MemoryMeter& meter);
  void clear(MemoryMeter& meter);

  std::uint32_t num_contexts() const { return num_contexts_; }
  std::size_t num_bytes() const { return allocated_bytes(num_slots_, edge_capacity_); }

  // What is wrong with this segment, if anything. Every hash must satisfy `(hash & mask) == index`.
  std::optional<std::string> find_fault(std::uint32_t mask, std::uint32_t index) const;

 private:
  // Where a context is, or would have to be.
  struct Place {
    std::uint32_t index;
    bool is_known;
  };

  // Contexts on their way from one layout to the next; `value` of a slot indexes `edges` when it has several.
  struct Staging {
    std::vector<Slot> slots;
    std::vector<Edge> edges;
    std::uint32_t num_arena_edges = 0;  // with the slack of size classes
  };
  static Staging& staging();  // one per thread, reused

  static constexpr std::uint32_t kNumClasses = 15;
  static constexpr std::uint32_t kNoBlock = 0xffffffffu;
  static constexpr std::array<std::uint16_t, kNumClasses> kClassSizes = {2,  3,  4,  6,  8,   12,  16, 24,
                                                                        32, 48, 64, 96, 128, 192, 256};

  static std::uint32_t class_of(std::uint32_t num_edges);
  static std::uint16_t key_of(std::uint64_t hash) { return static_cast<std::uint16_t>(hash >> 32); }
  static std::uint32_t home(std::uint16_t key, std::uint32_t range) { return (key * range) >> 16; }
  static std::size_t allocated_bytes(std::size_t num_slots, std::size_t num_edges) {
    return num_slots * sizeof(Slot) + num_edges * sizeof(Edge);
  }

  Place seek(std::uint64_t hash) const {
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
  std::span<const Edge> edges_of(const Slot& slot, const Edge& single) const {
    if (slot.num_edges == 1) return {&single, 1};
    return {edges_ + slot.value, slot.num_edges};
  }

  bool insert(std::uint32_t at, std::uint64_t hash, TokenId token);
  bool reinforce(Slot& slot, TokenId token);
  static Edge* find_edge(Edge* edges, std::uint32_t num_edges, TokenId token);
  static void raise(Edge* edges, Edge* edge);
  bool append_edge(Slot& slot, TokenId token);
  void lower(Slot& slot, TokenId token);
  void drop_last_edge(Slot& slot);
  void erase(std::uint32_t at);
  std::uint32_t take_block(std::uint32_t size_class);
  void give_block(std::uint32_t block, std::uint32_t size_class);

  bool make_room(std::uint32_t num_edges, MemoryMeter& meter);
  bool grow_slots(MemoryMeter& meter);
  bool grow_arena(std::uint32_t num_edges, MemoryMeter& meter);
  template <class Keep>
  void stage_if(Staging& staged, Keep&& keep) const;
  void stage_survivors(Staging& staged, std::uint32_t num_victims) const;
  bool reload(const Staging& staged, std::uint32_t num_free_edges, MemoryMeter& meter);
  bool recharge(std::size_t num_slots, std::size_t num_edges, MemoryMeter& meter) const;
  void place(const Staging& staged);
  std::optional<std::string> find_place_fault(std::uint32_t place) const;
  std::optional<std::string> find_edge_fault(const Slot& slot, std::vector<bool>& is_taken) const;
  void free_arrays();

  // Read without the lock by prefetch(), hence atomic.
  std::atomic<Slot*> slots_{nullptr};
  std::atomic<std::uint32_t> range_{0};  // keys map to [0, range); behind it some slots take what runs over
  std::uint32_t num_slots_ = 0;
  std::uint32_t num_contexts_ = 0;
  Edge* edges_ = nullptr;
  std::uint32_t edge_capacity_ = 0;
  std::uint32_t edge_used_ = 0;
  // From here on, nothing that readers need.
  std::uint32_t num_expected_ = 0;  // contexts to make room for at first
  std::uint32_t edge_garbage_ = 0;  // edges in free blocks or lost between them, until the next rebuild
  std::array<std::uint32_t, kNumClasses> free_blocks_ = filled(kNoBlock);

  static constexpr std::array<std::uint32_t, kNumClasses> filled(std::uint32_t value) {
    std::array<std::uint32_t, kNumClasses> all{};
    for (auto& one : all) one = value;
    return all;
  }
};

}  // namespace pia
