// The learned sequences themselves, oldest first: what a saved cache consists of, and what the tables can be told to
// forget.
//
// Contexts can be rebuilt from text but not text from contexts, and text is some thirty times smaller; so a cache file
// holds this log and loading learns it again. Its memory is bounded; the oldest sequences go first. Sequences may carry
// the id of the request that they came from.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "memory_meter.h"
#include "types.h"

namespace pia {

// Token ids in as few whole bytes each as their largest needs.
class PackedTokens {
 public:
  explicit PackedTokens(Tokens tokens);
  std::vector<TokenId> unpack() const;
  bool equals(Tokens tokens) const;
  std::size_t size() const { return size_; }
  std::size_t num_bytes() const { return size_ * width_; }

  static std::size_t width_of(Tokens tokens);

 private:
  TokenId at(std::size_t index) const;

  std::size_t size_;
  std::size_t width_;
  std::unique_ptr<std::uint8_t[]> bytes_;
};

class TokenLog {
 public:
  struct Sequence {
    PackedTokens tokens;
    const std::string* request;  // nullptr: of no request in particular
  };
  using Age = std::uint64_t;  // larger = younger

  explicit TokenLog(MemoryMeter& meter) : meter_(meter) {}
  ~TokenLog() { clear(); }
  TokenLog(const TokenLog&) = delete;
  TokenLog& operator=(const TokenLog&) = delete;

  // Memory that a sequence takes, with all that is kept to find it again.
  static std::size_t cost(Tokens tokens, const std::string& request) {
    return cost(tokens.size() * PackedTokens::width_of(tokens), request.size());
  }
  // The end of a sequence, as much of it as so much memory can hold.
  static Tokens part_that_fits(Tokens tokens, const std::string& request, std::size_t num_bytes);

  // An empty `request` stands for none. False, and nothing changed, without memory.
  bool try_append(Tokens tokens, const std::string& request);

  std::optional<Age> oldest() const;
  // All sequences of a request, oldest first.
  std::vector<Age> sequences_of(const std::string& request) const;
  // The youngest sequence of just these tokens.
  std::optional<Age> find(Tokens tokens) const;
  // Takes a sequence out of the log.
  std::vector<TokenId> take(Age age);
  void clear();

  const std::map<Age, Sequence>& sequences() const { return sequences_; }
  std::size_t num_tokens() const { return num_tokens_.load(std::memory_order_relaxed); }

 private:
  static constexpr std::size_t kSequenceCost = 160;  // nodes of map and set, heap headers
  static constexpr std::size_t kRequestCost = 160;   // for a request's first sequence; charged for each

  static std::size_t cost(std::size_t num_bytes, std::size_t request_size) {
    return num_bytes + kSequenceCost + (request_size ? kRequestCost + request_size : 0);
  }
  static std::size_t cost(const Sequence& sequence) {
    return cost(sequence.tokens.num_bytes(), sequence.request ? sequence.request->size() : 0);
  }

  MemoryMeter& meter_;
  std::map<Age, Sequence> sequences_;
  std::unordered_map<std::string, std::set<Age>> requests_;
  Age next_age_ = 0;
  std::atomic<std::size_t> num_tokens_{0};
};

}  // namespace pia
