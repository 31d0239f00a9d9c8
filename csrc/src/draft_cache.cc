#include "draft_cache.h"

#include <algorithm>
#include <stdexcept>

#include "draft_session.h"

namespace pia {

namespace {

// Packed text is some twenty times smaller than its contexts, so that so much of it outlasts what the tables can hold:
// what the log drops for room is taken from the tables too, however useful, where they would evict what matters least.
std::size_t log_share(std::size_t max_bytes) { return max_bytes / 8; }
std::size_t recycled_share(std::size_t max_bytes) { return max_bytes / 16; }

// What the contexts of one more token may take, generously.
constexpr std::size_t kTableBytesPerToken = 200;

bool is_among(TokenId token, const std::vector<TokenId>& few) {
  return std::find(few.begin(), few.end(), token) != few.end();
}

// Calls `act(piece)` for the pieces of `text` between stop ids; a stop id is the last token of its piece.
template <class Act>
void for_each_piece(Tokens text, const std::vector<TokenId>& stop_ids, Act&& act) {
  while (!text.empty()) {
    const auto stop = std::find_if(text.begin(), text.end(), [&](TokenId t) { return is_among(t, stop_ids); });
    const auto length = static_cast<std::size_t>(stop - text.begin()) + (stop != text.end());
    act(text.first(length));
    text = text.subspan(length);
  }
}

}  // namespace

DraftCache::DraftCache(std::size_t max_bytes)
    : max_bytes_(max_bytes),
      log_meter_(log_share(max_bytes)),
      table_meter_(max_bytes - log_share(max_bytes) - recycled_share(max_bytes)),
      recycled_meter_(recycled_share(max_bytes)) {
  if (max_bytes < kMinBytes) throw std::invalid_argument("max_bytes must be at least 65536 (64 KiB)");
}

std::unique_ptr<DraftSession> DraftCache::begin(Tokens prompt, std::vector<TokenId> stop_ids, std::string space,
                                                std::string request, Tokens predicted, Corpora corpora,
                                                DraftOptions options) {
  auto shared = find_or_add(space);
  return std::make_unique<DraftSession>(shared_from_this(), std::move(shared), std::move(space), std::move(request),
                                        prompt, predicted, std::move(stop_ids), std::move(corpora), options);
}

void DraftCache::learn(Tokens text, const std::vector<TokenId>& stop_ids, const std::string& space,
                       const std::string& request) {
  if (text.empty()) return;
  std::vector<LearnedSequence> sequences;
  for_each_piece(text, stop_ids, [&](Tokens piece) { sequences.push_back({piece, request}); });
  learn_many(std::move(sequences), space);
}

// Goes by blocks, so that other writers get their turn and the bulk's own needs stay small.
void DraftCache::learn_many(std::vector<LearnedSequence> sequences, const std::string& space) {
  // Of a sequence larger than the whole log the end is learned: what is not remembered could not be forgotten.
  for (auto& [tokens, request] : sequences) {
    tokens = TokenLog::part_that_fits(tokens, request, log_meter_.limit());
  }
  std::erase_if(sequences, [](const LearnedSequence& sequence) { return sequence.tokens.empty(); });
  if (sequences.empty()) return;
  const auto target = find_or_add(space);
  for (std::span<const LearnedSequence> left = sequences; !left.empty();) {
    std::size_t count = 0;
    std::size_t num_tokens = 0;
    std::size_t num_log_bytes = 0;
    for (; count < left.size() && num_tokens < ContextTable::kBulkTokens; ++count) {
      num_tokens += left[count].tokens.size();
      num_log_bytes += TokenLog::cost(left[count].tokens, left[count].request);
    }
    make_way_in_tables(*target, num_tokens);
    make_way_in_log(std::min(num_log_bytes, log_meter_.limit()));
    const std::lock_guard writing(target->writer);
    target->learn_many(left.first(count));
    left = left.subspan(count);
  }
}

std::size_t DraftCache::forget(const std::string& request, const std::string& space) {
  std::size_t num_tokens = 0;
  if (const auto target = find(space)) {
    const std::lock_guard writing(target->writer);
    num_tokens = target->forget_request(request);
  }
  forget_if_empty(space);
  return num_tokens;
}

std::size_t DraftCache::forget_text(Tokens text, const std::vector<TokenId>& stop_ids, const std::string& space) {
  std::size_t num_tokens = 0;
  if (const auto target = find(space)) {
    const std::lock_guard writing(target->writer);
    for_each_piece(text, stop_ids, [&](Tokens sequence) { num_tokens += target->forget_sequence(sequence); });
  }
  forget_if_empty(space);
  return num_tokens;
}

// When memory is spent, a namespace that holds less than its fair share takes from the largest one. (Otherwise it
// evicts its own contexts, segment by segment, as it needs room.)
void DraftCache::make_way_in_tables(Namespace& target, std::size_t num_tokens) {
  const std::size_t wanted = std::min(num_tokens * kTableBytesPerToken, table_meter_.limit() / 8);
  if (table_meter_.limit() - table_meter_.used() >= wanted) return;
  const auto spaces = all();
  if (target.table.num_bytes() < table_meter_.limit() / spaces.size()) shrink_largest(&target, wanted);
}

void DraftCache::shrink_largest(const Namespace* except, std::size_t num_bytes) {
  const auto spaces = all();
  if (spaces.empty()) return;
  const auto largest = *std::max_element(spaces.begin(), spaces.end(), [](const auto& a, const auto& b) {
    return a->table.num_bytes() < b->table.num_bytes();
  });
  if (largest.get() == except) return;
  const std::lock_guard writing(largest->writer);
  largest->table.shrink(num_bytes);
}

// When the logs are full, the one that holds most forgets its oldest sequences.
void DraftCache::make_way_in_log(std::size_t num_bytes) {
  while (log_meter_.limit() - log_meter_.used() < num_bytes) {
    const auto spaces = all();
    const auto largest = *std::max_element(spaces.begin(), spaces.end(), [](const auto& a, const auto& b) {
      return a->log.num_tokens() < b->log.num_tokens();
    });
    const std::lock_guard writing(largest->writer);
    if (largest->forget_oldest() == 0) return;
  }
}

// A namespace that may not grow though it holds less than its share takes the place of the largest one: what is recycled
// is soon there again.
void DraftCache::make_way_in_recycled(const Namespace& target) {
  const std::size_t free = recycled_meter_.limit() - recycled_meter_.used();
  const auto spaces = all();
  const std::size_t share = recycled_meter_.limit() / spaces.size();
  if (free >= target.recycled.next_bytes() || target.recycled.next_bytes() > share) return;
  const auto largest = *std::max_element(spaces.begin(), spaces.end(), [](const auto& a, const auto& b) {
    return a->recycled.num_bytes() < b->recycled.num_bytes();
  });
  if (largest.get() != &target) largest->recycled.clear();
}

void DraftCache::clear(const std::string& space) {
  if (const auto target = find(space)) {
    const std::lock_guard writing(target->writer);
    target->clear();
  }
  forget_if_empty(space);
}

void DraftCache::clear() {
  std::vector<std::string> names;
  {
    const std::shared_lock reading(spaces_lock_);
    for (const auto& [name, space] : spaces_) names.push_back(name);
  }
  for (const auto& name : names) clear(name);
}

// Drops a namespace that holds nothing and that no session uses, so that names alone never pile up.
void DraftCache::forget_if_empty(const std::string& space) {
  const std::unique_lock changing(spaces_lock_);
  const auto at = spaces_.find(space);
  if (at == spaces_.end() || at->second.use_count() > 1) return;
  if (at->second->table.num_contexts() == 0 && at->second->log.sequences().empty()) {
    spaces_.erase(at);
    table_meter_.release(Namespace::cost(space));
  }
}

std::vector<std::string> DraftCache::namespaces() const {
  std::vector<std::string> names;
  const std::shared_lock reading(spaces_lock_);
  for (const auto& [name, space] : spaces_) {
    if (space->table.num_contexts() > 0 || space->log.num_tokens() > 0) names.push_back(name);
  }
  return names;
}

std::size_t DraftCache::num_tokens() const {
  std::size_t sum = 0;
  for (const auto& space : all()) sum += space->log.num_tokens();
  return sum;
}

std::size_t DraftCache::num_contexts() const {
  std::size_t sum = 0;
  for (const auto& space : all()) sum += space->table.num_contexts();
  return sum;
}

std::optional<std::string> DraftCache::find_fault() const {
  if (num_bytes() > max_bytes_) return "more memory is used than allowed";
  for (const auto& space : all()) {
    const std::lock_guard reading(space->writer);
    if (auto fault = space->table.find_fault()) return fault;
    if (!space->recycled.is_sound()) return "a recycled context lies where nobody looks";
    std::size_t num_tokens = 0;
    for (const auto& [age, sequence] : space->log.sequences()) num_tokens += sequence.tokens.size();
    if (num_tokens != space->log.num_tokens()) return "the log has lost count of its tokens";
  }
  return std::nullopt;
}

std::shared_ptr<Namespace> DraftCache::find(const std::string& space) const {
  const std::shared_lock reading(spaces_lock_);
  const auto at = spaces_.find(space);
  return at == spaces_.end() ? nullptr : at->second;
}

std::shared_ptr<Namespace> DraftCache::find_or_add(const std::string& space) {
  if (auto found = find(space)) return found;
  // Made outside the lock, since it may have to take memory from another namespace.
  auto made = make_namespace(space);
  const std::unique_lock changing(spaces_lock_);
  const auto [at, is_new] = spaces_.try_emplace(space, made);
  if (!is_new) table_meter_.release(Namespace::cost(space));
  return at->second;
}

std::shared_ptr<Namespace> DraftCache::make_namespace(const std::string& space) {
  const std::size_t cost = Namespace::cost(space);
  for (int attempt = 0; attempt < 8; ++attempt) {
    if (table_meter_.try_charge(cost)) {
      try {
        return std::make_shared<Namespace>(table_meter_, log_meter_, recycled_meter_);
      } catch (...) {
        table_meter_.release(cost);
        if (attempt == 7) throw;
      }
    }
    shrink_largest(nullptr, 64 * cost);
  }
  throw std::bad_alloc();
}

std::vector<std::shared_ptr<Namespace>> DraftCache::all() const {
  std::vector<std::shared_ptr<Namespace>> found;
  const std::shared_lock reading(spaces_lock_);
  for (const auto& [name, space] : spaces_) found.push_back(space);
  return found;
}

}  // namespace pia
