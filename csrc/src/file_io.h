// Files by descriptor: whole reads and writes at an offset, and a buffered section with a checksum.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <system_error>
#include <vector>

#include "checksum.h"

namespace pia {

class File {
 public:
  // `flags` as for open(2). Throws std::system_error.
  File(const std::string& path, int flags) : descriptor_(::open(path.c_str(), flags | O_CLOEXEC, 0666)) {
    if (descriptor_ < 0) fail("open");
  }
  ~File() { ::close(descriptor_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  int descriptor() const { return descriptor_; }

  void write(const void* bytes, std::size_t num_bytes, std::uint64_t offset) {
    const char* at = static_cast<const char*>(bytes);
    while (num_bytes > 0) {
      const ssize_t done = ::pwrite(descriptor_, at, num_bytes, static_cast<off_t>(offset));
      if (done < 0 && errno != EINTR) fail("write");
      if (done > 0) {
        at += done;
        num_bytes -= static_cast<std::size_t>(done);
        offset += static_cast<std::uint64_t>(done);
      }
    }
  }

  void read(void* bytes, std::size_t num_bytes, std::uint64_t offset) const {
    char* at = static_cast<char*>(bytes);
    while (num_bytes > 0) {
      const ssize_t done = ::pread(descriptor_, at, num_bytes, static_cast<off_t>(offset));
      if (done == 0) throw std::system_error(EIO, std::generic_category(), "read");
      if (done < 0 && errno != EINTR) fail("read");
      if (done > 0) {
        at += done;
        num_bytes -= static_cast<std::size_t>(done);
        offset += static_cast<std::uint64_t>(done);
      }
    }
  }

 private:
  [[noreturn]] static void fail(const char* what) { throw std::system_error(errno, std::generic_category(), what); }

  int descriptor_;
};

// Writes one part of a file from front to back, by way of a buffer.
class SectionWriter {
 public:
  SectionWriter(File& file, std::uint64_t offset, std::size_t buffer_bytes)
      : file_(file), offset_(offset), buffer_(buffer_bytes / Checksum::kBlockBytes * Checksum::kBlockBytes) {}

  template <class T>
  void append(std::span<const T> values) {
    append(values.data(), values.size_bytes());
  }

  // Fills up with zeros to a multiple of `unit` bytes, and writes what is left.
  void finish(std::size_t unit) {
    const std::vector<char> zeros((unit - num_bytes_ % unit) % unit);
    append(zeros.data(), zeros.size());
    flush();
  }

  std::uint64_t num_bytes() const { return num_bytes_; }
  std::uint64_t checksum() const { return checksum_.value(); }

 private:
  void append(const void* bytes, std::size_t num_bytes) {
    const char* at = static_cast<const char*>(bytes);
    num_bytes_ += num_bytes;
    while (num_bytes > 0) {
      const std::size_t part = std::min(num_bytes, buffer_.size() - num_used_);
      std::memcpy(buffer_.data() + num_used_, at, part);
      num_used_ += part;
      at += part;
      num_bytes -= part;
      if (num_used_ == buffer_.size()) flush();
    }
  }

  void flush() {
    checksum_.update(buffer_.data(), num_used_);
    file_.write(buffer_.data(), num_used_, offset_);
    offset_ += num_used_;
    num_used_ = 0;
  }

  File& file_;
  std::uint64_t offset_;
  std::uint64_t num_bytes_ = 0;
  std::vector<char> buffer_;
  std::size_t num_used_ = 0;
  Checksum checksum_;
};

}  // namespace pia
