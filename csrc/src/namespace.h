// What one tenant or task has taught the cache: its log and the table made from it. Nothing is shared between two.
//
// Everything in the table is owed to a sequence in the log: they are learned and forgotten together. As long as no
// context had to be evicted, the table holds exactly the counts of the log's sequences. After evictions it may hold less
// of them, never more: what is taken back stops at zero.
#pragma once

#include <mutex>
#include <string>

#include "context_table.h"
#include "recycled_table.h"
#include "token_log.h"

namespace pia {

struct LearnedSequence {
  Tokens tokens;
  std::string request;  // empty: of none in particular
};

struct Namespace {
  Namespace(MemoryMeter& table_meter, MemoryMeter& log_meter, MemoryMeter& recycled_meter)
      : table(table_meter, true), log(log_meter), recycled(recycled_meter) {}

  // Hold `writer` for all of these.
  // Learns one sequence; the log's oldest ones make room. False, and nothing learned, if that was not enough.
  bool learn(Tokens sequence, const std::string& request);
  // The same for many, whose text goes into the table all at once.
  void learn_many(std::span<const LearnedSequence> sequences);
  // These return the number of tokens forgotten.
  std::size_t forget_oldest();
  std::size_t forget_request(const std::string& request);
  std::size_t forget_sequence(Tokens sequence);
  void clear();

  std::mutex writer;  // held by whoever changes the table or the log, or reads the log
  ContextTable table;
  TokenLog log;
  SharedRecycledTable recycled;  // has locks of its own; not owed to the log, and forgotten whole

  // The name's own cost, charged with the tables: this, its place in the map, and the string.
  static std::size_t cost(const std::string& name) { return sizeof(Namespace) + name.size() + 96; }

 private:
  std::size_t forget(TokenLog::Age age);
};

}  // namespace pia
