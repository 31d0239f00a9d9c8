// Learning very many tokens at once, as when a cache is loaded.
//
// One by one, each context would be looked for somewhere in a gigabyte. Here the contexts of half a million tokens are
// hashed first and dealt out by the low bits of their hash, which say in which part of the table they belong; the parts
// are then worked off one after the other, each small enough for the CPU cache. Two threads share the work without ever
// touching the same segment: one has the even hashes, the other the odd ones. Order does not matter to counts.
#include <system_error>
#include <thread>

#include "context_table.h"

namespace pia {

namespace {

constexpr std::uint32_t kMaxParts = 1024;

// Each stage works on what came so many hits ago, when the one before asked for its memory.
constexpr std::size_t kSlotDelay = 10;
constexpr std::size_t kEdgesDelay = 20;
constexpr std::size_t kCountDelay = 31;

struct Hit {
  std::uint32_t hash_low;
  std::uint32_t hash_high;
  TokenId token;

  std::uint64_t hash() const { return std::uint64_t{hash_high} << 32 | hash_low; }
};

// The hits of `texts` with the given parity, sorted by part; those of part p end at ends[p].
struct DealtHits {
  std::vector<Hit> hits;
  std::vector<std::size_t> ends;

  DealtHits(std::span<const Tokens> texts, std::uint32_t num_parts, std::uint32_t parity) : ends(num_parts + 1) {
    std::vector<Hit> unsorted;
    ContextHashes hashes;
    for (const Tokens text : texts) {
      for (std::size_t i = 1; i < text.size(); ++i) {
        hash_contexts(text.data() + i, i, hashes);
        hashes.for_each([&](std::uint64_t hash) {
          const auto low = static_cast<std::uint32_t>(hash);
          if ((low & 1) != parity) return;
          unsorted.push_back({low, static_cast<std::uint32_t>(hash >> 32), text[i]});
          ++ends[(low & (num_parts - 1)) + 1];
        });
      }
    }
    for (std::size_t part = 1; part <= num_parts; ++part) ends[part] += ends[part - 1];
    hits.resize(unsorted.size());
    for (const Hit& hit : unsorted) hits[ends[hit.hash_low & (num_parts - 1)]++] = hit;
  }
};

}  // namespace

void ContextTable::insert_many(std::span<const Tokens> texts) {
  std::size_t num_tokens = 0;
  for (const Tokens text : texts) num_tokens += text.size();
  if (num_tokens < kBulkTokens / 16) {
    for (const Tokens text : texts) insert(text, 0);
    return;
  }
  const std::size_t before = num_contexts();
  // Segments can't be split while both threads are at work, so that is done ahead, and set right afterwards.
  while (num_contexts() + static_cast<std::size_t>(new_per_token_ * static_cast<float>(num_tokens)) > next_split_at_) {
    if (!split_one()) break;
    segment_at(num_segments_.load(std::memory_order_relaxed) - 1).expect(kContextsPerSegment / 2);
  }
  std::array<Tally, 2> tallies;
  if (num_segments_.load(std::memory_order_relaxed) < 2) {
    for (const Tokens text : texts) insert(text, 0);
  } else {
    const auto work = [&](std::uint32_t parity) { insert_half(texts, parity, tallies[parity]); };
    try {
      std::exception_ptr failure;
      std::thread helper([&] {
        try {
          work(1);
        } catch (...) {
          failure = std::current_exception();
        }
      });
      try {
        work(0);
      } catch (...) {
        failure = std::current_exception();
      }
      helper.join();
      for (const Tally& tally : tallies) book(tally);
      if (failure) std::rethrow_exception(failure);
    } catch (const std::system_error&) {  // no more threads: this one does it all
      for (const std::uint32_t parity : {0u, 1u}) work(parity);
      for (const Tally& tally : tallies) book(tally);
    }
  }
  while (num_contexts() > next_split_at_ && split_one()) {
  }
  new_per_token_ = static_cast<float>(num_contexts() - std::min(before, num_contexts())) / static_cast<float>(num_tokens);
}

// Counts the contexts whose hash has this parity, and so lies in a segment whose index has it.
void ContextTable::insert_half(std::span<const Tokens> texts, std::uint32_t parity, Tally& tally) {
  const std::uint32_t num_parts = std::min(kMaxParts, std::bit_floor(num_segments_.load(std::memory_order_relaxed)));
  const DealtHits dealt(texts, num_parts, parity);
  const std::vector<Hit>& hits = dealt.hits;
  std::array<Segment*, kCountDelay + 1> segments;  // of the hits ahead; nothing is split meanwhile
  const auto segment_at = [&](std::size_t i) -> Segment& { return *segments[i % segments.size()]; };
  for (std::size_t i = 0; i < hits.size() + kCountDelay; ++i) {
    if (i < hits.size()) {
      segments[i % segments.size()] = &segment_of(hits[i].hash());
      __builtin_prefetch(&segment_at(i));
    }
    const auto stage = [&](std::size_t delay, auto&& act) {
      if (i >= delay && i - delay < hits.size()) act(hits[i - delay], segment_at(i - delay));
    };
    stage(kSlotDelay, [](const Hit& hit, const Segment& segment) { segment.prefetch(hit.hash()); });
    stage(kEdgesDelay, [](const Hit& hit, const Segment& segment) { segment.prefetch_edges(hit.hash()); });
    stage(kCountDelay, [&](const Hit& hit, Segment& segment) {
      change(segment, [&] { segment.add(hit.hash(), hit.token, meter_); }, tally);
    });
  }
}

}  // namespace pia
