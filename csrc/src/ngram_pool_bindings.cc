// N-gram pools for Python; a part of bindings.cc. Their calls are short, so they keep the GIL, which also makes them
// one thread's at a time.
#include "ngram_pool_bindings.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>

#include "ngram_pool.h"

namespace pia {

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using TokenArray = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ids = std::vector<std::int64_t>;

TokenId checked(std::int64_t token) {
  if (token < 0 || token >= kMaxVocabSize) {
    throw std::invalid_argument("token id " + std::to_string(token) + " is not a token id (0 to 2147483647)");
  }
  return static_cast<TokenId>(token);
}

std::vector<TokenId> checked(const Ids& tokens) {
  std::vector<TokenId> ids;
  ids.reserve(tokens.size());
  for (const std::int64_t token : tokens) ids.push_back(checked(token));
  return ids;
}

std::size_t at_least(std::int64_t least, const char* name, std::int64_t value) {
  if (value >= least && value < kMaxVocabSize) return static_cast<std::size_t>(value);
  throw std::invalid_argument(std::string(name) + " must be " + std::to_string(least) + " or more, not " +
                              std::to_string(value));
}

std::shared_ptr<NgramPool> make_pool(std::int64_t ngram_size, std::int64_t max_per_first, std::int64_t capacity) {
  const std::size_t most = at_least(0, "max_per_first", max_per_first);
  return std::make_shared<NgramPool>(at_least(2, "ngram_size", ngram_size), most ? most : NgramPool::kUnlimited,
                                     at_least(1, "capacity", capacity));
}

void add(NgramPool& pool, const std::vector<Ids>& ngrams) {
  for (const Ids& ngram : ngrams) {
    if (ngram.size() != pool.ngram_size()) {
      throw std::invalid_argument("this pool holds n-grams of " + std::to_string(pool.ngram_size()) + " tokens, not of " +
                                  std::to_string(ngram.size()));
    }
    pool.add(checked(ngram));
  }
}

void add_text(NgramPool& pool, const TokenArray& text) {
  for (std::size_t i = 0; i < text.size(); ++i) checked(text.data()[i]);
  pool.add_text({reinterpret_cast<const TokenId*>(text.data()), text.size()});
}

std::vector<std::vector<TokenId>> ngrams(const NgramPool& pool, std::int64_t first) {
  std::vector<std::vector<TokenId>> all;
  pool.for_each(checked(first), [&](Tokens rest) { all.emplace_back(rest.begin(), rest.end()); });
  return all;
}

std::pair<std::uint32_t, std::vector<TokenId>> next_tokens(const NgramPool& pool, const Ids& recent) {
  const NgramPool::NextTokens next = pool.next_tokens(checked(recent));
  return {next.match_length, {next.tokens.begin(), next.tokens.begin() + next.num}};
}

}  // namespace

void bind_ngram_pool(nb::module_& module) {
  nb::class_<NgramPool>(module, "NgramPool")
      .def_static("create", &make_pool, "ngram_size"_a, "max_per_first"_a, "capacity"_a)
      .def("add", &add, "ngrams"_a)
      .def("add_text", &add_text, "text"_a)
      .def("ngrams", &ngrams, "first"_a)
      .def("next_tokens", &next_tokens, "recent"_a)
      .def("__len__", &NgramPool::size)
      .def_prop_ro("ngram_size", &NgramPool::ngram_size)
      .def_prop_ro("num_bytes", &NgramPool::num_bytes);
}

}  // namespace pia
