// N-grams that a lookahead window has produced, by their first token: a bounded pool, least recently used out.
//
// At most so many n-grams begin with one token (Fu et al., arXiv 2402.02057: the guess set), and at most so many are
// held in all. Both lists are kept in order of use by links between slots, so that adding costs a walk along the n-grams
// of one first token, and asking takes no memory. For one thread at a time.
#pragma once

#include <cstddef>
#include <limits>
#include <vector>

#include "types.h"

namespace pia {

class NgramPool {
 public:
  // No more continuations of a context are given, the most recently used ones.
  static constexpr std::size_t kMaxNext = 32;
  static constexpr std::size_t kUnlimited = std::numeric_limits<std::size_t>::max();

  // What may follow a text, most recently used first, each token once.
  struct NextTokens {
    std::array<TokenId, kMaxNext> tokens;
    std::uint32_t num = 0;
    std::uint32_t match_length = 0;  // so many of the text's last tokens were matched; 0 where nothing is known
  };

  // `ngram_size` counts the first token and is at least 2.
  NgramPool(std::size_t ngram_size, std::size_t max_per_first, std::size_t capacity);

  std::size_t ngram_size() const { return num_rest_ + 1; }
  std::size_t size() const { return num_ngrams_; }
  std::size_t num_bytes() const;

  // Takes an n-gram of `ngram_size` tokens as the most recently used one. One that is known is not held twice.
  void add(Tokens ngram);

  // Takes all n-grams of a text.
  void add_text(Tokens text);

  // Calls `act(rest)` for each n-gram that begins with a token, with what follows it, most recently used first.
  template <class Act>
  void for_each(TokenId first, Act&& act) const {
    const Key* key = find(first);
    for (std::uint32_t at = key ? key->newest : kNone; at != kNone; at = slots_[at].older) act(rest(at));
  }

  // What follows the last `match_length` tokens (1 to `ngram_size` - 1) where n-grams begin with them.
  NextTokens next_tokens(Tokens recent, std::size_t match_length) const;

  // The same for the most tokens that are matched at all.
  NextTokens next_tokens(Tokens recent) const;

 private:
  static constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();

  // One n-gram's links: among those with its first token, and among all.
  struct Slot {
    TokenId first;
    std::uint32_t newer, older;
    std::uint32_t after, before;
  };
  struct Key {
    TokenId first = kNone;  // no token id: ids have 31 bits
    std::uint32_t count = 0;
    std::uint32_t newest = kNone, oldest = kNone;
  };

  Tokens rest(std::uint32_t slot) const { return {rests_.data() + slot * num_rest_, num_rest_}; }
  std::size_t place_of(TokenId first) const;
  const Key* find(TokenId first) const;
  Key& find_or_insert(TokenId first);
  void rebuild_keys();
  std::uint32_t slot_for(const Key& key, Tokens rest);
  void link(std::uint32_t slot, Key& key);
  void unlink(std::uint32_t slot);

  const std::size_t num_rest_, max_per_first_, capacity_;
  std::size_t num_ngrams_ = 0;
  std::vector<TokenId> rests_;  // `num_rest_` tokens a slot
  std::vector<Slot> slots_;
  std::vector<Key> keys_;  // open addressing; a power of two, at most half of it taken
  std::size_t num_keys_ = 0;  // those taken, some perhaps without n-grams
  std::uint32_t newest_ = kNone, oldest_ = kNone;
};

}  // namespace pia
