// All contexts of one text collection (a namespace, or one request), grown by linear hashing.
//
// Segments are addressed by the low bits of a context's hash. When the table is due to grow, ONE segment is split in
// two (each in turn), so growth comes in steps of microseconds and never doubles anything. Segment headers sit in
// chunks of 1, 2, 4, ... that never move, so readers need no lock to find theirs.
//
// Threads: any number may read. Writers must be serialised by the caller (one `insert`, `remove`, `clear` or
// `shrink` at a time).
#pragma once

#include <atomic>
#include <bit>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "context_hash.h"
#include "segment.h"

namespace pia {

class ContextTable {
 public:
  // `is_concurrent`: false spares the locks, for a table that one thread uses alone.
  ContextTable(MemoryMeter& meter, bool is_concurrent, std::size_t expected_contexts = 0);
  ~ContextTable();
  ContextTable(const ContextTable&) = delete;
  ContextTable& operator=(const ContextTable&) = delete;

  // Counts text[i], for each i >= first, after each context that ends before it.
  void insert(Tokens text, std::size_t first);
  // The same for each of many texts, from their beginnings. Best called with about kBulkTokens at a time; takes two
  // threads then, and some hundred bytes of memory per token while it runs.
  void insert_many(std::span<const Tokens> texts);
  static constexpr std::size_t kBulkTokens = std::size_t{1} << 19;

  // Takes back what insert(text, 0) counted, as far as it is still known.
  void remove(Tokens text);

  // Looking a context up means three reads, each of which may have to wait for memory: the segment's header, the slot,
  // the continuations. With several contexts to look up, call these for all of them, one after the other, and visit()
  // finds everything near. None is needed for right results.
  void prefetch_header(std::uint64_t hash) const {
    __builtin_prefetch(&segment_at(address(num_segments_.load(std::memory_order_acquire), hash)));
  }
  void prefetch(std::uint64_t hash) const {
    segment_at(address(num_segments_.load(std::memory_order_acquire), hash)).prefetch(hash);
  }
  // True if the context is known.
  bool prefetch_edges(std::uint64_t hash) const {
    return with_segment(hash, [hash](const Segment& segment) { return segment.prefetch_edges(hash); });
  }

  // Calls `read(Continuations)` if the context is known, while its segment is locked for readers; false if it is not.
  template <class Read>
  bool visit(std::uint64_t hash, Read&& read) const {
    return with_segment(hash, [&](const Segment& segment) { return segment.visit(hash, read); });
  }

  // From now on one thread uses the table alone.
  void use_alone() { is_concurrent_ = false; }

  void clear();
  // Evicts half of one segment after another, in turn, until `bytes` are free or all had their turn.
  void shrink(std::size_t bytes);

  std::size_t num_contexts() const { return num_contexts_.load(std::memory_order_relaxed); }
  std::size_t num_bytes() const { return num_bytes_.load(std::memory_order_relaxed); }
  std::optional<std::string> find_fault() const;

 private:
  static constexpr std::size_t kMaxChunks = 28;
  static constexpr std::size_t kContextsPerSegment = 1024;

  // Segment of a hash among `count`: its low bits, one bit more for those already split in this round.
  static std::uint32_t address(std::uint32_t count, std::uint64_t hash) {
    const std::uint32_t mask = std::bit_ceil(count) - 1;
    const std::uint32_t index = static_cast<std::uint32_t>(hash) & mask;
    return index < count ? index : index & (mask >> 1);
  }

  Segment& segment_at(std::uint32_t index) const {
    const int chunk = std::bit_width(index + 1) - 1;
    return chunks_[static_cast<std::size_t>(chunk)].load(std::memory_order_acquire)[index + 1 - (1u << chunk)];
  }

  RwSpinLock* lock_of(Segment& segment) const { return is_concurrent_ ? &segment.lock : nullptr; }

  // Calls `look(segment)` for the segment of `hash`, locked for readers.
  template <class Look>
  bool with_segment(std::uint64_t hash, Look&& look) const {
    for (;;) {
      const std::uint32_t index = address(num_segments_.load(std::memory_order_acquire), hash);
      Segment& segment = segment_at(index);
      const SharedGuard guard(lock_of(segment));
      // A split between the look and the lock may have moved the context on.
      if (address(num_segments_.load(std::memory_order_acquire), hash) == index) return look(segment);
    }
  }

  template <class Act>
  void walk(Tokens text, std::size_t first, Act&& act) const;
  Segment& segment_of(std::uint64_t hash) const {
    return segment_at(address(num_segments_.load(std::memory_order_relaxed), hash));
  }
  // By how much contexts and bytes have become more or less.
  struct Tally {
    std::ptrdiff_t contexts = 0;
    std::ptrdiff_t bytes = 0;
  };

  void split_for(std::size_t num_tokens);
  void insert_halves(std::span<const Tokens> texts);
  void insert_half(std::span<const Tokens> texts, std::uint32_t parity, Tally& tally);
  bool add_segment_header(std::uint32_t index);
  bool split_one();

  // Runs `act()`, which changes `segment`, while it is locked, and notes what that did.
  template <class Act>
  void change(Segment& segment, Act&& act, Tally& tally) {
    const UniqueGuard guard(lock_of(segment));
    tally.contexts -= segment.num_contexts();
    tally.bytes -= static_cast<std::ptrdiff_t>(segment.num_bytes());
    act();
    tally.contexts += segment.num_contexts();
    tally.bytes += static_cast<std::ptrdiff_t>(segment.num_bytes());
  }

  // Only the one writer does this, so plain read-modify-write is enough.
  void book(const Tally& tally) {
    if (tally.contexts) {
      num_contexts_.store(num_contexts() + static_cast<std::size_t>(tally.contexts), std::memory_order_relaxed);
    }
    if (tally.bytes) num_bytes_.store(num_bytes() + static_cast<std::size_t>(tally.bytes), std::memory_order_relaxed);
  }

  template <class Act>
  void update(Segment& segment, Act&& act) {
    Tally tally;
    change(segment, act, tally);
    book(tally);
  }

  MemoryMeter& meter_;
  bool is_concurrent_;
  std::array<std::atomic<Segment*>, kMaxChunks> chunks_{};
  std::atomic<std::uint32_t> num_segments_{0};
  std::atomic<std::size_t> num_contexts_{0};
  std::atomic<std::size_t> num_bytes_{0};
  std::size_t next_split_at_ = kContextsPerSegment;
  std::uint32_t next_to_shrink_ = 0;
  float new_per_token_ = 2.0f;  // contexts that a token of the last bulk made
};

}  // namespace pia
