// Learning very many tokens at once, as when a cache is loaded.
//
// One by one, each context would be looked for somewhere in a gigabyte, and its segment locked for it alone. Here the
// contexts of half a million tokens are hashed first and dealt out by segment; then one segment is worked on after the
// other. Two threads share the work without ever touching the same segment: one has the even hashes, the other the odd
// ones. Order does not matter to counts.
#include <exception>
#include <system_error>
#include <thread>

#include "context_table.h"

namespace pia {

namespace {

// What so many contexts need is fetched into the CPU cache while those before them are counted. No segment is locked for
// longer than it takes to count these.
constexpr std::size_t kBatch = 32;

struct Hit {
  std::uint32_t hash_low;
  std::uint32_t hash_high;
  TokenId token;

  std::uint64_t hash() const { return std::uint64_t{hash_high} << 32 | hash_low; }
};

// The hits of `texts` with the given parity, in the order of their segments.
template <class SegmentOf>
std::vector<Hit> deal(std::span<const Tokens> texts, std::uint32_t parity, std::size_t num_segments,
                      SegmentOf&& segment_of) {
  std::vector<Hit> unsorted;
  std::vector<std::uint32_t> ends(num_segments + 1);
  ContextHashes hashes;
  for (const Tokens text : texts) {
    for (std::size_t i = 1; i < text.size(); ++i) {
      hash_contexts(text.data() + i, i, hashes);
      hashes.for_each([&](std::uint64_t hash) {
        if ((hash & 1) != parity) return;
        unsorted.push_back({static_cast<std::uint32_t>(hash), static_cast<std::uint32_t>(hash >> 32), text[i]});
        ++ends[segment_of(hash) + 1];
      });
    }
  }
  for (std::size_t i = 1; i <= num_segments; ++i) ends[i] += ends[i - 1];
  std::vector<Hit> dealt(unsorted.size());
  for (const Hit& hit : unsorted) dealt[ends[segment_of(hit.hash())]++] = hit;
  return dealt;
}

}  // namespace

void ContextTable::insert_many(std::span<const Tokens> texts) {
  std::size_t num_tokens = 0;
  for (const Tokens text : texts) num_tokens += text.size();
  if (num_tokens >= kBulkTokens / 16) split_for(num_tokens);
  if (num_tokens < kBulkTokens / 16 || num_segments_.load(std::memory_order_relaxed) < 2) {
    for (const Tokens text : texts) insert(text, 0);
    return;
  }
  const std::size_t before = num_contexts();
  insert_halves(texts);
  while (num_contexts() > next_split_at_ && split_one()) {
  }
  const std::size_t num_new = num_contexts() - std::min(before, num_contexts());
  new_per_token_ = static_cast<float>(num_new) / static_cast<float>(num_tokens);
}

// Segments can't be split while two threads are at work, so that is done ahead, by estimate, and set right afterwards.
void ContextTable::split_for(std::size_t num_tokens) {
  const auto num_new = static_cast<std::size_t>(new_per_token_ * static_cast<float>(num_tokens));
  while (num_contexts() + num_new > next_split_at_ && split_one()) {
    segment_at(num_segments_.load(std::memory_order_relaxed) - 1).expect(kContextsPerSegment / 2);
  }
}

void ContextTable::insert_halves(std::span<const Tokens> texts) {
  std::array<Tally, 2> tallies;
  std::array<std::exception_ptr, 2> failures;
  const auto work = [&](std::uint32_t parity) {
    try {
      insert_half(texts, parity, tallies[parity]);
    } catch (...) {
      failures[parity] = std::current_exception();
    }
  };
  std::thread helper;
  try {
    helper = std::thread(work, 1);
  } catch (const std::system_error&) {  // no more threads: this one does it all
    work(1);
  }
  work(0);
  if (helper.joinable()) helper.join();
  for (const Tally& tally : tallies) book(tally);
  for (const auto& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
}

// Counts the contexts whose hash has this parity, and so lies in a segment whose index has it.
void ContextTable::insert_half(std::span<const Tokens> texts, std::uint32_t parity, Tally& tally) {
  const std::uint32_t num_segments = num_segments_.load(std::memory_order_relaxed);
  const std::vector<Hit> hits =
      deal(texts, parity, num_segments, [=](std::uint64_t hash) { return address(num_segments, hash); });
  const auto batch = [&hits](std::size_t begin) {
    begin = std::min(begin, hits.size());
    return std::span(hits).subspan(begin, std::min(kBatch, hits.size() - begin));
  };
  for (std::size_t at = 0; at < hits.size(); at += kBatch) {
    for (const Hit& hit : batch(at + 3 * kBatch)) prefetch_header(hit.hash());
    for (const Hit& hit : batch(at + 2 * kBatch)) prefetch(hit.hash());
    for (const Hit& hit : batch(at + kBatch)) segment_of(hit.hash()).prefetch_edges(hit.hash());
    for (auto left = batch(at); !left.empty();) {
      Segment& segment = segment_of(left.front().hash());
      std::size_t count = 0;
      const auto add_all = [&] {
        for (; count < left.size() && &segment_of(left[count].hash()) == &segment; ++count) {
          segment.add(left[count].hash(), left[count].token, meter_);
        }
      };
      change(segment, add_all, tally);
      left = left.subspan(count);
    }
  }
}

}  // namespace pia
