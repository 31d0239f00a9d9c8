// Fuzz target: an input is a corpus file, or damage to a good one, which is then looked into and drafted from.
//
// The checksum of the directory is mostly made right, since little lies behind a wrong one. Files may be refused, with
// std::invalid_argument; one that opens may say nonsense, but no look-up may read outside of its map. There is a fence
// around that: see __wrap_mmap.
#include <cstring>
#include <filesystem>
#include <set>
#include <stdexcept>

#include <sys/mman.h>
#include <unistd.h>

#include "checksum.h"
#include "corpus_builder.h"
#include "fuzz.h"

// --- A fence around every map of a file (the linker puts these in place of mmap and munmap) ----------------------------

extern "C" void* __real_mmap(void* at, std::size_t size, int access, int flags, int file, off_t offset);
extern "C" int __real_munmap(void* at, std::size_t size);

namespace {

constexpr std::size_t kPage = pia::corpus::kPageBytes;
std::set<void*> fenced;

}  // namespace

extern "C" void* __wrap_mmap(void* at, std::size_t size, int access, int flags, int file, off_t offset) {
  if (file < 0 || at || !(flags & MAP_SHARED)) return __real_mmap(at, size, access, flags, file, offset);
  void* fence = __real_mmap(nullptr, size + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (fence == MAP_FAILED) return fence;
  void* mapped = __real_mmap(static_cast<char*>(fence) + kPage, size, access, flags | MAP_FIXED, file, offset);
  fenced.insert(mapped);
  return mapped;
}

extern "C" int __wrap_munmap(void* at, std::size_t size) {
  if (fenced.erase(at) == 0) return __real_munmap(at, size);
  return __real_munmap(static_cast<char*>(at) - kPage, size + 2 * kPage);
}

namespace {

using fuzz::Bytes;
using fuzz::require;
using pia::Corpus;
using pia::TokenId;

constexpr std::uint64_t kWordsPerPage = kPage / pia::corpus::kWordBytes;

struct Image {
  std::vector<std::uint64_t> directory;
  std::vector<std::uint32_t> data;
  Corpus::Layout layout;
  std::size_t first_word = 0;  // before it there are only zeros

  void fill_pages() {
    directory.resize(pia::corpus::in_whole_pages(8 * directory.size()) / 8);
    data.resize(pia::corpus::in_whole_pages(4 * data.size()) / 4);
  }
  void seal() {
    layout.directory_checksum = checksum_of(directory);
    layout.data_checksum = checksum_of(data);
  }
  template <class Words>
  static std::uint64_t checksum_of(const Words& words) {
    pia::Checksum checksum;
    checksum.update(words.data(), words.size() * sizeof(words[0]));
    return checksum.value();
  }
};

std::vector<TokenId> good_text() {
  std::vector<TokenId> text(500);
  std::uint32_t seed = 1;
  for (auto& token : text) {
    seed = seed * 1664525u + 1013904223u;
    token = (seed >> 24) % 4 ? (seed >> 20) % 8 : (seed >> 16) % 200;
  }
  return text;
}

// A corpus as it is built, in memory.
Image make_good_image() {
  const auto path = std::filesystem::temp_directory_path() / ("pia_fuzz_corpus." + std::to_string(::getpid()));
  pia::CorpusBuilder builder(path, 200, 64 << 10);
  builder.extend(good_text());
  const auto figures = builder.finish([](std::uint64_t, std::uint64_t) {});
  const pia::File file(path, O_RDONLY);
  ::unlink(path.c_str());
  Image image;
  image.layout = {200, figures.num_buckets, figures.num_words, figures.directory_checksum, figures.data_checksum};
  image.directory.resize(pia::corpus::directory_bytes(figures.num_buckets) / 8);
  image.data.resize(pia::corpus::in_whole_pages(4 * figures.num_words) / 4);
  file.read(image.directory.data(), 8 * image.directory.size(), kPage);
  file.read(image.data.data(), 4 * image.data.size(), kPage + 8 * image.directory.size());
  return image;
}

const Image& good_image() {
  static const Image image = make_good_image();
  return image;
}

// A few words of a good file, its directory or its layout are changed.
Image damaged_image(Bytes& bytes) {
  Image image = good_image();
  bool is_sealed = true;
  while (!bytes.is_empty()) {
    const std::uint32_t kind = bytes.byte() % 8;
    std::uint64_t& entry = image.directory[bytes.byte() % (image.layout.num_buckets + 1)];
    std::uint32_t& word = image.data[bytes.half() % image.data.size()];
    switch (kind) {
      case 0: entry = pia::corpus::pack_bucket(bytes.word(), bytes.half()); break;
      case 1: entry ^= std::uint64_t{1} << bytes.byte() % 64; break;
      case 2: image.layout.vocab_size = bytes.word(); break;
      case 3: image.layout.num_words += bytes.byte() - 128; break;
      case 4: is_sealed = bytes.byte() % 4 != 0; break;
      case 5: word ^= 1u << bytes.byte() % 32; break;
      default: word = bytes.word();
    }
  }
  if (is_sealed) image.seal();
  return image;
}

// Small words make sense more often: as offsets, heads of few edges, tokens.
std::uint32_t invented_word(Bytes& bytes) {
  const std::uint32_t form = bytes.byte();
  if (form < 128) return form;
  if (form < 192) return bytes.half();
  return form < 224 ? bytes.word() : pia::corpus::kInArena | bytes.byte();
}

// Everything comes from the input. The data lies at the end of its last page, with the fence right behind it.
Image invented_image(Bytes& bytes) {
  static constexpr std::array<std::int64_t, 8> kVocabSizes = {1, 2, 3, 100, 50000, pia::kMaxVocabSize, 0, -1};
  Image image;
  image.layout.vocab_size = kVocabSizes[bytes.byte() % kVocabSizes.size()];
  image.layout.num_buckets = std::uint64_t{1} << bytes.byte() % 4;
  const std::uint64_t num_words = std::min<std::uint64_t>(bytes.half() % 600, bytes.num_left() / 4 + 1);
  image.data.resize((num_words + kWordsPerPage - 1) / kWordsPerPage * kWordsPerPage);
  const std::uint64_t begin = image.data.size() - num_words;
  image.first_word = begin;
  std::uint64_t at = begin;
  for (std::uint64_t i = 0; i <= image.layout.num_buckets; ++i) {
    image.directory.push_back(pia::corpus::pack_bucket(at, bytes.byte()));
    at = i + 1 < image.layout.num_buckets ? at + bytes.byte() : image.data.size();
  }
  for (std::uint64_t i = begin; i < image.data.size() && !bytes.is_empty(); ++i) image.data[i] = invented_word(bytes);
  image.layout.num_words = image.data.size();
  image.fill_pages();
  image.seal();
  return image;
}

class MemoryFile {
 public:
  explicit MemoryFile(const Image& image) : descriptor_(::memfd_create("corpus", 0)) {
    require(descriptor_ >= 0, "no memory file");
    write(image.directory.data(), 8 * image.directory.size(), kPage);
    write(image.data.data(), 4 * image.data.size(), kPage + 8 * image.directory.size());
  }
  ~MemoryFile() { ::close(descriptor_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  int descriptor() const { return descriptor_; }

 private:
  void write(const void* from, std::size_t size, std::size_t offset) {
    if (size == 0) {
      require(::ftruncate(descriptor_, static_cast<off_t>(offset)) == 0, "no room for a file");
      return;
    }
    require(::pwrite(descriptor_, from, size, static_cast<off_t>(offset)) == static_cast<ssize_t>(size), "short write");
  }

  const int descriptor_;
};

void look_up(const Corpus& corpus, std::uint64_t hash) {
  corpus.prefetch_header(hash);
  corpus.prefetch(hash);
  corpus.prefetch_edges(hash);
  corpus.visit(hash, [&](const pia::Continuations& found) {
    std::uint64_t sum = 0;
    for (const pia::Edge& edge : found.edges) {
      require(edge.token < corpus.vocab_size() && edge.count > 0, "an impossible continuation");
      sum += edge.count;
    }
    require(!found.edges.empty() && found.edges.size() <= pia::kMaxContinuations, "too few or many continuations");
    require(sum <= found.total || found.total == UINT32_MAX, "a total that is too small");
  });
}

// Words of the file are taken for tags, in every bucket; all of them if they are few.
void look_up_all(const Corpus& corpus, const Image& image) {
  const std::size_t first = image.first_word;
  const std::size_t step = 1 + (image.data.size() - first) / 600;
  const int bits = std::countr_zero(image.layout.num_buckets);
  for (std::uint64_t bucket = 0; bucket < image.layout.num_buckets; ++bucket) {
    const std::uint64_t high = bits == 0 ? 0 : bucket << (64 - bits);
    look_up(corpus, high);
    for (std::size_t i = first; i < image.data.size(); i += step) {
      look_up(corpus, high | std::uint64_t{image.data[i]} << (32 - bits));
    }
  }
}

void draft(const std::shared_ptr<Corpus>& corpus) {
  static const auto cache = std::make_shared<pia::DraftCache>(pia::DraftCache::kMinBytes);
  static const auto good = [] {
    const MemoryFile file(good_image());
    return std::make_shared<Corpus>(file.descriptor(), good_image().layout);
  }();
  static const auto text = good_text();
  for (const pia::Corpora& corpora : {pia::Corpora{corpus}, pia::Corpora{good, corpus}}) {
    const auto session = cache->begin(pia::Tokens(text).first(20), {}, "", "", {}, corpora);
    for (std::size_t i = 20; i < 28; ++i) {
      fuzz::check_tree(session->propose(20, 8), 20, 8);
      session->observe(pia::Tokens(text).subspan(i, 1));
    }
    session->known_contexts();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes bytes(data, size);
  const Image image = bytes.byte() % 2 ? damaged_image(bytes) : invented_image(bytes);
  try {
    const MemoryFile file(image);
    const auto corpus = std::make_shared<Corpus>(file.descriptor(), image.layout);
    corpus->find_fault();
    look_up_all(*corpus, image);
    draft(corpus);
  } catch (const std::invalid_argument&) {  // a file that says what can't be
  }
  return 0;
}
