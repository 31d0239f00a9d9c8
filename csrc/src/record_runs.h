// Counts more records than memory holds: sorted runs in a file, merged at the end (external merge sort).
//
// The file has no name by the time it is used, so nothing is left of it whatever ends the process.
#pragma once

#include <memory>
#include <optional>

#include "file_io.h"
#include "types.h"

namespace pia {

// A continuation of a context, seen `count` times.
struct Record {
  std::uint64_t hash;
  TokenId token;
  std::uint32_t count;
};

constexpr bool comes_before(const Record& a, const Record& b) {
  return a.hash != b.hash ? a.hash < b.hash : a.token < b.token;
}
constexpr bool is_same(const Record& a, const Record& b) { return a.hash == b.hash && a.token == b.token; }
constexpr std::uint32_t saturated_sum(std::uint64_t a, std::uint64_t b) {
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(a + b, 0xffffffffu));
}

// Sorts by hash, then token.
void sort_records(std::span<Record> records);
// Adds up equal neighbours of sorted records; returns how many are left.
std::size_t sum_equal(std::span<Record> records);

class RecordRuns {
 public:
  // At most `max_bytes` of memory. The file is made at `spill_path` when it is first needed.
  RecordRuns(std::string spill_path, std::size_t max_bytes);

  void add(std::uint64_t hash, TokenId token) {
    ++num_added_;
    Record& recent = recent_[(hash ^ token * 0x9e3779b1u) % kNumRecent];
    if (recent.hash == hash && recent.token == token && recent.count > 0) {
      recent.count = saturated_sum(recent.count, 1);
      return;
    }
    if (recent.count > 0) append(recent);
    recent = {hash, token, 1};
  }

  // Calls `act(record)` for each distinct record, in order, with the sum of its counts. Once, at the end.
  template <class Act>
  void merge(Act&& act);

  std::uint64_t num_added() const { return num_added_; }
  std::size_t num_runs() const { return runs_.size(); }

 private:
  // A sorted run, read a piece at a time.
  struct Run {
    std::uint64_t next;  // offset in the file of what has not been read yet
    std::uint64_t end;
    std::span<Record> piece;      // room
    std::span<Record> remaining;  // of what was read
  };

  // What is seen again soon is added up in a small cache first: a third of all records, or more.
  static constexpr std::size_t kNumRecent = std::size_t{1} << 15;

  void append(const Record& record) {
    if (num_buffered_ == capacity_) spill();
    buffer_[num_buffered_++] = record;
  }
  void append_recent();
  void spill();
  void sort_buffer();
  void share_out_buffer();
  bool refill(Run& run);
  void sift_down(std::vector<Run*>& heap, std::size_t at) const;

  const std::string spill_path_;
  const std::size_t capacity_;
  std::unique_ptr<Record[]> buffer_;  // not cleared: memory is taken as it fills
  std::vector<Record> recent_ = std::vector<Record>(kNumRecent, Record{0, 0, 0});
  std::size_t num_buffered_ = 0;
  std::uint64_t num_added_ = 0;
  std::optional<File> file_;
  std::uint64_t file_size_ = 0;
  std::vector<Run> runs_;
};

template <class Act>
void RecordRuns::merge(Act&& act) {
  append_recent();
  if (runs_.empty()) {
    sort_buffer();
    for (const Record& record : std::span(buffer_.get(), num_buffered_)) act(record);
    return;
  }
  spill();
  share_out_buffer();
  std::vector<Run*> heap;
  for (Run& run : runs_) {
    if (refill(run)) heap.push_back(&run);
  }
  for (std::size_t i = heap.size(); i-- > 0;) sift_down(heap, i);
  std::optional<Record> pending;
  while (!heap.empty()) {
    Run& run = *heap.front();
    const Record& record = run.remaining.front();
    if (pending && is_same(*pending, record)) {
      pending->count = saturated_sum(pending->count, record.count);
    } else {
      if (pending) act(*pending);
      pending = record;
    }
    run.remaining = run.remaining.subspan(1);
    if (run.remaining.empty() && !refill(run)) {
      heap.front() = heap.back();
      heap.pop_back();
    }
    sift_down(heap, 0);
  }
  if (pending) act(*pending);
}

}  // namespace pia
