// A byte budget that several tables share. Charges are made before memory is taken, so `used` never exceeds `limit`.
#pragma once

#include <atomic>
#include <cstddef>
#include <limits>

namespace pia {

class MemoryMeter {
 public:
  static constexpr std::size_t kUnlimited = std::numeric_limits<std::size_t>::max();

  explicit MemoryMeter(std::size_t limit = kUnlimited) : limit_(limit) {}

  // Takes `bytes` from the budget; false (and nothing taken) if they are not there.
  bool try_charge(std::size_t bytes) {
    std::size_t used = used_.load(std::memory_order_relaxed);
    do {
      if (bytes > limit_ - used) return false;
    } while (!used_.compare_exchange_weak(used, used + bytes, std::memory_order_relaxed));
    return true;
  }

  void release(std::size_t bytes) { used_.fetch_sub(bytes, std::memory_order_relaxed); }

  std::size_t used() const { return used_.load(std::memory_order_relaxed); }
  std::size_t limit() const { return limit_; }

 private:
  std::atomic<std::size_t> used_{0};
  const std::size_t limit_;
};

}  // namespace pia
