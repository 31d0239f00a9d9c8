#include "draft_cache.h"

#include <algorithm>
#include <stdexcept>

namespace pia {

namespace {

// Text is some thirty times smaller than its contexts, so this share of the memory holds all that the tables know.
std::size_t log_share(std::size_t max_bytes) { return max_bytes / 16; }

// What the contexts of one more token may take, generously.
constexpr std::size_t kTableBytesPerToken = 200;

bool is_among(TokenId token, const std::vector<TokenId>& few) {
  return std::find(few.begin(), few.end(), token) != few.end();
}

}  // namespace

std::size_t Namespace::cost(const std::string& name) { return sizeof(Namespace) + name.size() + 96; }

DraftCache::DraftCache(std::size_t max_bytes)
    : max_bytes_(max_bytes), log_meter_(log_share(max_bytes)), table_meter_(max_bytes - log_share(max_bytes)) {
  if (max_bytes < kMinBytes) throw std::invalid_argument("max_bytes must be at least 65536 (64 KiB)");
}

std::unique_ptr<DraftSession> DraftCache::begin(Tokens prompt, std::vector<TokenId> stop_ids, std::string space,
                                                Corpora corpora) {
  auto shared = find_or_add(space);
  return std::make_unique<DraftSession>(shared_from_this(), std::move(shared), std::move(space), prompt,
                                        std::move(stop_ids), std::move(corpora));
}

void DraftCache::learn(Tokens text, const std::vector<TokenId>& stop_ids, const std::string& space) {
  if (text.empty()) return;
  const auto target = find_or_add(space);
  make_way_in_tables(*target, text.size());
  make_way_in_log(text.size());
  const std::lock_guard writing(target->writer);
  while (!text.empty()) {
    const auto stop = std::find_if(text.begin(), text.end(), [&](TokenId t) { return is_among(t, stop_ids); });
    const auto length = static_cast<std::size_t>(stop - text.begin()) + (stop != text.end());
    const Tokens sequence = text.first(length);
    target->table.insert(sequence, 0);
    // Of a sequence larger than the whole log, the end is remembered.
    const Tokens remembered = sequence.last(std::min(sequence.size(), TokenLog::capacity(log_meter_.limit())));
    while (!target->log.try_append(remembered) && target->log.drop_oldest()) {
    }
    text = text.subspan(length);
  }
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

void DraftCache::make_way_in_log(std::size_t num_tokens) {
  const std::size_t wanted = std::min(TokenLog::cost(num_tokens), log_meter_.limit());
  while (log_meter_.limit() - log_meter_.used() < wanted) {
    const auto spaces = all();
    const auto largest = *std::max_element(spaces.begin(), spaces.end(), [](const auto& a, const auto& b) {
      return a->log.num_tokens() < b->log.num_tokens();
    });
    const std::lock_guard writing(largest->writer);
    if (!largest->log.drop_oldest()) return;
  }
}

void DraftCache::clear(const std::string& space) {
  if (const auto target = find(space)) {
    const std::lock_guard writing(target->writer);
    target->table.clear();
    target->log.clear();
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

std::vector<std::vector<TokenId>> DraftCache::sequences(const std::string& space) const {
  const auto target = find(space);
  if (!target) return {};
  const std::lock_guard reading(target->writer);
  return {target->log.sequences().begin(), target->log.sequences().end()};
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
    std::size_t num_tokens = 0;
    for (const auto& sequence : space->log.sequences()) num_tokens += sequence.size();
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
        return std::make_shared<Namespace>(table_meter_, log_meter_);
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

struct DraftSession::Own {
  Own(MemoryMeter& request_meter, Tokens prompt)
      : meter(request_meter),
        text(prompt.begin(), prompt.end()),
        num_prompt(prompt.size()),
        table(request_meter, false, kNumShapes * prompt.size()) {
    book_text();
    table.insert(text, 0);
  }

  ~Own() { meter.release(num_text_bytes); }

  // Books the text's memory; requests are not bounded, so the meter never refuses.
  void book_text() {
    meter.release(num_text_bytes);
    num_text_bytes = text.capacity() * sizeof(TokenId);
    meter.try_charge(num_text_bytes);
  }

  MemoryMeter& meter;
  std::vector<TokenId> text;  // prompt and output
  std::size_t num_prompt;
  std::size_t num_text_bytes = 0;
  ContextTable table;
  DraftBuilder builder;
};

DraftSession::DraftSession(std::shared_ptr<DraftCache> cache, std::shared_ptr<Namespace> shared, std::string space,
                           Tokens prompt, std::vector<TokenId> stop_ids, Corpora corpora)
    : cache_(std::move(cache)),
      shared_(std::move(shared)),
      space_(std::move(space)),
      stop_ids_(std::move(stop_ids)),
      corpora_(std::move(corpora)),
      own_(std::make_unique<Own>(cache_->request_meter_, prompt)) {}

DraftSession::~DraftSession() { end(false); }

std::span<const DraftNode> DraftSession::propose(std::size_t budget, std::uint32_t max_depth) {
  if (!own_) throw std::invalid_argument("this draft session has ended; begin a new one");
  return own_->builder.build(own_->text, own_->table, shared_->table, budget, max_depth);
}

void DraftSession::observe(Tokens tokens) {
  if (!own_) throw std::invalid_argument("this draft session has ended; begin a new one");
  const std::size_t first = own_->text.size();
  own_->text.insert(own_->text.end(), tokens.begin(), tokens.end());
  own_->book_text();
  own_->table.insert(own_->text, first);
}

void DraftSession::end(bool commit) {
  if (!own_) return;
  const auto own = std::move(own_);
  if (commit) cache_->learn(Tokens(own->text).subspan(own->num_prompt), stop_ids_, space_);
  shared_.reset();
  corpora_.clear();
  cache_->forget_if_empty(space_);
}

std::size_t DraftSession::num_bytes() const {
  return own_ ? own_->table.num_bytes() + own_->num_text_bytes : 0;
}

}  // namespace pia
