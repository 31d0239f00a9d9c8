// A four-byte lock for many readers and one writer at a time.
//
// Critical sections here are a few dozen nanoseconds and there is a lock per segment, tens of thousands of them, so
// std::shared_mutex (56 bytes, two library calls) would cost more than what it guards. Writers are already serialised
// by their table, and they go first: a waiting writer keeps new readers out.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

namespace pia {

class RwSpinLock {
 public:
  void lock_shared() {
    for (;;) {
      if (!(state_.fetch_add(1, std::memory_order_acquire) & kWriter)) return;
      state_.fetch_sub(1, std::memory_order_relaxed);
      wait([this] { return !(state_.load(std::memory_order_relaxed) & kWriter); });
    }
  }

  void unlock_shared() { state_.fetch_sub(1, std::memory_order_release); }

  void lock() {
    while (state_.fetch_or(kWriter, std::memory_order_acquire) & kWriter) {
      wait([this] { return !(state_.load(std::memory_order_relaxed) & kWriter); });
    }
    wait([this] { return state_.load(std::memory_order_acquire) == kWriter; });
  }

  void unlock() { state_.fetch_and(~kWriter, std::memory_order_release); }

 private:
  static constexpr std::uint32_t kWriter = 0x80000000u;

  template <class Condition>
  static void wait(Condition&& is_met) {
    for (int spins = 0; !is_met(); ++spins) {
      if (spins > 100) std::this_thread::yield();  // the holder may have been descheduled
    }
  }

  std::atomic<std::uint32_t> state_{0};
};

// Scoped forms that can be switched off, for tables that only one thread uses.
class SharedGuard {
 public:
  explicit SharedGuard(RwSpinLock* lock) : lock_(lock) {
    if (lock_) lock_->lock_shared();
  }
  ~SharedGuard() {
    if (lock_) lock_->unlock_shared();
  }
  SharedGuard(const SharedGuard&) = delete;
  SharedGuard& operator=(const SharedGuard&) = delete;

 private:
  RwSpinLock* lock_;
};

class UniqueGuard {
 public:
  explicit UniqueGuard(RwSpinLock* lock) : lock_(lock) {
    if (lock_) lock_->lock();
  }
  ~UniqueGuard() {
    if (lock_) lock_->unlock();
  }
  UniqueGuard(const UniqueGuard&) = delete;
  UniqueGuard& operator=(const UniqueGuard&) = delete;

 private:
  RwSpinLock* lock_;
};

}  // namespace pia
