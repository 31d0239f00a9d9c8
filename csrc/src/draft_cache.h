// The draft cache: shared tables, one per namespace, and the sessions that draft from them.
//
// Threads: every method of DraftCache may be called by any thread at any time. A DraftSession belongs to one thread at
// a time. Within a namespace writers take turns, sequence by sequence; readers are held up only while a segment of a
// few thousand contexts is being changed.
//
// Memory: tables, logs and what is recycled each have a share of the bound. When the logs are full the oldest sequence of the
// largest one is forgotten; when the tables are, the contexts that matter least are evicted.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <vector>

#include "corpus.h"
#include "draft_options.h"
#include "mixing_model.h"
#include "namespace.h"

namespace pia {

class DraftSession;

class DraftCache : public std::enable_shared_from_this<DraftCache> {
 public:
  static constexpr std::size_t kMinBytes = std::size_t{64} << 10;

  explicit DraftCache(std::size_t max_bytes);

  // Starts a request. Its prompt is learned by the request's own table alone; what it emits is learned by the cache when
  // it ends, under the id `request`, if that is not empty. `predicted` is what the caller expects it to emit.
  std::unique_ptr<DraftSession> begin(Tokens prompt, std::vector<TokenId> stop_ids, std::string space,
                                      std::string request = {}, Tokens predicted = {}, Corpora corpora = {},
                                      DraftOptions options = {});

  // Learns one finished sequence. It is cut behind each stop id, and no context reaches across a cut.
  void learn(Tokens text, const std::vector<TokenId>& stop_ids, const std::string& space,
             const std::string& request = {});
  // Learns many, each as it is.
  void learn_many(std::vector<LearnedSequence> sequences, const std::string& space);

  // Takes back what a request taught the cache; returns the number of tokens. While nothing has been evicted, the cache
  // is then the one that never learned them. Otherwise, too, nothing is left of them.
  std::size_t forget(const std::string& request, const std::string& space);
  // Takes back one `learn(text, stop_ids, space)`, as far as it is remembered, the latest if there were several.
  std::size_t forget_text(Tokens text, const std::vector<TokenId>& stop_ids, const std::string& space);
  void clear(const std::string& space);
  void clear();

  // Calls `read(tokens, request)` for each learned sequence, oldest first; `request` may be nullptr.
  template <class Read>
  void read_log(const std::string& space, Read&& read) const {
    const auto target = find(space);
    if (!target) return;
    const std::lock_guard reading(target->writer);
    for (const auto& [age, sequence] : target->log.sequences()) read(sequence.tokens.unpack(), sequence.request);
  }
  // Names with something learned, sorted.
  std::vector<std::string> namespaces() const;

  std::size_t max_bytes() const { return max_bytes_; }
  std::size_t num_bytes() const { return table_meter_.used() + log_meter_.used() + recycled_meter_.used(); }
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
  void make_way_in_log(std::size_t num_bytes);
  void make_way_in_recycled(const Namespace& target);

  const std::size_t max_bytes_;
  MemoryMeter log_meter_;
  MemoryMeter table_meter_;
  MemoryMeter recycled_meter_;
  MemoryMeter request_meter_;
  const std::shared_ptr<MixingModel> mixing_ = std::make_shared<MixingModel>();  // a fixed size, outside the bound
  std::atomic<std::int64_t> vocab_size_{0};
  mutable std::shared_mutex spaces_lock_;
  std::map<std::string, std::shared_ptr<Namespace>> spaces_;
};

}  // namespace pia
