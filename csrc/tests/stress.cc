// Hammers one draft cache from many threads; built with sanitizers by tools/sanitize.sh.
//
// Texts come from a small alphabet with habits of its own, so that contexts recur, fork and are evicted all the time.
// Some requests expect a predicted output, some draft from corpora. Some are forgotten, and some namespaces cleared,
// while they are in use. At the end the cache must be whole and within its bound.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <thread>

#include <unistd.h>

#include "corpus_builder.h"
#include "draft_session.h"

namespace {

using pia::DraftCache;
using pia::TokenId;

constexpr std::size_t kMaxBytes = std::size_t{2} << 20;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "FAILED: %s\n", what);
  std::exit(1);
}

void expect(bool is_true, const char* what) {
  if (!is_true) fail(what);
}

std::vector<TokenId> random_text(std::mt19937& random, std::size_t length) {
  std::vector<TokenId> text(length);
  TokenId last = 0;
  for (auto& token : text) {
    last = random() % 4 ? (last * 7 + 3) % 97 : static_cast<TokenId>(random() % 5000);
    token = last;
  }
  return text;
}

std::shared_ptr<pia::Corpus> make_corpus(unsigned seed) {
  const auto path = std::filesystem::temp_directory_path() /
                    ("pia_stress." + std::to_string(::getpid()) + "." + std::to_string(seed));
  std::mt19937 random(seed);
  pia::CorpusBuilder builder(path, 5000, 1 << 20);
  builder.extend(random_text(random, 20000));
  const auto figures = builder.finish([](std::uint64_t, std::uint64_t) {});
  const pia::File file(path, O_RDONLY);
  ::unlink(path.c_str());
  return std::make_shared<pia::Corpus>(
      file.descriptor(), pia::Corpus::Layout{5000, figures.num_buckets, figures.num_words,
                                             figures.directory_checksum, figures.data_checksum});
}

// What the caller expects: sometimes nothing, sometimes what will indeed come, more or less.
std::vector<TokenId> predicted_text(std::mt19937& random, const std::vector<TokenId>& output) {
  if (random() % 2) return {};
  std::vector<TokenId> predicted = output;
  for (std::size_t i = 0; i < predicted.size(); i += 1 + random() % 20) predicted[i] = random() % 97;
  return predicted;
}

void check_tree(std::span<const pia::DraftNode> nodes, std::size_t budget, std::uint32_t max_depth) {
  expect(nodes.size() <= budget, "a tree is larger than its budget");
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    expect(nodes[i].parent < static_cast<std::int32_t>(i), "a child comes before its parent");
    expect(nodes[i].prob > 0 && nodes[i].prob <= 1, "a probability is out of range");
    expect(i == 0 || nodes[i].prob <= nodes[i - 1].prob, "nodes are not in best-first order");
    expect(nodes[i].depth >= 1 && nodes[i].depth <= max_depth, "a node is too deep");
  }
}

// Enough text at once for the table to take it in on two threads.
void learn_much(const std::shared_ptr<DraftCache>& cache, std::mt19937& random) {
  std::vector<std::vector<TokenId>> texts;
  std::vector<pia::LearnedSequence> sequences;
  for (int i = 0; i < 40; ++i) texts.push_back(random_text(random, 1000));
  for (const auto& text : texts) sequences.push_back({text, "bulk " + std::to_string(random() % 3)});
  cache->learn_many(std::move(sequences), "tenant 2");
  cache->forget("bulk 1", "tenant 2");
}

// What a model may find likely behind each node.
void recycle(pia::DraftSession& session, std::span<const pia::DraftNode> nodes, std::mt19937& random) {
  std::vector<pia::TokenId> tokens;
  std::vector<std::int32_t> parents;
  for (const auto& node : nodes) {
    tokens.push_back(node.token);
    parents.push_back(node.parent);
  }
  std::vector<pia::TopTokens> top(nodes.size() + 1);
  for (auto& place : top) {
    for (std::size_t i = 0; i < pia::kNumTop; ++i) {
      place.tokens[i] = random() % 97;
      place.likelihoods[i] = static_cast<pia::Likelihood>(1 + random() % (pia::kNumLikelihoods - 1));
    }
  }
  session.recycle({tokens, parents}, top);
}

void run_requests(const std::shared_ptr<DraftCache>& cache, const pia::Corpora& corpora, unsigned seed,
                  int num_requests) {
  std::mt19937 random(seed);
  for (int i = 0; i < num_requests; ++i) {
    const std::string space = "tenant " + std::to_string(random() % 4);
    const std::string request = "request " + std::to_string(random() % 50);
    const std::size_t prompt = random() % 20 == 0 ? 5000 : random() % 300;  // some are learned in the background
    const auto output = random_text(random, 80);
    const auto first_corpora = corpora.begin() + static_cast<std::ptrdiff_t>(random() % (corpora.size() + 1));
    const auto session = cache->begin(random_text(random, prompt), {96}, space, request, predicted_text(random, output),
                                      {first_corpora, corpora.end()}, {random() % 4 != 0, random() % 4 != 0, nullptr});
    std::size_t num_seen = 0;
    for (int step = 0; step < 20; ++step) {
      const std::size_t budget = random() % 40;
      const std::uint32_t max_depth = 1 + random() % 32;
      const auto nodes = session->propose(budget, max_depth);
      check_tree(nodes, budget, max_depth);
      recycle(*session, nodes, random);
      const std::size_t count = std::min<std::size_t>(random() % 8, output.size() - num_seen);
      const pia::Tokens emitted = pia::Tokens(output).subspan(num_seen, count);
      if (random() % 2) {
        session->observe(emitted);
      } else {  // as beside a device: the last lesson, drafts for what may come, and what came
        session->learn();
        session->prepare({}, budget, max_depth, random() % 5);
        session->advance(emitted);
      }
      if (count == 0) session->observe(random_text(random, 1));
      num_seen += count;
    }
    if (random() % 4 == 0) session->wait();
    session->end(random() % 3 != 0);
    cache->learn(random_text(random, random() % 400), {0, 96}, space, random() % 2 ? request : "");
    if (random() % 4 == 0) cache->forget("request " + std::to_string(random() % 50), space);
    if (random() % 40 == 0) cache->clear(space);
    if (random() % 50 == 0) learn_much(cache, random);
    expect(cache->num_bytes() <= cache->max_bytes(), "the memory bound is broken");
  }
}

void watch(const std::shared_ptr<DraftCache>& cache, const std::atomic<bool>& is_over) {
  while (!is_over) {
    cache->namespaces();
    cache->read_log("tenant 1", [](const auto& tokens, const auto*) { expect(!tokens.empty(), "an empty sequence"); });
    cache->num_contexts();
    if (auto fault = cache->find_fault()) fail(fault->c_str());
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int num_threads = argc > 1 ? std::atoi(argv[1]) : 6;
  const int num_requests = argc > 2 ? std::atoi(argv[2]) : 150;
  const auto cache = std::make_shared<DraftCache>(kMaxBytes);
  std::atomic<bool> is_over{false};
  const pia::Corpora corpora = {make_corpus(1), make_corpus(2)};
  std::thread watcher([&] { watch(cache, is_over); });
  std::vector<std::thread> workers;
  for (int i = 0; i < num_threads; ++i) {
    workers.emplace_back([&, i] { run_requests(cache, corpora, static_cast<unsigned>(i), num_requests); });
  }
  for (auto& worker : workers) worker.join();
  is_over = true;
  watcher.join();
  if (auto fault = cache->find_fault()) fail(fault->c_str());
  expect(cache->num_request_bytes() == 0, "a request left memory behind");
  std::printf("ok: %zu contexts, %zu of %zu bytes\n", cache->num_contexts(), cache->num_bytes(), cache->max_bytes());
  cache->clear();
  expect(cache->num_contexts() == 0 && cache->namespaces().empty(), "clear left something behind");
  expect(cache->num_bytes() == 0, "clear left memory behind");
  return 0;
}
