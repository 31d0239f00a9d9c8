#include "namespace.h"

namespace pia {

bool Namespace::learn(Tokens sequence, const std::string& request) {
  while (!log.try_append(sequence, request)) {
    if (forget_oldest() == 0) return false;
  }
  table.insert(sequence, 0);
  return true;
}

void Namespace::learn_many(std::span<const LearnedSequence> sequences) {
  std::vector<Tokens> pending;  // logged, not in the table yet
  const auto flush = [&] {
    table.insert_many(pending);
    pending.clear();
  };
  for (const auto& [tokens, request] : sequences) {
    if (!log.try_append(tokens, request)) {
      flush();  // what is forgotten for room may be among them
      learn(tokens, request);
    } else {
      pending.push_back(tokens);
    }
  }
  flush();
}

std::size_t Namespace::forget(TokenLog::Age age) {
  const auto tokens = log.take(age);
  table.remove(tokens);
  return tokens.size();
}

std::size_t Namespace::forget_oldest() {
  const auto oldest = log.oldest();
  return oldest ? forget(*oldest) : 0;
}

// What the model found likely is not kept by request, so all of it goes.
std::size_t Namespace::forget_request(const std::string& request) {
  recycled.clear();
  std::size_t num_tokens = 0;
  for (const auto age : log.sequences_of(request)) num_tokens += forget(age);
  return num_tokens;
}

std::size_t Namespace::forget_sequence(Tokens sequence) {
  recycled.clear();
  const auto youngest = log.find(sequence);
  return youngest ? forget(*youngest) : 0;
}

void Namespace::clear() {
  table.clear();
  log.clear();
  recycled.clear();
}

}  // namespace pia
