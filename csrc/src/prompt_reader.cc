#include "prompt_reader.h"

#include <algorithm>
#include <system_error>

namespace pia {

PromptReader::PromptReader(const std::vector<TokenId>& text, std::size_t num_tokens, ContextTable& table)
    : text_(text), table_(table), num_left_(num_tokens) {
  read_chunk();  // the end of the prompt, for the first draft
  try {
    thread_ = std::thread([this] { read_all(); });
  } catch (const std::system_error&) {  // no more threads: slower, but the same
    read_all();
  }
}

void PromptReader::wait() {
  if (thread_.joinable()) thread_.join();
}

void PromptReader::stop() {
  is_stopped_.store(true, std::memory_order_relaxed);
  wait();
}

void PromptReader::read_all() noexcept {
  try {
    while (!is_stopped_.load(std::memory_order_relaxed) && read_chunk()) {
      while (is_wanted_.load(std::memory_order_relaxed)) std::this_thread::yield();
    }
  } catch (...) {  // out of memory: drafts do without the rest
  }
  is_done_.store(true, std::memory_order_release);
}

// Learns the last few tokens not learned yet; false if none are left.
bool PromptReader::read_chunk() {
  const std::lock_guard turn(lock_);
  const std::size_t begin = num_left_ - std::min(num_left_, kChunk);
  table_.insert(Tokens(text_).first(num_left_), begin);
  num_left_ = begin;
  return num_left_ > 0;
}

}  // namespace pia
