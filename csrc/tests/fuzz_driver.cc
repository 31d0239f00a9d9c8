// Runs a fuzz target where the compiler has no libFuzzer (GCC): random inputs and mutations of earlier ones, without
// looking at coverage. Understands the few of libFuzzer's options that tools/fuzz.sh uses.
//
//   fuzz_... [-max_total_time=SECONDS] [-artifact_prefix=PATH] [-max_len=BYTES] [input file ...]
//
// With input files it runs these only. An input that ends the process is kept as PATHcrash-input.
#include <csignal>
#include <chrono>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include <fcntl.h>
#include <sanitizer/common_interface_defs.h>
#include <unistd.h>

#include "fuzz.h"

namespace {

using Input = std::vector<std::uint8_t>;

Input current;
std::string artifact = "crash-input";

// Called when things have gone wrong already, so without anything that allocates.
void keep_input() {
  const int file = ::open(artifact.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (file < 0) return;
  const auto written = ::write(file, current.data(), current.size());
  if (written == static_cast<ssize_t>(current.size())) std::fprintf(stderr, "input kept as %s\n", artifact.c_str());
  ::close(file);
}

void on_abort(int) {
  keep_input();
  std::_Exit(1);
}

void run(Input input) {
  current = std::move(input);
  LLVMFuzzerTestOneInput(current.data(), current.size());
}

Input random_input(std::mt19937_64& random, std::size_t max_size) {
  Input input(random() % (max_size + 1));
  for (auto& byte : input) byte = static_cast<std::uint8_t>(random());
  return input;
}

// Changes a few bytes, or cuts, or adds another's end.
Input mutated(Input input, const Input& other, std::mt19937_64& random, std::size_t max_size) {
  for (auto left = random() % 8; left > 0 && !input.empty(); --left) {
    input[random() % input.size()] = static_cast<std::uint8_t>(random());
  }
  if (random() % 4 == 0) input.resize(random() % (input.size() + 1));
  if (random() % 4 == 0 && !other.empty()) {
    input.insert(input.end(), other.begin() + static_cast<std::ptrdiff_t>(random() % other.size()), other.end());
  }
  input.resize(std::min(input.size(), max_size));
  return input;
}

void run_for(double seconds, std::size_t max_size) {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  const auto passed = [&] { return std::chrono::duration<double>(Clock::now() - begin).count(); };
  std::mt19937_64 random(static_cast<std::uint64_t>(begin.time_since_epoch().count()));
  std::vector<Input> pool(64);
  std::uint64_t num_runs = 0;
  for (; passed() < seconds; ++num_runs) {
    Input& chosen = pool[random() % pool.size()];
    Input input = random() % 4 ? mutated(chosen, pool[random() % pool.size()], random, max_size)
                               : random_input(random, max_size);
    run(input);
    chosen = std::move(input);
  }
  std::printf("Done %llu runs in %.0f second(s)\n", static_cast<unsigned long long>(num_runs), passed());
}

Input read_file(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

int main(int argc, char** argv) {
  double seconds = 60;
  std::size_t max_size = 1024;
  std::vector<const char*> files;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    const std::string value = option.substr(option.find('=') + 1);
    if (option.starts_with("-max_total_time=")) {
      seconds = std::stod(value);
    } else if (option.starts_with("-max_len=")) {
      max_size = std::stoul(value);
    } else if (option.starts_with("-artifact_prefix=")) {
      artifact = value + "crash-input";
    } else if (!option.starts_with("-")) {
      files.push_back(argv[i]);
    }
  }
  std::signal(SIGABRT, on_abort);
  __sanitizer_set_death_callback(keep_input);
  for (const char* path : files) run(read_file(path));
  if (files.empty()) run_for(seconds, max_size);
  return 0;
}
