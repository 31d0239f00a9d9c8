// The learned sequences themselves, oldest first: what a saved cache consists of.
//
// Contexts can be rebuilt from text but not text from contexts, and text is some thirty times smaller; so a cache file
// holds this log and loading learns it again. Its memory is bounded; the oldest sequences go first.
#pragma once

#include <atomic>
#include <deque>
#include <vector>

#include "memory_meter.h"
#include "types.h"

namespace pia {

class TokenLog {
 public:
  explicit TokenLog(MemoryMeter& meter) : meter_(meter) {}
  ~TokenLog() { clear(); }
  TokenLog(const TokenLog&) = delete;
  TokenLog& operator=(const TokenLog&) = delete;

  // Memory that a sequence of this length takes.
  static std::size_t cost(std::size_t num_tokens) {
    return num_tokens * sizeof(TokenId) + sizeof(std::vector<TokenId>) + kMallocHeader;
  }

  // The longest sequence that so much memory can hold.
  static std::size_t capacity(std::size_t num_bytes) { return (num_bytes - cost(0)) / sizeof(TokenId); }

  bool try_append(Tokens tokens) {
    if (!meter_.try_charge(cost(tokens.size()))) return false;
    sequences_.emplace_back(tokens.begin(), tokens.end());
    num_tokens_.store(num_tokens() + tokens.size(), std::memory_order_relaxed);
    return true;
  }

  bool drop_oldest() {
    if (sequences_.empty()) return false;
    const std::size_t size = sequences_.front().size();
    sequences_.pop_front();
    meter_.release(cost(size));
    num_tokens_.store(num_tokens() - size, std::memory_order_relaxed);
    return true;
  }

  void clear() {
    while (drop_oldest()) {
    }
  }

  const std::deque<std::vector<TokenId>>& sequences() const { return sequences_; }
  std::size_t num_tokens() const { return num_tokens_.load(std::memory_order_relaxed); }

 private:
  static constexpr std::size_t kMallocHeader = 16;

  MemoryMeter& meter_;
  std::deque<std::vector<TokenId>> sequences_;
  std::atomic<std::size_t> num_tokens_{0};
};

}  // namespace pia
