#include "token_log.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace pia {

std::size_t PackedTokens::width_of(Tokens tokens) {
  TokenId bits = 0;
  for (const TokenId token : tokens) bits |= token;
  return std::max<std::size_t>(2, (static_cast<std::size_t>(std::bit_width(bits)) + 7) / 8);
}

PackedTokens::PackedTokens(Tokens tokens)
    : size_(tokens.size()), width_(width_of(tokens)), bytes_(std::make_unique<std::uint8_t[]>(size_ * width_)) {
  std::uint8_t* to = bytes_.get();
  for (const TokenId token : tokens) {
    for (std::size_t i = 0; i < width_; ++i) *to++ = static_cast<std::uint8_t>(token >> (8 * i));
  }
}

TokenId PackedTokens::at(std::size_t index) const {
  TokenId token = 0;
  for (std::size_t i = 0; i < width_; ++i) token |= TokenId{bytes_[index * width_ + i]} << (8 * i);
  return token;
}

std::vector<TokenId> PackedTokens::unpack() const {
  std::vector<TokenId> tokens(size_);
  for (std::size_t i = 0; i < size_; ++i) tokens[i] = at(i);
  return tokens;
}

bool PackedTokens::equals(Tokens tokens) const {
  if (tokens.size() != size_) return false;
  for (std::size_t i = 0; i < size_; ++i) {
    if (at(i) != tokens[i]) return false;
  }
  return true;
}

Tokens TokenLog::part_that_fits(Tokens tokens, const std::string& request, std::size_t num_bytes) {
  const std::size_t overhead = cost(0, request.size());
  const std::size_t room = num_bytes > overhead ? (num_bytes - overhead) / PackedTokens::width_of(tokens) : 0;
  return tokens.last(std::min(tokens.size(), room));
}

bool TokenLog::try_append(Tokens tokens, const std::string& request) {
  const std::size_t num_bytes = cost(tokens, request);
  if (!meter_.try_charge(num_bytes)) return false;
  try {
    const auto at = sequences_.emplace_hint(sequences_.end(), next_age_, Sequence{PackedTokens(tokens), nullptr});
    if (!request.empty()) {
      try {
        auto [owner, is_new] = requests_.try_emplace(request);
        owner->second.insert(owner->second.end(), next_age_);
        at->second.request = &owner->first;
      } catch (...) {
        sequences_.erase(at);
        throw;
      }
    }
  } catch (...) {
    meter_.release(num_bytes);
    throw;
  }
  ++next_age_;
  num_tokens_.store(num_tokens() + tokens.size(), std::memory_order_relaxed);
  return true;
}

std::optional<TokenLog::Age> TokenLog::oldest() const {
  return sequences_.empty() ? std::nullopt : std::optional(sequences_.begin()->first);
}

std::vector<TokenLog::Age> TokenLog::sequences_of(const std::string& request) const {
  const auto owner = requests_.find(request);
  if (owner == requests_.end()) return {};
  return {owner->second.begin(), owner->second.end()};
}

std::optional<TokenLog::Age> TokenLog::find(Tokens tokens) const {
  for (auto at = sequences_.rbegin(); at != sequences_.rend(); ++at) {
    if (at->second.tokens.equals(tokens)) return at->first;
  }
  return std::nullopt;
}

std::vector<TokenId> TokenLog::take(Age age) {
  const auto at = sequences_.find(age);
  const Sequence& sequence = at->second;
  std::vector<TokenId> tokens = sequence.tokens.unpack();
  meter_.release(cost(sequence));
  if (sequence.request) {
    const auto owner = requests_.find(*sequence.request);
    owner->second.erase(age);
    if (owner->second.empty()) requests_.erase(owner);
  }
  sequences_.erase(at);
  num_tokens_.store(num_tokens() - tokens.size(), std::memory_order_relaxed);
  return tokens;
}

void TokenLog::clear() {
  for (const auto& [age, sequence] : sequences_) meter_.release(cost(sequence));
  sequences_.clear();
  requests_.clear();
  num_tokens_.store(0, std::memory_order_relaxed);
}

}  // namespace pia
