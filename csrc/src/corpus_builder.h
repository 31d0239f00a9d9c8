// Builds a corpus file from sequences of tokens, in memory of a given size whatever there is to read.
#pragma once

#include <functional>

#include "context_hash.h"
#include "corpus_format.h"
#include "record_runs.h"

namespace pia {

class CorpusBuilder {
 public:
  // What the header needs to know of a finished file.
  struct Figures {
    std::uint64_t num_tokens;
    std::uint64_t num_sequences;
    std::uint64_t num_contexts;
    std::uint64_t num_buckets;
    std::uint64_t num_words;
    std::uint64_t directory_checksum;
    std::uint64_t data_checksum;
  };

  // Told how many of how many records are done, every million or so.
  using Progress = std::function<void(std::uint64_t, std::uint64_t)>;

  // Makes the file at `path`, which must not exist, and a nameless one beside it if memory does not suffice.
  CorpusBuilder(const std::string& path, std::int64_t vocab_size, std::size_t max_bytes);

  // Counts more of the sequence at hand. Tokens must lie in the vocabulary.
  void extend(Tokens tokens);
  // What follows is another sequence; no context reaches across.
  void end_sequence();
  // Writes all but the header, for which it leaves a page. Nothing can be added then.
  Figures finish(const Progress& progress);

  std::int64_t vocab_size() const { return vocab_size_; }
  std::uint64_t num_tokens() const { return figures_.num_tokens; }
  std::uint64_t num_sequences() const { return figures_.num_sequences + !tail_.empty(); }
  std::size_t num_runs() const { return runs_.num_runs(); }

 private:
  class Writer;

  const std::int64_t vocab_size_;
  File file_;
  RecordRuns runs_;
  std::vector<TokenId> tail_;  // the last tokens of the sequence at hand, then the ones being added
  Figures figures_{};
};

}  // namespace pia
