// Measures the draft cache alone: how fast it learns and drafts, what it weighs, and how threads get on with each other.
//
//   bench [million tokens in the cache, 10 by default]
//
// The text is made up: a Markov chain over a Zipf vocabulary that now and then recites one of many phrases, so contexts
// recur, fork and stay unique in about the shares that real outputs show. A table for people, and last one JSON line.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <random>
#include <string>
#include <thread>

#include "draft_session.h"

namespace {

using namespace pia;
using Clock = std::chrono::steady_clock;

constexpr TokenId kVocabSize = 32000;
constexpr std::size_t kSequenceLength = 300;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

double wall_seconds() { return std::chrono::duration<double>(Clock::now().time_since_epoch()).count(); }

// Processor time of this thread alone: what else runs on the machine hardly shows in it.
double cpu_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// --- Text ------------------------------------------------------------------------------------------------------------

class TextMaker {
 public:
  explicit TextMaker(std::uint64_t seed) : random_(seed) {}

  std::vector<TokenId> make(std::size_t length) {
    std::vector<TokenId> text;
    text.reserve(length + kMaxPhrase);
    TokenId before = 0;
    TokenId last = 0;
    while (text.size() < length) {
      if (uniform() < 0.012) {
        recite(text);
        last = text.back();
      }
      const TokenId next = follow(before, last);
      before = last;
      last = next;
      text.push_back(next);
    }
    text.resize(length);
    return text;
  }

 private:
  static constexpr std::size_t kMaxPhrase = 48;
  static constexpr double kNumPhrases = 50000;

  double uniform() { return static_cast<double>(random_() >> 11) * 0x1p-53; }
  // A rank from 0 up; small ones are common.
  std::uint64_t rank(double reach) { return static_cast<std::uint64_t>(std::pow(reach, uniform())) - 1; }
  // The token that a number stands for; common tokens stand for many.
  static TokenId token_for(std::uint64_t number) {
    const double u = static_cast<double>(mix64(number) >> 11) * 0x1p-53;
    return static_cast<TokenId>(std::pow(static_cast<double>(kVocabSize), u)) - 1;
  }

  TokenId follow(TokenId before, TokenId last) {
    const double kind = uniform();
    if (kind < 0.6) return token_for((std::uint64_t{before} << 40) + (std::uint64_t{last} << 8) + rank(6));
    if (kind < 0.9) return token_for((std::uint64_t{last} << 8) + rank(40));
    return static_cast<TokenId>(rank(kVocabSize));
  }

  void recite(std::vector<TokenId>& text) {
    const std::uint64_t phrase = mix64(rank(kNumPhrases) + 1);
    const std::size_t length = 6 + phrase % (kMaxPhrase - 6);
    for (std::size_t i = 0; i < length; ++i) text.push_back(token_for(phrase + i));
  }

  std::mt19937_64 random_;
};

// --- Measuring -------------------------------------------------------------------------------------------------------

double quantile(std::vector<double> values, double share) {
  const auto at = static_cast<std::ptrdiff_t>(share * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + at, values.end());
  return values[static_cast<std::size_t>(at)];
}

// Tokens per second of a request's own table, the best of several.
double prompt_rate(std::size_t length) {
  const auto prompt = TextMaker(7).make(length);
  double best = 1e9;
  for (int round = 0; round < 7; ++round) {
    const double start = cpu_seconds();
    const int repeats = static_cast<int>(std::max<std::size_t>(1, 100000 / length));
    for (int i = 0; i < repeats; ++i) {
      MemoryMeter meter;
      ContextTable table(meter, false, kNumShapes * length);
      table.insert(prompt, 0);
    }
    best = std::min(best, (cpu_seconds() - start) / repeats);
  }
  return static_cast<double>(length) / best;
}

double begin_microseconds(const std::shared_ptr<DraftCache>& cache) {
  const auto prompt = TextMaker(8).make(100000);
  std::vector<double> times;
  for (int round = 0; round < 7; ++round) {
    const auto start = Clock::now();
    const auto session = cache->begin(prompt, {}, "");
    times.push_back(1e6 * seconds_since(start));
  }
  return quantile(times, 0.5);
}

double learn_all(const std::shared_ptr<DraftCache>& cache, const std::vector<TokenId>& text) {
  const double start = cpu_seconds();
  for (std::size_t at = 0; at < text.size(); at += kSequenceLength) {
    const std::size_t length = std::min(kSequenceLength, text.size() - at);
    cache->learn(Tokens(text).subspan(at, length), {}, "");
  }
  return static_cast<double>(text.size()) / (cpu_seconds() - start);
}

struct StepTimes {
  std::vector<double> propose;
  std::vector<double> observe;
};

// Steps of requests with fresh prompts and outputs of the same kind as what the cache holds.
double load_rate(const std::vector<TokenId>& text) {
  const auto cache = std::make_shared<DraftCache>(std::size_t{4} << 30);
  std::vector<LearnedSequence> sequences;
  for (std::size_t at = 0; at < text.size(); at += kSequenceLength) {
    sequences.push_back({Tokens(text).subspan(at, std::min(kSequenceLength, text.size() - at)), {}});
  }
  const double start = wall_seconds();
  cache->learn_many(std::move(sequences), "");
  return static_cast<double>(text.size()) / (wall_seconds() - start);
}

StepTimes time_steps(const std::shared_ptr<DraftCache>& cache, std::size_t budget, std::uint64_t seed, int num_requests,
                     double (*clock)() = cpu_seconds) {
  StepTimes times;
  TextMaker maker(seed);
  for (int i = 0; i < num_requests; ++i) {
    const auto text = maker.make(500);
    const auto session = cache->begin(Tokens(text).first(200), {}, "");
    for (std::size_t at = 200; at + 3 <= text.size(); at += 3) {
      const double start = clock();
      session->propose(budget, 32);
      const double middle = clock();
      session->observe(Tokens(text).subspan(at, 3));
      times.propose.push_back(1e6 * (middle - start));
      times.observe.push_back(1e6 * (clock() - middle));
    }
    session->end(false);
  }
  return times;
}

// Drafts per second of so many threads together.
double drafting_rate(const std::shared_ptr<DraftCache>& cache, int num_threads) {
  std::atomic<bool> is_over{false};
  std::atomic<std::size_t> count{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < num_threads; ++i) {
    threads.emplace_back([&, i] {
      for (std::uint64_t seed = 100; !is_over; seed += 8) {
        count += time_steps(cache, 16, seed + static_cast<std::uint64_t>(i), 1).propose.size();
      }
    });
  }
  const auto start = Clock::now();
  std::this_thread::sleep_for(std::chrono::milliseconds(800));
  is_over = true;
  for (auto& thread : threads) thread.join();
  return static_cast<double>(count) / seconds_since(start);
}

StepTimes time_steps_while_learning(const std::shared_ptr<DraftCache>& cache, std::size_t budget) {
  std::atomic<bool> is_over{false};
  std::thread writer([&] {
    for (std::uint64_t seed = 900; !is_over; ++seed) cache->learn(TextMaker(seed).make(20000), {}, "");
  });
  auto times = time_steps(cache, budget, 55, 60, wall_seconds);
  is_over = true;
  writer.join();
  return times;
}

}  // namespace

int main(int argc, char** argv) {
  const double millions = argc > 1 ? std::atof(argv[1]) : 10;
  const auto num_tokens = static_cast<std::size_t>(millions * 1e6);
  std::string json = "{";
  const auto report = [&json](const std::string& name, double value) {
    std::printf("%-28s %14.2f\n", name.c_str(), value);
    char field[128];
    std::snprintf(field, sizeof field, "%s\"%s\": %.6g", json.size() > 1 ? ", " : "", name.c_str(), value);
    json += field;
  };
  for (const std::size_t length : {1000u, 10000u, 100000u}) {
    report("prompt_" + std::to_string(length) + "_tokens_per_s", prompt_rate(length));
  }
  const auto cache = std::make_shared<DraftCache>(std::size_t{4} << 30);
  {
    const auto text = TextMaker(1).make(num_tokens);
    report("load_tokens_per_s", load_rate(text));
    report("learn_tokens_per_s", learn_all(cache, text));
  }
  report("bytes_per_token", static_cast<double>(cache->num_bytes()) / static_cast<double>(num_tokens));
  report("contexts_per_token", static_cast<double>(cache->num_contexts()) / static_cast<double>(num_tokens));
  report("begin_100000_us", begin_microseconds(cache));
  for (const std::size_t budget : {16u, 64u}) {
    const auto times = time_steps(cache, budget, 33, 60);
    const auto name = "draft_" + std::to_string(budget);
    report(name + "_us", quantile(times.propose, 0.5));
    report(name + "_p99_us", quantile(times.propose, 0.99));
    if (budget == 16) report("observe_us", quantile(times.observe, 0.5));
  }
  const double one = drafting_rate(cache, 1);
  report("drafts_per_s", one);
  report("two_threads", drafting_rate(cache, 2) / one);
  const double quiet = quantile(time_steps(cache, 16, 55, 60, wall_seconds).propose, 0.99);
  report("delay_by_inserts_p99_us", quantile(time_steps_while_learning(cache, 16).propose, 0.99) - quiet);
  if (auto fault = cache->find_fault()) {
    std::fprintf(stderr, "FAILED: %s\n", fault->c_str());
    return 1;
  }
  std::printf("%s}\n", json.c_str());
  return 0;
}
