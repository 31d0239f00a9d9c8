#include "record_runs.h"

#include <algorithm>
#include <array>

namespace pia {

namespace {

constexpr std::size_t kSmall = 64;        // fewer than this are sorted by comparison
constexpr std::size_t kMinPiece = 16;     // records
constexpr std::size_t kMaxPiece = 65536;

// Sorts by the digit of 8 bits at `shift`, in place ("American flag sort"), then each part by the next digit.
void sort_by_digits(std::span<Record> records, int shift) {
  if (records.size() < kSmall || shift < 0) {
    std::sort(records.begin(), records.end(), [](const Record& a, const Record& b) { return comes_before(a, b); });
    return;
  }
  const auto digit = [shift](const Record& record) { return (record.hash >> shift) & 0xff; };
  std::array<std::size_t, 257> begins{};
  for (const Record& record : records) ++begins[digit(record) + 1];
  for (std::size_t i = 0; i < 256; ++i) begins[i + 1] += begins[i];
  std::array<std::size_t, 256> next;
  std::copy_n(begins.begin(), 256, next.begin());
  for (std::size_t part = 0; part < 256; ++part) {
    while (next[part] < begins[part + 1]) {
      Record& record = records[next[part]];
      const std::size_t home = digit(record);
      if (home == part) {
        ++next[part];
      } else {
        std::swap(record, records[next[home]++]);
      }
    }
  }
  for (std::size_t part = 0; part < 256; ++part) {
    sort_by_digits(records.subspan(begins[part], begins[part + 1] - begins[part]), shift - 8);
  }
}

}  // namespace

void sort_records(std::span<Record> records) { sort_by_digits(records, 56); }

std::size_t sum_equal(std::span<Record> records) {
  if (records.empty()) return 0;
  std::size_t last = 0;
  for (std::size_t i = 1; i < records.size(); ++i) {
    if (is_same(records[last], records[i])) {
      records[last].count = saturated_sum(records[last].count, records[i].count);
    } else {
      records[++last] = records[i];
    }
  }
  return last + 1;
}

RecordRuns::RecordRuns(std::string spill_path, std::size_t max_bytes)
    : spill_path_(std::move(spill_path)),
      capacity_(std::max<std::size_t>(max_bytes / sizeof(Record), 2 * kMinPiece)),
      buffer_(new Record[capacity_]) {}

void RecordRuns::append_recent() {
  for (Record& record : recent_) {
    if (record.count > 0) append(record);
    record.count = 0;
  }
}

void RecordRuns::sort_buffer() {
  const std::span records(buffer_.get(), num_buffered_);
  sort_records(records);
  num_buffered_ = sum_equal(records);
}

void RecordRuns::spill() {
  if (!file_) {
    file_.emplace(spill_path_, O_RDWR | O_CREAT | O_EXCL);
    ::unlink(spill_path_.c_str());
  }
  sort_buffer();
  const std::uint64_t num_bytes = num_buffered_ * sizeof(Record);
  file_->write(buffer_.get(), num_bytes, file_size_);
  runs_.push_back({file_size_, file_size_ + num_bytes, {}, {}});
  file_size_ += num_bytes;
  num_buffered_ = 0;
}

// The buffer, no longer needed, serves to read the runs.
void RecordRuns::share_out_buffer() {
  const std::size_t size = std::clamp(capacity_ / runs_.size(), kMinPiece, kMaxPiece);
  if (size * runs_.size() > capacity_) {
    buffer_.reset(new Record[size * runs_.size()]);
  }
  for (std::size_t i = 0; i < runs_.size(); ++i) runs_[i].piece = {buffer_.get() + i * size, size};
}

bool RecordRuns::refill(Run& run) {
  const std::uint64_t num_bytes = std::min<std::uint64_t>(run.end - run.next, run.piece.size_bytes());
  if (num_bytes == 0) return false;
  file_->read(run.piece.data(), num_bytes, run.next);
  run.next += num_bytes;
  run.remaining = run.piece.first(num_bytes / sizeof(Record));
  return true;
}

void RecordRuns::sift_down(std::vector<Run*>& heap, std::size_t at) const {
  for (;;) {
    std::size_t least = 2 * at + 1;
    if (least >= heap.size()) return;
    if (least + 1 < heap.size() && comes_before(heap[least + 1]->remaining.front(), heap[least]->remaining.front())) {
      ++least;
    }
    if (!comes_before(heap[least]->remaining.front(), heap[at]->remaining.front())) return;
    std::swap(heap[least], heap[at]);
    at = least;
  }
}

}  // namespace pia
