// Builds corpora in little memory, damages them at random and reads them by several threads: for the sanitizers. A file
// that opens may say nonsense, but must never lead a reader outside of its map.
//
//   corpus_stress [rounds]

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <stdexcept>
#include <thread>

#include "context_hash.h"
#include "corpus.h"
#include "corpus_builder.h"

namespace {

constexpr std::int64_t kVocabSize = 300;

void require(bool is_right, const char* what) {
  if (is_right) return;
  std::fprintf(stderr, "corpus_stress: %s\n", what);
  std::exit(1);
}

std::vector<pia::TokenId> some_text(std::mt19937_64& random, std::size_t length) {
  std::geometric_distribution<pia::TokenId> token(0.05);
  std::vector<pia::TokenId> text(length);
  for (auto& t : text) t = token(random) % kVocabSize;
  return text;
}

// Looks up every context of a text; returns the sum of all counts.
std::uint64_t read_all(const pia::Corpus& corpus, const std::vector<pia::TokenId>& text) {
  std::uint64_t sum = 0;
  pia::ContextHashes hashes;
  for (std::size_t i = 1; i <= text.size(); ++i) {
    pia::hash_contexts(text.data() + i, i, hashes);
    hashes.for_each([&](std::uint64_t hash) {
      corpus.prefetch_header(hash);
      corpus.prefetch(hash);
      corpus.prefetch_edges(hash);
      corpus.visit(hash, [&](const pia::Continuations& found) {
        std::uint64_t edges = 0;
        for (const pia::Edge& edge : found.edges) {
          require(edge.token < kVocabSize && edge.count > 0, "an impossible continuation");
          edges += edge.count;
        }
        require(edges <= found.total, "a total that is too small");
        sum += edges;
      });
    });
  }
  return sum;
}

std::string temporary_path() {
  return std::filesystem::temp_directory_path() / ("pia_corpus_stress." + std::to_string(::getpid()));
}

pia::Corpus::Layout layout_of(const pia::CorpusBuilder::Figures& figures) {
  return {kVocabSize, figures.num_buckets, figures.num_words, figures.directory_checksum, figures.data_checksum};
}

pia::CorpusBuilder::Figures build(const std::string& path, std::mt19937_64& random) {
  ::unlink(path.c_str());
  pia::CorpusBuilder builder(path, kVocabSize, 64 << 10);
  for (int i = 0; i < 40; ++i) {
    builder.extend(some_text(random, random() % 500));
    if (i % 3) builder.end_sequence();
  }
  return builder.finish([](std::uint64_t, std::uint64_t) {});
}

void read_by_threads(const pia::Corpus& corpus, std::mt19937_64& random) {
  std::vector<std::vector<pia::TokenId>> texts;
  for (int i = 0; i < 4; ++i) texts.push_back(some_text(random, 200));
  std::vector<std::thread> threads;
  for (const auto& text : texts) threads.emplace_back([&] { require(read_all(corpus, text) > 0, "nothing found"); });
  for (auto& thread : threads) thread.join();
}

// Overwrites some bytes of the data; the directory too, with its checksum made right again.
void damage(const std::string& path, pia::Corpus::Layout& layout, std::mt19937_64& random) {
  pia::File file(path, O_RDWR);
  const std::uint64_t directory_bytes = pia::corpus::directory_bytes(layout.num_buckets);
  const std::uint64_t data_start = pia::corpus::kPageBytes + directory_bytes;
  for (int i = 0; i < 200; ++i) {
    const std::uint64_t word = random();
    file.write(&word, 4, data_start + 4 * (random() % layout.num_words));
  }
  if (random() % 2) return;
  std::vector<char> directory(directory_bytes);
  file.read(directory.data(), directory.size(), pia::corpus::kPageBytes);
  const std::size_t entry = random() % (layout.num_buckets + 1);
  directory[8 * entry + random() % 8] ^= static_cast<char>(1u << random() % 8);
  file.write(directory.data(), directory.size(), pia::corpus::kPageBytes);
  pia::Checksum checksum;
  checksum.update(directory.data(), directory.size());
  layout.directory_checksum = checksum.value();
}

}  // namespace

int main(int argc, char** argv) {
  const int num_rounds = argc > 1 ? std::atoi(argv[1]) : 200;
  const std::string path = temporary_path();
  std::mt19937_64 random(1);
  int num_refused = 0;
  for (int round = 0; round < num_rounds; ++round) {
    auto layout = layout_of(build(path, random));
    {
      const pia::File file(path, O_RDONLY);
      const pia::Corpus corpus(file.descriptor(), layout);
      require(!corpus.find_fault(), "a new corpus has a fault");
      read_by_threads(corpus, random);
    }
    damage(path, layout, random);
    try {
      const pia::File file(path, O_RDONLY);
      const pia::Corpus corpus(file.descriptor(), layout);
      read_all(corpus, some_text(random, 500));
      require(corpus.find_fault().has_value(), "damage was not found");
    } catch (const std::invalid_argument&) {
      ++num_refused;
    }
  }
  ::unlink(path.c_str());
  std::printf("corpus_stress: %d rounds, %d damaged files refused, the others read without harm\n", num_rounds,
              num_refused);
}
