// The draft cache: shared tables, one per namespace, and the sessions that draft from them.
//
// Threads: every method of DraftCache may be called by any thread at any time. A DraftSession belongs to one thread at
// a time. Within a namespace writers take turns, sequence by sequence; readers are held up only while a segment of a
// few thousand contexts is being changed.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <vector>

#include "corpus.h"
#include "draft_builder.h"
#include "token_log.h"

namespace pia {

// What one tenant or task has taught the cache. Nothing is shared between two of them.
struct Namespace {
  Namespace(MemoryMeter& table_meter, MemoryMeter& log_meter) : table(table_meter, true), log(log_meter) {}

  std::mutex writer;  // held by whoever changes the table or the log, or reads the log
  ContextTable table;
  TokenLog log;

  // The name's own cost, charged with the tables: this, its place in the map, and the string.
  static std::size_t cost(const std::string& name);
};

class DraftSession;

// The corpora that a request reads; they live as long as anybody uses them.
using Corpora = std::vector<std::shared_ptr<Corpus>>;

class DraftCache : public std::enable_shared_from_this<DraftCache> {
 public:
  static constexpr std::size_t kMinBytes = std::size_t{64} << 10;

  explicit DraftCache(std::size_t max_bytes);

  // Starts a request. Its prompt is learned by the request's own table alone.
  std::unique_ptr<DraftSession> begin(Tokens prompt, std::vector<TokenId> stop_ids, std::string space,
                                      Corpora corpora = {});

  // Learns one finished sequence. It is cut behind each stop id, and no context reaches across a cut.
  void learn(Tokens text, const std::vector<TokenId>& stop_ids, const std::string& space);

  void clear(const std::string& space);
  void clear();

  // Copies of the learned sequences, oldest first.
  std::vector<std::vector<TokenId>> sequences(const std::string& space) const;
  // Names with something learned, sorted.
  std::vector<std::string> namespaces() const;

  std::size_t max_bytes() const { return max_bytes_; }
  std::size_t num_bytes() const { return table_meter_.used() + log_meter_.used(); }
  std::size_t num_request_bytes() const { return request_meter_.used(); }
  std::size_t num_tokens() const;
  std::size_t num_contexts() const;
  std::optional<std::string> find_fault() const;

  // Ids must lie in [0, vocab_size); 0 stands for not known yet.
  std::int64_t vocab_size() const { return vocab_size_.load(std::memory_order_relaxed); }
  void set_vocab_size(std::int64_t size) { vocab_size_.store(size, std::memory_order_relaxed); }

 private:
  friend class DraftSession;

  std::shared_ptr<Namespace> find(const std::string& space) const;
  std::shared_ptr<Namespace> find_or_add(const std::string& space);
  std::vector<std::shared_ptr<Namespace>> all() const;
  std::shared_ptr<Namespace> make_namespace(const std::string& space);
  void forget_if_empty(const std::string& space);
  void shrink_largest(const Namespace* except, std::size_t num_bytes);
  void make_way_in_tables(Namespace& target, std::size_t num_tokens);
  void make_way_in_log(std::size_t num_tokens);

  const std::size_t max_bytes_;
  MemoryMeter log_meter_;
  MemoryMeter table_meter_;
  MemoryMeter request_meter_;
  std::atomic<std::int64_t> vocab_size_{0};
  mutable std::shared_mutex spaces_lock_;
  std::map<std::string, std::shared_ptr<Namespace>> spaces_;
};

// One request: drafts from its own text and from the namespace's table, and teaches the latter when it ends well.
class DraftSession {
 public:
  DraftSession(std::shared_ptr<DraftCache> cache, std::shared_ptr<Namespace> shared, std::string space, Tokens prompt,
               std::vector<TokenId> stop_ids, Corpora corpora);
  ~DraftSession();

  // The best tree of `budget` nodes that may continue the text so far; valid until the next call.
  std::span<const DraftNode> propose(std::size_t budget, std::uint32_t max_depth);
  void observe(Tokens tokens);
  // Frees the request's memory; with `commit` its output is learned by the cache first. Further calls do nothing.
  void end(bool commit);

  // For callers who can't promise that one thread uses the session at a time: false if it is in use.
  bool try_enter() { return !is_in_use_.test_and_set(std::memory_order_acquire); }
  void leave() { is_in_use_.clear(std::memory_order_release); }

  bool has_ended() const { return !own_; }
  std::size_t num_bytes() const;
  const DraftCache& cache() const { return *cache_; }
  // What the draft model may read besides the tables: each of these by Corpus::visit, as Source::kCorpus.
  const Corpora& corpora() const { return corpora_; }

 private:
  struct Own;  // what the request alone holds

  std::shared_ptr<DraftCache> cache_;
  std::shared_ptr<Namespace> shared_;
  std::string space_;
  std::vector<TokenId> stop_ids_;
  Corpora corpora_;
  std::unique_ptr<Own> own_;
  std::atomic_flag is_in_use_;
};

}  // namespace pia
