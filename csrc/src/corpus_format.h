// How a corpus file is laid out: what its builder writes and its reader reads. Integers are little-endian.
//
//   header     one page, written and read by Python (src/pia/drafting/corpus_file.py)
//   directory  a word of 8 bytes per bucket, and one for the end: where the bucket begins, how many slots it has
//   data       the buckets in order: slots sorted by tag, then the edges of contexts with several continuations
//
// Directory and data are filled up with zeros to whole pages. The highest bits of a context's hash choose the bucket,
// the 32 bits below them are its tag. As hashes are uniform, a slot lies close to where its tag says, so a look-up
// touches the directory (small enough to stay in the CPU's cache), one or two lines of slots, and the edges if any.
#pragma once

#include <algorithm>
#include <bit>

#include "types.h"

namespace pia::corpus {

inline constexpr std::size_t kPageBytes = 4096;
inline constexpr std::size_t kWordBytes = 4;  // all of the data is words of 32 bits

// Up to this many places of the text fall into a bucket, and at least half as many; a quarter of that in contexts, or
// less. Measured: with 512 look-ups are no faster and the directory is four times larger; with 128 they take twice as
// long, as the directory outgrows the CPU's cache.
inline constexpr std::uint64_t kRecordsPerBucket = 2048;
inline constexpr std::uint64_t kMaxBuckets = std::uint64_t{1} << 32;
inline constexpr std::uint32_t kMaxSlots = 0xffff;

static_assert(std::endian::native == std::endian::little, "corpus files are little-endian");

struct Slot {
  std::uint32_t tag;
  // kInArena clear: the only continuation, packed. Set: where its edges lie, in words behind the bucket's slots.
  std::uint32_t value;
};
inline constexpr std::uint32_t kInArena = 0x80000000u;
inline constexpr std::uint32_t kWordsPerSlot = sizeof(Slot) / kWordBytes;

// Edges of one context: a head, for wide ones the total, then the edges; a wide edge is a token and a count.
inline constexpr std::uint32_t kNumEdgesMask = 0x7f;
inline constexpr std::uint32_t kIsWide = 0x80;
inline constexpr int kTotalShift = 8;  // the total of narrow ones
inline constexpr std::uint32_t kMaxNarrowTotal = 0xffffff;
static_assert(kMaxContinuations <= kNumEdgesMask);

// Directory entries.
constexpr std::uint64_t pack_bucket(std::uint64_t first_word, std::uint32_t num_slots) {
  return first_word << 16 | num_slots;
}
constexpr std::uint64_t first_word_of(std::uint64_t entry) { return entry >> 16; }
constexpr std::uint32_t num_slots_of(std::uint64_t entry) { return entry & kMaxSlots; }

// Which bucket a hash belongs to, of 2^bits, and its tag there.
constexpr std::uint64_t bucket_of(std::uint64_t hash, int bits) { return bits == 0 ? 0 : hash >> (64 - bits); }
constexpr std::uint32_t tag_of(std::uint64_t hash, int bits) {
  return static_cast<std::uint32_t>((hash << bits) >> 32);
}

constexpr std::uint64_t in_whole_pages(std::uint64_t num_bytes) {
  return (num_bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
}
constexpr std::uint64_t directory_bytes(std::uint64_t num_buckets) { return in_whole_pages((num_buckets + 1) * 8); }

// A continuation with its count in one word: the count, less 1, lies above the token's bits.
class EdgePacking {
 public:
  explicit constexpr EdgePacking(std::int64_t vocab_size)
      : token_bits_(std::max(1, static_cast<int>(std::bit_width(static_cast<std::uint64_t>(vocab_size - 1))))) {}

  constexpr bool fits(std::uint32_t count, int num_bits) const {
    return std::uint64_t{count - 1} >> (num_bits - token_bits_) == 0;
  }
  constexpr std::uint32_t pack(const Edge& edge) const {
    return static_cast<std::uint32_t>(std::uint64_t{edge.count - 1} << token_bits_ | edge.token);
  }
  constexpr Edge unpack(std::uint32_t word) const {
    return {word & ((1u << token_bits_) - 1), (word >> token_bits_) + 1};
  }

 private:
  int token_bits_;  // 1 to 31
};

}  // namespace pia::corpus
