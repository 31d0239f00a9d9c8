#include "corpus.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <stdexcept>
#include <system_error>

#include "checksum.h"

namespace pia {

using namespace corpus;

namespace {

const Corpus::Layout& plausible(const Corpus::Layout& layout) {
  if (layout.vocab_size < 1 || layout.vocab_size > kMaxVocabSize) {
    throw std::invalid_argument("its vocabulary has an impossible size");
  }
  if (!std::has_single_bit(layout.num_buckets) || layout.num_buckets > kMaxBuckets ||
      layout.num_words >= std::uint64_t{1} << 44) {
    throw std::invalid_argument("its tables have an impossible size");
  }
  return layout;
}

[[noreturn]] void throw_errno(const char* what) { throw std::system_error(errno, std::generic_category(), what); }

}  // namespace

Corpus::Corpus(int file, const Layout& layout)
    : layout_(plausible(layout)),
      bucket_bits_(std::countr_zero(layout.num_buckets)),
      packing_(layout.vocab_size) {
  map(file);
  try {
    load_directory();
  } catch (...) {
    munmap(const_cast<void*>(mapped_), num_mapped_);
    throw;
  }
}

Corpus::~Corpus() { munmap(const_cast<void*>(mapped_), num_mapped_); }

void Corpus::map(int file) {
  struct stat status;
  if (fstat(file, &status) != 0) throw_errno("fstat");
  const std::uint64_t data_start = kPageBytes + directory_bytes(layout_.num_buckets);
  const std::uint64_t expected = data_start + in_whole_pages(layout_.num_words * kWordBytes);
  if (static_cast<std::uint64_t>(status.st_size) != expected) {
    throw std::invalid_argument("it has " + std::to_string(status.st_size) + " bytes instead of " +
                                std::to_string(expected));
  }
  void* mapped = mmap(nullptr, expected, PROT_READ, MAP_SHARED, file, 0);
  if (mapped == MAP_FAILED) throw_errno("mmap");
  mapped_ = mapped;
  num_mapped_ = expected;
  data_ = reinterpret_cast<const std::uint32_t*>(static_cast<const char*>(mapped_) + data_start);
  madvise(mapped, num_mapped_, MADV_RANDOM);  // reading ahead of a hash table reads what nobody wants
}

// Copied, so that nobody who writes to the file can change it once it was checked.
void Corpus::load_directory() {
  const char* source = static_cast<const char*>(mapped_) + kPageBytes;
  const std::uint64_t num_bytes = directory_bytes(layout_.num_buckets);
  madvise(const_cast<void*>(mapped_), kPageBytes + num_bytes, MADV_WILLNEED);
  directory_.resize(num_bytes / 8);
  std::memcpy(directory_.data(), source, num_bytes);
  Checksum checksum;
  checksum.update(directory_.data(), num_bytes);
  if (checksum.value() != layout_.directory_checksum) throw std::invalid_argument("its directory's checksum is wrong");
  directory_.resize(layout_.num_buckets + 1);
  for (std::uint64_t i = 0; i < layout_.num_buckets; ++i) {
    const std::uint64_t slots_end = first_word_of(directory_[i]) + num_slots_of(directory_[i]) * kWordsPerSlot;
    const std::uint64_t end = first_word_of(directory_[i + 1]);
    if (slots_end > end || end > layout_.num_words || end - slots_end > kInArena) {
      throw std::invalid_argument("its directory is broken");
    }
  }
}

void Corpus::preload() const { madvise(const_cast<void*>(mapped_), num_mapped_, MADV_WILLNEED); }

Continuations Corpus::continuations(const Bucket& bucket, std::uint32_t value, EdgeBuffer& buffer) const {
  if (!(value & kInArena)) {
    const Edge edge = packing_.unpack(value);
    return unpacked(edge.count, 1, [&](std::uint32_t) { return edge; }, buffer);
  }
  const std::uint64_t at = value & ~kInArena;
  if (at + 1 >= bucket.num_arena_words) return {0, {}};
  const std::uint32_t* words = bucket.arena() + at;
  const std::uint64_t num_words = bucket.num_arena_words - at;
  const std::uint32_t head = words[0];
  const std::uint32_t num_edges = head & kNumEdgesMask;
  const bool is_wide = head & kIsWide;
  if (num_edges > kMaxContinuations || (is_wide ? 2 + 2 * num_edges : 1 + num_edges) > num_words) return {0, {}};
  if (is_wide) {
    const auto edge_at = [&](std::uint32_t i) { return Edge{words[2 + 2 * i], words[3 + 2 * i]}; };
    return unpacked(words[1], num_edges, edge_at, buffer);
  }
  const auto edge_at = [&, packing = packing_](std::uint32_t i) { return packing.unpack(words[1 + i]); };
  return unpacked(head >> kTotalShift, num_edges, edge_at, buffer);
}

// Whatever a damaged file says, what is handed on is a distribution over the vocabulary.
template <class EdgeAt>
Continuations Corpus::unpacked(std::uint32_t total, std::uint32_t num_edges, EdgeAt&& edge_at,
                               EdgeBuffer& buffer) const {
  const auto last_token = static_cast<TokenId>(layout_.vocab_size - 1);
  std::uint64_t sum = 0;
  bool is_foreign = false;
  bool is_never = false;
  for (std::uint32_t i = 0; i < num_edges; ++i) {
    const Edge edge = edge_at(i);
    buffer[i] = edge;
    sum += edge.count;
    is_foreign |= edge.token > last_token;
    is_never |= edge.count == 0;
  }
  if (num_edges == 0 || is_foreign || is_never || (sum > total && total != 0xffffffffu)) return {0, {}};
  return {total, {buffer.data(), num_edges}};
}

std::optional<std::string> Corpus::find_fault() const {
  Checksum checksum;
  checksum.update(data_, in_whole_pages(layout_.num_words * kWordBytes));
  if (checksum.value() != layout_.data_checksum) return "the checksum of its data is wrong";
  for (std::uint64_t i = 0; i < layout_.num_buckets; ++i) {
    if (auto fault = find_bucket_fault(i)) return fault;
  }
  return std::nullopt;
}

std::optional<std::string> Corpus::find_bucket_fault(std::uint64_t index) const {
  const Bucket bucket = bucket_at(index);
  for (std::uint32_t i = 0; i < bucket.num_slots; ++i) {
    if (i > 0 && bucket.slots[i - 1].tag >= bucket.slots[i].tag) return "contexts are out of order";
    if (find(bucket, bucket.slots[i].tag) != bucket.slots + i) return "a context can't be found";
    EdgeBuffer buffer;
    const Continuations found = continuations(bucket, bucket.slots[i].value, buffer);
    if (found.total == 0) return "a context has impossible continuations";
    if (!std::is_sorted(found.edges.begin(), found.edges.end(), comes_before)) return "continuations are out of order";
  }
  return std::nullopt;
}

}  // namespace pia
