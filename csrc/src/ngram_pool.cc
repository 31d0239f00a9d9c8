#include "ngram_pool.h"

#include <bit>

#include "context_hash.h"

namespace pia {

namespace {

constexpr std::size_t kLeastKeys = 64;

}  // namespace

NgramPool::NgramPool(std::size_t ngram_size, std::size_t max_per_first, std::size_t capacity)
    : num_rest_(ngram_size - 1), max_per_first_(max_per_first), capacity_(capacity), keys_(kLeastKeys) {}

std::size_t NgramPool::num_bytes() const {
  return sizeof(*this) + rests_.capacity() * sizeof(TokenId) + slots_.capacity() * sizeof(Slot) +
         keys_.capacity() * sizeof(Key);
}

void NgramPool::add(Tokens ngram) {
  Key& key = find_or_insert(ngram[0]);
  const Tokens rest = ngram.subspan(1);
  const std::uint32_t slot = slot_for(key, rest);
  slots_[slot].first = ngram[0];
  std::copy(rest.begin(), rest.end(), rests_.begin() + static_cast<std::ptrdiff_t>(slot * num_rest_));
  link(slot, key);
}

void NgramPool::add_text(Tokens text) {
  for (std::size_t at = 0; at + num_rest_ < text.size(); ++at) add(text.subspan(at, num_rest_ + 1));
}

NgramPool::NextTokens NgramPool::next_tokens(Tokens recent, std::size_t match_length) const {
  NextTokens next;
  if (match_length == 0 || match_length > num_rest_ || match_length > recent.size()) return next;
  const Tokens context = recent.last(match_length);
  for_each(context[0], [&](Tokens rest) {
    if (next.num == kMaxNext || !std::equal(context.begin() + 1, context.end(), rest.begin())) return;
    const TokenId token = rest[match_length - 1];
    const auto end = next.tokens.begin() + next.num;
    if (std::find(next.tokens.begin(), end, token) == end) next.tokens[next.num++] = token;
  });
  if (next.num > 0) next.match_length = static_cast<std::uint32_t>(match_length);
  return next;
}

NgramPool::NextTokens NgramPool::next_tokens(Tokens recent) const {
  NextTokens next;
  for (std::size_t length = std::min(num_rest_, recent.size()); length > 0 && next.num == 0; --length) {
    next = next_tokens(recent, length);
  }
  return next;
}

// Where a first token's key is, or where it would be put.
std::size_t NgramPool::place_of(TokenId first) const {
  const std::size_t mask = keys_.size() - 1;
  std::size_t place = mix64(first) & mask;
  while (keys_[place].first != first && keys_[place].first != kNone) place = (place + 1) & mask;
  return place;
}

const NgramPool::Key* NgramPool::find(TokenId first) const {
  const Key& key = keys_[place_of(first)];
  return key.first == first ? &key : nullptr;
}

NgramPool::Key& NgramPool::find_or_insert(TokenId first) {
  std::size_t place = place_of(first);
  if (keys_[place].first == first) return keys_[place];
  if (2 * (num_keys_ + 1) > keys_.size()) {
    rebuild_keys();
    place = place_of(first);
  }
  ++num_keys_;
  keys_[place].first = first;
  return keys_[place];
}

// Drops keys without n-grams, and makes room.
void NgramPool::rebuild_keys() {
  std::vector<Key> old;
  old.swap(keys_);
  num_keys_ = 0;
  for (const Key& key : old) num_keys_ += key.count > 0;
  keys_.resize(std::max(kLeastKeys, std::bit_ceil(4 * num_keys_)));
  for (const Key& key : old) {
    if (key.count > 0) keys_[place_of(key.first)] = key;
  }
}

// An unlinked slot for an n-gram: the one it has, the one that has to go, or a new one.
std::uint32_t NgramPool::slot_for(const Key& key, Tokens rest) {
  std::uint32_t slot = key.newest;
  while (slot != kNone && !std::equal(rest.begin(), rest.end(), this->rest(slot).begin())) slot = slots_[slot].older;
  if (slot == kNone && key.count >= max_per_first_) slot = key.oldest;
  if (slot == kNone && num_ngrams_ >= capacity_) slot = oldest_;
  if (slot != kNone) {
    unlink(slot);
    return slot;
  }
  slots_.emplace_back();
  rests_.resize(slots_.size() * num_rest_);
  return static_cast<std::uint32_t>(slots_.size() - 1);
}

void NgramPool::link(std::uint32_t at, Key& key) {
  Slot& slot = slots_[at];
  slot.newer = slot.after = kNone;
  slot.older = key.newest;
  slot.before = newest_;
  (key.newest != kNone ? slots_[key.newest].newer : key.oldest) = at;
  (newest_ != kNone ? slots_[newest_].after : oldest_) = at;
  key.newest = newest_ = at;
  ++key.count;
  ++num_ngrams_;
}

void NgramPool::unlink(std::uint32_t at) {
  const Slot& slot = slots_[at];
  Key& key = keys_[place_of(slot.first)];
  (slot.newer != kNone ? slots_[slot.newer].older : key.newest) = slot.older;
  (slot.older != kNone ? slots_[slot.older].newer : key.oldest) = slot.newer;
  (slot.after != kNone ? slots_[slot.after].before : newest_) = slot.before;
  (slot.before != kNone ? slots_[slot.before].after : oldest_) = slot.after;
  --key.count;
  --num_ngrams_;
}

}  // namespace pia
