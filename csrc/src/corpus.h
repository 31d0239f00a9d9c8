// A corpus: counts of contexts in a file, mapped into memory and only ever read.
//
// It has the reader's interface of a ContextTable. Nothing in it changes, so it needs no locks. A damaged file can make
// drafts wrong, but never lets a look-up read outside the map: the directory is checked when the file is opened, and
// kept in memory of our own; everything else is checked as it is read.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "corpus_format.h"

namespace pia {

class Corpus {
 public:
  // What the header says.
  struct Layout {
    std::int64_t vocab_size;
    std::uint64_t num_buckets;  // a power of two
    std::uint64_t num_words;    // of data
    std::uint64_t directory_checksum;
    std::uint64_t data_checksum;
  };

  // Maps the open file, which may be closed afterwards. Throws std::invalid_argument, saying what is wrong with it, or
  // std::system_error.
  Corpus(int file, const Layout& layout);
  ~Corpus();
  Corpus(const Corpus&) = delete;
  Corpus& operator=(const Corpus&) = delete;

  // Calls `read(Continuations)` if the context is known. Tokens lie within the vocabulary.
  template <class Read>
  bool visit(std::uint64_t hash, Read&& read) const {
    const Bucket bucket = bucket_at(corpus::bucket_of(hash, bucket_bits_));
    const corpus::Slot* slot = find(bucket, corpus::tag_of(hash, bucket_bits_));
    if (!slot) return false;
    EdgeBuffer buffer;
    const Continuations found = continuations(bucket, slot->value, buffer);
    if (found.total == 0) return false;
    read(found);
    return true;
  }

  // Brings what `visit` reads towards the CPU cache, in three stages, each of which reads what the one before asked
  // for. Run each over many contexts before the next.
  void prefetch_header(std::uint64_t hash) const {
    __builtin_prefetch(directory_.data() + corpus::bucket_of(hash, bucket_bits_));
  }
  void prefetch(std::uint64_t hash) const {
    const Bucket bucket = bucket_at(corpus::bucket_of(hash, bucket_bits_));
    __builtin_prefetch(bucket.slots + guess(bucket, corpus::tag_of(hash, bucket_bits_)));
  }
  void prefetch_edges(std::uint64_t hash) const {
    const Bucket bucket = bucket_at(corpus::bucket_of(hash, bucket_bits_));
    const corpus::Slot* slot = find(bucket, corpus::tag_of(hash, bucket_bits_));
    if (slot && slot->value & corpus::kInArena) __builtin_prefetch(bucket.arena() + (slot->value & ~corpus::kInArena));
  }

  // Asks the system to read the whole file in, in the background.
  void preload() const;

  std::int64_t vocab_size() const { return layout_.vocab_size; }
  std::size_t num_bytes() const { return num_mapped_; }
  // What is wrong with the data, if anything; reads all of it.
  std::optional<std::string> find_fault() const;

 private:
  using EdgeBuffer = std::array<Edge, kMaxContinuations>;

  struct Bucket {
    const corpus::Slot* slots;
    std::uint32_t num_slots;
    std::uint32_t num_arena_words;
    const std::uint32_t* arena() const { return reinterpret_cast<const std::uint32_t*>(slots + num_slots); }
  };

  Bucket bucket_at(std::uint64_t index) const {
    const std::uint64_t entry = directory_[index];
    const std::uint64_t first = corpus::first_word_of(entry);
    const std::uint32_t num_slots = corpus::num_slots_of(entry);
    const std::uint64_t num_words = corpus::first_word_of(directory_[index + 1]) - first;
    return {reinterpret_cast<const corpus::Slot*>(data_ + first), num_slots,
            static_cast<std::uint32_t>(num_words - num_slots * corpus::kWordsPerSlot)};
  }

  // Where a tag lies if tags are spread evenly.
  static std::uint32_t guess(const Bucket& bucket, std::uint32_t tag) {
    return static_cast<std::uint32_t>((std::uint64_t{tag} * bucket.num_slots) >> 32);
  }

  static const corpus::Slot* find(const Bucket& bucket, std::uint32_t tag) {
    std::uint32_t i = guess(bucket, tag);
    while (i < bucket.num_slots && bucket.slots[i].tag < tag) ++i;
    while (i > 0 && bucket.slots[i - 1].tag >= tag) --i;
    return i < bucket.num_slots && bucket.slots[i].tag == tag ? bucket.slots + i : nullptr;
  }

  // A total of 0 says that the file is damaged here.
  Continuations continuations(const Bucket& bucket, std::uint32_t value, EdgeBuffer& buffer) const;
  template <class EdgeAt>
  Continuations unpacked(std::uint32_t total, std::uint32_t num_edges, EdgeAt&& edge_at, EdgeBuffer& buffer) const;

  void map(int file);
  void load_directory();
  std::optional<std::string> find_bucket_fault(std::uint64_t index) const;

  const Layout layout_;
  const int bucket_bits_;
  const corpus::EdgePacking packing_;
  const void* mapped_ = nullptr;
  std::size_t num_mapped_ = 0;
  const std::uint32_t* data_ = nullptr;
  std::vector<std::uint64_t> directory_;
};

// The corpora that a request reads; they live as long as anybody uses them.
using Corpora = std::vector<std::shared_ptr<Corpus>>;

}  // namespace pia
