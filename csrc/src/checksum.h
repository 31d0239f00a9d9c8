// A fast 64-bit checksum that finds damage (it is no defence against forgery).
#pragma once

#include <array>
#include <bit>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "context_hash.h"

namespace pia {

// Four independent chains, so that multiplications overlap. Every step is one-to-one in the word it takes in, so a
// single damaged word is always found, and any other damage all but always.
class Checksum {
 public:
  static constexpr std::size_t kBlockBytes = 32;

  // `num_bytes` must be a multiple of kBlockBytes.
  void update(const void* bytes, std::size_t num_bytes) {
    assert(num_bytes % kBlockBytes == 0);
    const char* at = static_cast<const char*>(bytes);
    for (const char* end = at + num_bytes; at != end; at += kBlockBytes) {
      std::array<std::uint64_t, 4> words;
      std::memcpy(words.data(), at, kBlockBytes);
      for (std::size_t i = 0; i < 4; ++i) chains_[i] = std::rotl((chains_[i] ^ words[i]) * kFactor, 29);
    }
    num_bytes_ += num_bytes;
  }

  std::uint64_t value() const {
    std::uint64_t sum = num_bytes_;
    for (const std::uint64_t chain : chains_) sum = mix64(sum ^ chain) * kFactor;
    return sum;
  }

 private:
  static constexpr std::uint64_t kFactor = 0x9e3779b97f4a7c15ULL;

  std::array<std::uint64_t, 4> chains_{1, 2, 3, 4};
  std::uint64_t num_bytes_ = 0;
};

}  // namespace pia
