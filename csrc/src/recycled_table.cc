#include "recycled_table.h"

#include <new>
#include <utility>

namespace pia {

const TopTokens* RecycledTable::find(std::uint64_t hash) const {
  if (buckets_.empty()) return nullptr;
  for (const std::size_t at : places(hash, buckets_.size())) {
    const Bucket& bucket = buckets_[at];
    for (std::size_t i = 0; i < kBucketSize; ++i) {
      if (bucket.hashes[i] == hash) return &bucket.entries[i];
    }
  }
  return nullptr;
}

void RecycledTable::put(std::uint64_t hash, const TopTokens& top) {
  if (is_due()) adopt(grown());
  put_without_growing(hash, top);
}

void RecycledTable::put_without_growing(std::uint64_t hash, const TopTokens& top) {
  if (buckets_.empty() || place(buckets_, hash, top, num_entries_)) return;
  Bucket& bucket = buckets_[places(hash, buckets_.size())[0]];
  const std::size_t victim = hash >> 62;
  bucket.hashes[victim] = hash;
  bucket.entries[victim] = top;
}

// Where the context lies already, or else where there is room; false if there is none.
bool RecycledTable::place(Buckets& buckets, std::uint64_t hash, const TopTokens& top, std::size_t& num_entries) {
  Bucket* free = nullptr;
  std::size_t at_free = 0;
  for (const std::size_t at : places(hash, buckets.size())) {
    Bucket& bucket = buckets[at];
    for (std::size_t i = 0; i < kBucketSize; ++i) {
      if (bucket.hashes[i] == hash) {
        bucket.entries[i] = top;
        return true;
      }
      if (!free && bucket.hashes[i] == kNone) {
        free = &bucket;
        at_free = i;
      }
    }
  }
  if (!free) return false;
  free->hashes[at_free] = hash;
  free->entries[at_free] = top;
  ++num_entries;
  return true;
}

// The same contexts in twice the room; nothing if there is no such room. The few that find both buckets full are dropped.
RecycledTable::Grown RecycledTable::grown() const {
  const std::size_t bytes = next_bytes(num_bytes());
  if (bytes > max_bytes_ || !meter_.try_charge(bytes)) return {};
  try {
    Grown bigger{Buckets(bytes / sizeof(Bucket))};
    for (const Bucket& bucket : buckets_) {
      for (std::size_t i = 0; i < kBucketSize; ++i) {
        if (bucket.hashes[i] != kNone) place(bigger.buckets, bucket.hashes[i], bucket.entries[i], bigger.num_entries);
      }
    }
    return bigger;
  } catch (const std::bad_alloc&) {
    meter_.release(bytes);
    return {};
  }
}

void RecycledTable::adopt(Grown&& bigger) {
  if (bigger.buckets.empty()) return;
  meter_.release(num_bytes());
  buckets_ = std::move(bigger.buckets);
  num_entries_ = bigger.num_entries;
}

void RecycledTable::merge(const RecycledTable& other) {
  for (const Bucket& bucket : other.buckets_) {
    for (std::size_t i = 0; i < kBucketSize; ++i) {
      if (bucket.hashes[i] != kNone) put(bucket.hashes[i], bucket.entries[i]);
    }
  }
}

void RecycledTable::clear() {
  meter_.release(num_bytes());
  buckets_ = {};
  num_entries_ = 0;
}

void RecycledTable::wipe() {
  for (Bucket& bucket : buckets_) bucket.hashes.fill(kNone);
  num_entries_ = 0;
}

bool RecycledTable::is_sound() const {
  std::size_t num_entries = 0;
  for (const Bucket& bucket : buckets_) {
    for (std::size_t i = 0; i < kBucketSize; ++i) {
      if (bucket.hashes[i] == kNone) continue;
      if (find(bucket.hashes[i]) != &bucket.entries[i]) return false;
      ++num_entries;
    }
  }
  return num_entries == num_entries_;
}

bool SharedRecycledTable::find(std::uint64_t hash, TopTokens& top) const {
  const SharedGuard guard(&lock_);
  const TopTokens* found = table_.find(hash);
  if (found) top = *found;
  return found != nullptr;
}

// Readers are kept out for one entry, or for as long as it takes to hand over a table that has grown.
void SharedRecycledTable::put(std::uint64_t hash, const TopTokens& top) {
  RecycledTable::Grown bigger = table_.is_due() ? table_.grown() : RecycledTable::Grown{};
  const UniqueGuard guard(&lock_);
  table_.adopt(std::move(bigger));
  table_.put_without_growing(hash, top);
  num_bytes_.store(table_.num_bytes(), std::memory_order_relaxed);
}

void SharedRecycledTable::clear() {
  const std::lock_guard writing(writer_);
  generation_.fetch_add(1, std::memory_order_release);
  const UniqueGuard guard(&lock_);
  table_.clear();
  num_bytes_.store(0, std::memory_order_relaxed);
}

bool SharedRecycledTable::is_sound() const {
  const SharedGuard guard(&lock_);
  return table_.is_sound();
}

}  // namespace pia
