// What the model itself found likely where it stood before: for the last one, two and four tokens, the likeliest next
// tokens of the latest forward over them, whether it was text or a draft that came to nothing.
//
// Every forward yields these for each token it is fed, for free; so drafts can go on where nothing was ever written
// (Token Recycling, Luo et al. 2024, arXiv 2408.08696, which keeps them by the last token).
//
// Buckets of a few entries, two for each context to choose from, so that nine in ten places can be filled, and a table
// that may not grow forgets what lies in a new entry's way and nothing else. For one thread at a time, or behind
// `SharedRecycledTable`'s locks.
#pragma once

#include <algorithm>
#include <atomic>
#include <mutex>
#include <vector>

#include "context_hash.h"
#include "memory_meter.h"
#include "rw_spin_lock.h"

namespace pia {

inline constexpr std::size_t kNumTop = 8;  // next tokens kept of a forward

// By which contexts they are kept: the first so many shapes of kShapes.
inline constexpr std::size_t kNumRecycledShapes = 3;

// Probabilities in steps that are finer where drafts are likely; 0 stands for a token that is not among the likeliest.
using Likelihood = std::uint8_t;
inline constexpr std::array<float, 15> kLikelihoodEdges = {0.003f, 0.01f, 0.02f, 0.04f, 0.07f, 0.11f, 0.17f, 0.25f,
                                                           0.35f,  0.5f,  0.65f, 0.8f,  0.9f,  0.96f, 0.99f};
inline constexpr std::size_t kNumLikelihoods = kLikelihoodEdges.size() + 2;

inline Likelihood likelihood_of(float prob) {
  const auto at = std::upper_bound(kLikelihoodEdges.begin(), kLikelihoodEdges.end(), prob);
  return static_cast<Likelihood>(1 + (at - kLikelihoodEdges.begin()));
}

// A probability that a step stands for.
constexpr float prob_of(Likelihood step) {
  if (step == 0) return 0.0f;
  const float low = step == 1 ? 0.0f : kLikelihoodEdges[step - 2u];
  const float high = step == kNumLikelihoods - 1 ? 1.0f : kLikelihoodEdges[step - 1u];
  return 0.5f * (low + high);
}

// The likeliest next tokens, likeliest first; those behind a likelihood of 0 are none.
struct TopTokens {
  std::array<TokenId, kNumTop> tokens;
  std::array<Likelihood, kNumTop> likelihoods;
};

class RecycledTable {
 public:
  // `max_bytes`: the table grows up to that; `meter` may refuse before.
  explicit RecycledTable(MemoryMeter& meter, std::size_t max_bytes = MemoryMeter::kUnlimited)
      : meter_(meter), max_bytes_(max_bytes) {}
  ~RecycledTable() { clear(); }
  RecycledTable(const RecycledTable&) = delete;
  RecycledTable& operator=(const RecycledTable&) = delete;

  // Null if nothing is known of the context. Valid until the next change.
  const TopTokens* find(std::uint64_t hash) const;
  // Forgets what was known of the context before. In a table that may not grow, what lies in its way as well.
  void put(std::uint64_t hash, const TopTokens& top);
  // Takes over all that `other` knows.
  void merge(const RecycledTable& other);
  void clear();
  // Forgets everything, and keeps the room for as much again.
  void wipe();

  std::size_t num_bytes() const { return buckets_.size() * sizeof(Bucket); }
  // What a table of so many bytes will take when it grows.
  static std::size_t next_bytes(std::size_t num_bytes) { return std::max(kFirstBuckets * sizeof(Bucket), 2 * num_bytes); }
  // Whether every context lies where it is looked for, once.
  bool is_sound() const;

 private:
  friend class SharedRecycledTable;

  static constexpr std::size_t kBucketSize = 4;
  static constexpr std::size_t kFirstBuckets = 16;
  static constexpr std::uint64_t kNone = 0;  // no context hashes to that, or hardly
  struct Bucket {
    std::array<std::uint64_t, kBucketSize> hashes{};
    std::array<TopTokens, kBucketSize> entries;
  };
  using Buckets = std::vector<Bucket>;  // a power of two of them, or none

  // The two buckets in which a context may lie.
  static std::array<std::size_t, 2> places(std::uint64_t hash, std::size_t count) {
    return {hash & (count - 1), (hash >> 32) & (count - 1)};
  }
  static bool place(Buckets& buckets, std::uint64_t hash, const TopTokens& top, std::size_t& num_entries);

  // Growing in two parts, of which the first changes nothing that readers see.
  struct Grown {
    Buckets buckets;
    std::size_t num_entries = 0;
  };
  bool is_due() const { return 4 * num_entries_ >= 3 * kBucketSize * buckets_.size(); }
  Grown grown() const;
  void adopt(Grown&& bigger);
  void put_without_growing(std::uint64_t hash, const TopTokens& top);

  MemoryMeter& meter_;
  const std::size_t max_bytes_;
  Buckets buckets_;
  std::size_t num_entries_ = 0;
};

// One that many threads read while others take turns to write.
class SharedRecycledTable {
 public:
  explicit SharedRecycledTable(MemoryMeter& meter) : table_(meter) {}

  bool find(std::uint64_t hash, TopTokens& top) const;
  // Takes what was found likely in an output, unless something was forgotten since `generation`: who drafted from what is
  // forgotten might bring it back.
  template <class Each>
  void take(std::uint32_t generation, Each&& for_each) {
    const std::lock_guard writing(writer_);
    if (generation != this->generation()) return;
    for_each([this](std::uint64_t hash, const TopTokens& top) { put(hash, top); });
  }
  void clear();

  // Becomes another one with each `clear`.
  std::uint32_t generation() const { return generation_.load(std::memory_order_acquire); }
  std::size_t num_bytes() const { return num_bytes_.load(std::memory_order_relaxed); }
  std::size_t next_bytes() const { return RecycledTable::next_bytes(num_bytes()); }
  bool is_sound() const;

 private:
  void put(std::uint64_t hash, const TopTokens& top);

  std::mutex writer_;
  mutable RwSpinLock lock_;
  RecycledTable table_;
  std::atomic<std::uint32_t> generation_{0};
  std::atomic<std::size_t> num_bytes_{0};
};

}  // namespace pia
