#include "context_table.h"

#include <algorithm>
#include <new>

namespace pia {

namespace {

// A context is hashed so many tokens before it is counted. Memory is far away: each stage fetches what the next one
// reads - the segment's header, then the slots, then the continuations. One more than kCountDelay is a power of two, so
// that the ring is cheap to walk.
constexpr std::size_t kCountDelay = 15;
constexpr std::size_t kEdgesDelay = 10;
constexpr std::size_t kSlotDelay = 5;

// A table as small as this lies in the CPU cache, where looking that far ahead costs more than it saves.
constexpr std::size_t kNearBytes = std::size_t{1} << 24;

std::size_t chunk_size(std::size_t chunk) { return std::size_t{1} << chunk; }

}  // namespace

ContextTable::ContextTable(MemoryMeter& meter, bool is_concurrent, std::size_t expected_contexts)
    : meter_(meter), is_concurrent_(is_concurrent) {
  const auto wanted = static_cast<std::uint32_t>(std::max<std::size_t>(1, expected_contexts / (kContextsPerSegment * 3 / 4)));
  std::uint32_t count = 0;
  while (count < wanted && add_segment_header(count)) ++count;
  if (count == 0) throw std::bad_alloc();
  num_segments_.store(count, std::memory_order_release);
  next_split_at_ = kContextsPerSegment * count;
  for (std::uint32_t i = 0; i < count; ++i) segment_at(i).expect(static_cast<std::uint32_t>(expected_contexts / count));
}

ContextTable::~ContextTable() {
  clear();
  for (std::size_t chunk = 0; chunk < kMaxChunks; ++chunk) {
    Segment* segments = chunks_[chunk].load(std::memory_order_relaxed);
    if (segments) meter_.release(chunk_size(chunk) * sizeof(Segment));
    delete[] segments;
  }
}

void ContextTable::insert(Tokens text, std::size_t first) {
  walk(text, first, [this](std::uint64_t hash, TokenId token) {
    Segment& segment = segment_of(hash);
    update(segment, [&] { segment.add(hash, token, meter_); });
    if (num_contexts() > next_split_at_) split_one();
  });
}

void ContextTable::remove(Tokens text) {
  walk(text, 0, [this](std::uint64_t hash, TokenId token) {
    Segment& segment = segment_of(hash);
    update(segment, [&] { segment.subtract(hash, token, meter_); });
  });
}

// Calls `act(hash, text[i])` for each i >= first and each context that ends before it, with what it needs on its way.
template <class Act>
void ContextTable::walk(Tokens text, std::size_t first, Act&& act) const {
  const bool is_far = num_bytes() > kNearBytes;
  std::array<ContextHashes, kCountDelay + 1> ring;
  const std::size_t begin = std::max<std::size_t>(first, 1);
  for (std::size_t i = begin; i < text.size() + kCountDelay; ++i) {
    if (i < text.size()) {
      ContextHashes& ahead = ring[i % ring.size()];
      hash_contexts(text.data() + i, i, ahead);
      if (is_far) ahead.for_each([&](std::uint64_t hash) { prefetch_header(hash); });
    }
    const auto stage = [&](std::size_t delay, auto&& fetch) {
      if (i >= begin + delay && i - delay < text.size()) ring[(i - delay) % ring.size()].for_each(fetch);
    };
    stage(kSlotDelay, [this](std::uint64_t hash) { prefetch(hash); });
    if (is_far) stage(kEdgesDelay, [this](std::uint64_t hash) { segment_of(hash).prefetch_edges(hash); });
    if (i >= begin + kCountDelay) {
      const std::size_t now = i - kCountDelay;
      ring[now % ring.size()].for_each([&](std::uint64_t hash) { act(hash, text[now]); });
    }
  }
}

bool ContextTable::add_segment_header(std::uint32_t index) {
  const auto chunk = static_cast<std::size_t>(std::bit_width(index + 1) - 1);
  if (chunk >= kMaxChunks) return false;
  if (chunks_[chunk].load(std::memory_order_relaxed)) return true;
  const std::size_t bytes = chunk_size(chunk) * sizeof(Segment);
  if (!meter_.try_charge(bytes)) return false;
  auto* segments = new (std::nothrow) Segment[chunk_size(chunk)];
  if (!segments) {
    meter_.release(bytes);
    return false;
  }
  chunks_[chunk].store(segments, std::memory_order_release);
  num_bytes_.store(num_bytes() + bytes, std::memory_order_relaxed);
  return true;
}

// Splits the segment whose turn it is; false without memory.
bool ContextTable::split_one() {
  const std::uint32_t count = num_segments_.load(std::memory_order_relaxed);
  bool is_split = false;
  if (add_segment_header(count)) {
    const std::uint32_t bit = std::bit_ceil(count + 1) >> 1;
    Segment& from = segment_at(count - bit);
    Segment& to = segment_at(count);  // unknown to readers until the count is published, under from's lock
    update(to, [&] {
      update(from, [&] {
        is_split = from.split_into(to, bit, meter_);
        if (is_split) num_segments_.store(count + 1, std::memory_order_release);
      });
    });
  }
  // Without memory for a split, eviction keeps segments small; ask again when the table has grown a little.
  next_split_at_ = is_split ? kContextsPerSegment * (count + 1) : num_contexts() + kContextsPerSegment;
  return is_split;
}

void ContextTable::clear() {
  for (std::uint32_t i = 0; i < num_segments_.load(std::memory_order_relaxed); ++i) {
    Segment& segment = segment_at(i);
    update(segment, [&] { segment.clear(meter_); });
  }
}

void ContextTable::shrink(std::size_t bytes) {
  const std::uint32_t count = num_segments_.load(std::memory_order_relaxed);
  const std::size_t before = num_bytes();
  for (std::uint32_t turn = 0; turn < count && before - num_bytes() < bytes; ++turn) {
    next_to_shrink_ = (next_to_shrink_ + 1) % count;
    Segment& segment = segment_at(next_to_shrink_);
    update(segment, [&] { segment.shrink(0.5f, meter_); });
  }
}

std::optional<std::string> ContextTable::find_fault() const {
  const std::uint32_t count = num_segments_.load(std::memory_order_acquire);
  const std::uint32_t mask = std::bit_ceil(count) - 1;
  std::size_t contexts = 0;
  std::size_t bytes = 0;
  for (std::size_t chunk = 0; chunk < kMaxChunks; ++chunk) {
    if (chunks_[chunk].load(std::memory_order_acquire)) bytes += chunk_size(chunk) * sizeof(Segment);
  }
  for (std::uint32_t i = 0; i < count; ++i) {
    // Segments not yet split in this round, and their split-off halves yet to come, know one bit less.
    const bool is_whole = (i | ((mask + 1) >> 1)) >= count && i < (mask + 1) >> 1;
    Segment& segment = segment_at(i);
    const SharedGuard guard(lock_of(segment));
    if (auto fault = segment.find_fault(is_whole ? mask >> 1 : mask, i)) return fault;
    contexts += segment.num_contexts();
    bytes += segment.num_bytes();
  }
  if (contexts != num_contexts()) return "the number of contexts is not the sum over segments";
  if (bytes != num_bytes()) return "the number of bytes is not the sum over segments";
  return std::nullopt;
}

}  // namespace pia
