#include "recycled_table.h"

#include <new>
#include <utility>

namespace pia {

namespace {

constexpr std::size_t kFirstBuckets = 64;

}  // namespace

void RecycledTable::put(std::uint64_t hash, const TopTokens& top) {
  if (buckets_.empty() && !grow()) return;
  while (!try_put(hash, top)) {
    if (grow()) continue;
    Bucket& bucket = const_cast<Bucket&>(bucket_of(hash));
    const std::size_t victim = hash >> 62;
    bucket.hashes[victim] = hash;
    bucket.entries[victim] = top;
    return;
  }
}

// False if the context's bucket is full.
bool RecycledTable::try_put(std::uint64_t hash, const TopTokens& top) {
  Bucket& bucket = const_cast<Bucket&>(bucket_of(hash));
  std::size_t at = kBucketSize;
  for (std::size_t i = kBucketSize; i-- > 0;) {
    if (bucket.hashes[i] == hash) {
      at = i;
      break;
    }
    if (bucket.hashes[i] == kNone) at = i;
  }
  if (at == kBucketSize) return false;
  bucket.hashes[at] = hash;
  bucket.entries[at] = top;
  return true;
}

// Doubles the table; false, and nothing changed, if it may not. What finds its new bucket full is dropped: contexts whose
// hashes agree in so many bits are rare.
bool RecycledTable::grow() {
  const std::size_t count = buckets_.empty() ? kFirstBuckets : 2 * buckets_.size();
  const std::size_t bytes = (count - buckets_.size()) * sizeof(Bucket);
  if (count * sizeof(Bucket) > max_bytes_ || !meter_.try_charge(bytes)) return false;
  std::vector<Bucket> old;
  try {
    old = std::exchange(buckets_, std::vector<Bucket>(count));
  } catch (const std::bad_alloc&) {
    meter_.release(bytes);
    return false;
  }
  for (const Bucket& bucket : old) {
    for (std::size_t i = 0; i < kBucketSize; ++i) {
      if (bucket.hashes[i] != kNone) try_put(bucket.hashes[i], bucket.entries[i]);
    }
  }
  return true;
}

void RecycledTable::merge(const RecycledTable& other) {
  other.for_each([this](std::uint64_t hash, const TopTokens& top) { put(hash, top); });
}

void RecycledTable::clear() {
  meter_.release(num_bytes());
  buckets_ = {};
}

void RecycledTable::wipe() {
  for (Bucket& bucket : buckets_) bucket.hashes.fill(kNone);
}

bool RecycledTable::is_sound() const {
  for (const Bucket& bucket : buckets_) {
    for (std::size_t i = 0; i < kBucketSize; ++i) {
      const std::uint64_t hash = bucket.hashes[i];
      if (hash != kNone && (&bucket_of(hash) != &bucket || find(hash) != &bucket.entries[i])) return false;
    }
  }
  return true;
}

bool SharedRecycledTable::is_sound() const {
  const SharedGuard guard(&lock_);
  return table_.is_sound();
}

bool SharedRecycledTable::find(std::uint64_t hash, TopTokens& top) const {
  const SharedGuard guard(&lock_);
  const TopTokens* found = table_.find(hash);
  if (found) top = *found;
  return found != nullptr;
}

// Entry by entry, so that readers wait for none but a growth.
void SharedRecycledTable::merge(const RecycledTable& other) {
  other.for_each([this](std::uint64_t hash, const TopTokens& top) {
    const UniqueGuard guard(&lock_);
    table_.put(hash, top);
  });
}

void SharedRecycledTable::clear() {
  const UniqueGuard guard(&lock_);
  table_.clear();
}

}  // namespace pia
