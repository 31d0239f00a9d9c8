#include "corpus_builder.h"

#include <algorithm>

namespace pia {

using namespace corpus;

namespace {

constexpr std::size_t kWriteBytes = std::size_t{1} << 20;
constexpr std::uint64_t kProgressMask = (1u << 20) - 1;

// The file's own memory: two write buffers, and some for the bucket at hand.
constexpr std::size_t kReservedBytes = 4 * kWriteBytes;

std::size_t buffer_share(std::size_t max_bytes) {
  return max_bytes > 2 * kReservedBytes ? max_bytes - kReservedBytes : max_bytes / 2;
}

std::uint64_t buckets_for(std::uint64_t num_records) {
  return std::clamp<std::uint64_t>(std::bit_ceil(num_records / kRecordsPerBucket + 1), 1, kMaxBuckets);
}

}  // namespace

// Takes records in order, and writes contexts and buckets as they become complete.
class CorpusBuilder::Writer {
 public:
  Writer(File& file, std::int64_t vocab_size, std::uint64_t num_buckets, std::size_t buffer_bytes)
      : packing_(vocab_size),
        num_buckets_(num_buckets),
        bucket_bits_(std::countr_zero(num_buckets)),
        directory_(file, kPageBytes, buffer_bytes),
        data_(file, kPageBytes + directory_bytes(num_buckets), buffer_bytes) {}

  void add(const Record& record) {
    if (!edges_.empty() && record.hash != hash_) finish_context();
    hash_ = record.hash;
    edges_.push_back({record.token, record.count});
    total_ = saturated_sum(total_, record.count);
  }

  void finish(Figures& figures) {
    if (!edges_.empty()) finish_context();
    start_bucket(num_buckets_);
    append_entry(0);  // where the last one ends
    figures.num_contexts = num_contexts_;
    figures.num_buckets = num_buckets_;
    figures.num_words = data_.num_bytes() / kWordBytes;
    directory_.finish(kPageBytes);
    data_.finish(kPageBytes);
    figures.directory_checksum = directory_.checksum();
    figures.data_checksum = data_.checksum();
  }

 private:
  void finish_context() {
    start_bucket(bucket_of(hash_, bucket_bits_));
    const std::uint32_t tag = tag_of(hash_, bucket_bits_);
    // Two contexts with one tag are too rare to matter: the second is left out.
    if (slots_.size() < kMaxSlots && (slots_.empty() || slots_.back().tag != tag)) {
      keep_most_frequent();
      slots_.push_back({tag, packed()});
      ++num_contexts_;
    }
    edges_.clear();
    total_ = 0;
  }

  void keep_most_frequent() {
    const std::size_t num_kept = std::min<std::size_t>(edges_.size(), kMaxContinuations);
    const auto is_before = [](const Edge& a, const Edge& b) { return comes_before(a, b); };
    std::partial_sort(edges_.begin(), edges_.begin() + static_cast<std::ptrdiff_t>(num_kept), edges_.end(), is_before);
    edges_.resize(num_kept);
  }

  // Writes the buckets before this one.
  void start_bucket(std::uint64_t bucket) {
    for (; bucket_ < bucket; ++bucket_) {
      append_entry(static_cast<std::uint32_t>(slots_.size()));
      data_.append(std::span<const Slot>(slots_));
      data_.append(std::span<const std::uint32_t>(arena_));
      slots_.clear();
      arena_.clear();
    }
  }

  void append_entry(std::uint32_t num_slots) {
    const std::uint64_t entry = pack_bucket(data_.num_bytes() / kWordBytes, num_slots);
    directory_.append(std::span(&entry, 1));
  }

  // The slot's value; edges go to the arena if there are several, or one that is too frequent.
  std::uint32_t packed() {
    if (edges_.size() == 1 && packing_.fits(edges_[0].count, 31)) return packing_.pack(edges_[0]);
    const auto at = static_cast<std::uint32_t>(arena_.size());
    const auto num_edges = static_cast<std::uint32_t>(edges_.size());
    if (total_ <= kMaxNarrowTotal && packing_.fits(edges_[0].count, 32)) {
      arena_.push_back(total_ << kTotalShift | num_edges);
      for (const Edge& edge : edges_) arena_.push_back(packing_.pack(edge));
    } else {
      arena_.insert(arena_.end(), {num_edges | kIsWide, total_});
      for (const Edge& edge : edges_) arena_.insert(arena_.end(), {edge.token, edge.count});
    }
    return at | kInArena;
  }

  const EdgePacking packing_;
  const std::uint64_t num_buckets_;
  const int bucket_bits_;
  SectionWriter directory_;
  SectionWriter data_;
  std::uint64_t num_contexts_ = 0;

  // The context at hand, and the bucket it lies in.
  std::uint64_t hash_ = 0;
  std::uint32_t total_ = 0;
  std::vector<Edge> edges_;
  std::uint64_t bucket_ = 0;
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> arena_;
};

CorpusBuilder::CorpusBuilder(const std::string& path, std::int64_t vocab_size, std::size_t max_bytes)
    : vocab_size_(vocab_size),
      file_(path, O_RDWR | O_CREAT | O_EXCL),
      runs_(path + ".runs", buffer_share(max_bytes)) {}

void CorpusBuilder::extend(Tokens tokens) {
  if (tokens.empty()) return;
  const std::size_t first = tail_.size();
  tail_.insert(tail_.end(), tokens.begin(), tokens.end());
  ContextHashes hashes;
  for (std::size_t i = first; i < tail_.size(); ++i) {
    hash_contexts(tail_.data() + i, i, hashes);
    hashes.for_each([&](std::uint64_t hash) { runs_.add(hash, tail_[i]); });
  }
  figures_.num_tokens += tokens.size();
  if (tail_.size() > kMaxOrder) tail_.erase(tail_.begin(), tail_.end() - kMaxOrder);
}

void CorpusBuilder::end_sequence() {
  figures_.num_sequences += !tail_.empty();
  tail_.clear();
}

CorpusBuilder::Figures CorpusBuilder::finish(const Progress& progress) {
  end_sequence();
  Writer writer(file_, vocab_size_, buckets_for(runs_.num_added()), kWriteBytes);
  std::uint64_t num_done = 0;
  std::uint64_t num_merged = 0;
  runs_.merge([&](const Record& record) {
    writer.add(record);
    num_done += record.count;
    if ((++num_merged & kProgressMask) == 0) progress(num_done, runs_.num_added());
  });
  writer.finish(figures_);
  return figures_;
}

}  // namespace pia
