// Learns a long prompt in a thread of its own, newest part first.
//
// The request's thread goes on meanwhile. Whatever it adds to the table itself takes turns with this, a few dozen
// microseconds each: it announces itself first, since the reader would otherwise take the lock again before it wakes.
#pragma once

#include <atomic>
#include <mutex>
#include <thread>

#include "context_table.h"

namespace pia {

class PromptReader {
 public:
  // Learns text[i] for 1 <= i < num_tokens. `text` and `table` must outlive this; the vector may grow under `Turn`s.
  PromptReader(const std::vector<TokenId>& text, std::size_t num_tokens, ContextTable& table);
  ~PromptReader() { stop(); }
  PromptReader(const PromptReader&) = delete;
  PromptReader& operator=(const PromptReader&) = delete;

  // Held by the request's thread while it changes the text or the table.
  class Turn {
   public:
    explicit Turn(PromptReader& reader) : reader_(reader) {
      reader_.is_wanted_.store(true, std::memory_order_relaxed);
      reader_.lock_.lock();
    }
    ~Turn() {
      reader_.is_wanted_.store(false, std::memory_order_relaxed);
      reader_.lock_.unlock();
    }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    PromptReader& reader_;
  };

  bool is_done() const { return is_done_.load(std::memory_order_acquire); }
  void wait();
  // Leaves the rest of the prompt unread.
  void stop();

 private:
  static constexpr std::size_t kChunk = 256;

  void read_all() noexcept;
  bool read_chunk();

  const std::vector<TokenId>& text_;
  ContextTable& table_;
  std::size_t num_left_;
  std::mutex lock_;
  std::atomic<bool> is_wanted_{false};
  std::atomic<bool> is_stopped_{false};
  std::atomic<bool> is_done_{false};
  std::thread thread_;
};

}  // namespace pia
