// Corpora for Python; the other half of bindings.cc.
#include "corpus_bindings.h"

#include <nanobind/stl/function.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cerrno>

#include "context_hash.h"
#include "corpus.h"
#include "corpus_builder.h"

namespace pia {

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using TokenArray = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Shape = std::tuple<std::uint32_t, std::uint32_t>;
using Counts = std::tuple<std::uint32_t, std::vector<std::tuple<TokenId, std::uint32_t>>>;

std::vector<Shape> shapes() {
  std::vector<Shape> all;
  for (const auto [skip, length] : kShapes) all.emplace_back(skip, length);
  return all;
}

// Changes when contexts are hashed differently, so that a file of old hashes is not taken for one of ours.
std::uint64_t hash_probe() {
  std::array<TokenId, kMaxOrder> text;
  for (std::uint32_t i = 0; i < kMaxOrder; ++i) text[i] = 1000 * i + 7;
  ContextHashes hashes;
  hash_contexts(text.data() + text.size(), text.size(), hashes);
  std::uint64_t probe = 0;
  hashes.for_each([&](std::uint64_t hash) { probe = mix64(probe ^ hash); });
  return probe;
}

void extend(CorpusBuilder& builder, const TokenArray& tokens) {
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const std::int64_t token = tokens.data()[i];
    if (token < 0 || token >= builder.vocab_size()) {
      throw std::invalid_argument("token id " + std::to_string(token) + " lies outside the vocabulary of " +
                                  std::to_string(builder.vocab_size()) + " tokens");
    }
  }
  const nb::gil_scoped_release released;
  builder.extend({reinterpret_cast<const TokenId*>(tokens.data()), tokens.size()});
}

CorpusBuilder::Figures finish(CorpusBuilder& builder, const CorpusBuilder::Progress& progress) {
  const nb::gil_scoped_release released;
  return builder.finish([&](std::uint64_t done, std::uint64_t all) {
    const nb::gil_scoped_acquire acquired;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();  // Ctrl-C
    progress(done, all);
  });
}

std::shared_ptr<Corpus> open(int file, std::int64_t vocab_size, std::uint64_t num_buckets, std::uint64_t num_words,
                             std::uint64_t directory_checksum, std::uint64_t data_checksum) {
  const nb::gil_scoped_release released;
  return std::make_shared<Corpus>(
      file, Corpus::Layout{vocab_size, num_buckets, num_words, directory_checksum, data_checksum});
}

// (total, [(token, count), ...]) of the context of one shape that the tokens end with.
std::optional<Counts> counts(const Corpus& corpus, const TokenArray& context, std::size_t shape) {
  ContextHashes hashes;
  hash_contexts(reinterpret_cast<const TokenId*>(context.data()) + context.size(), context.size(), hashes);
  if (shape >= kNumShapes || !hashes.has(shape)) throw std::invalid_argument("the context is too short for its shape");
  std::optional<Counts> found;
  corpus.visit(hashes.values[shape], [&](const Continuations& continuations) {
    auto& [total, edges] = found.emplace();
    total = continuations.total;
    for (const Edge& edge : continuations.edges) edges.emplace_back(edge.token, edge.count);
  });
  return found;
}

// For measurements: looks up all contexts of a text as a draft model would, and returns how many there are, how many
// are known, and the sum of their totals.
std::tuple<std::uint64_t, std::uint64_t, std::uint64_t> probe(const Corpus& corpus, const TokenArray& text) {
  const nb::gil_scoped_release released;
  const auto* tokens = reinterpret_cast<const TokenId*>(text.data());
  std::uint64_t num_all = 0, num_known = 0, sum = 0;
  ContextHashes hashes;
  for (std::size_t i = 1; i <= text.size(); ++i) {
    hash_contexts(tokens + i, i, hashes);
    hashes.for_each([&](std::uint64_t hash) { corpus.prefetch_header(hash); });
    hashes.for_each([&](std::uint64_t hash) { corpus.prefetch(hash); });
    hashes.for_each([&](std::uint64_t hash) { corpus.prefetch_edges(hash); });
    hashes.for_each([&](std::uint64_t hash) {
      ++num_all;
      num_known += corpus.visit(hash, [&](const Continuations& found) { sum += found.total; });
    });
  }
  return {num_all, num_known, sum};
}

void translate_system_error(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const std::system_error& error) {
    errno = error.code().value();
    PyErr_SetFromErrno(PyExc_OSError);
  }
}

}  // namespace

void bind_corpora(nb::module_& module) {
  nb::register_exception_translator(translate_system_error);
  using released = nb::call_guard<nb::gil_scoped_release>;
  using Figures = CorpusBuilder::Figures;

  module.def("context_shapes", &shapes);
  module.def("hash_probe", &hash_probe);
  module.attr("CORPUS_PAGE_BYTES") = corpus::kPageBytes;

  nb::class_<Corpus>(module, "Corpus")
      .def_static("open", &open, "file"_a, "vocab_size"_a, "num_buckets"_a, "num_words"_a, "directory_checksum"_a,
                  "data_checksum"_a)
      .def("counts", &counts, "context"_a, "shape"_a)
      .def("probe", &probe, "text"_a)
      .def("preload", &Corpus::preload, released())
      .def("find_fault", &Corpus::find_fault, released())
      .def_prop_ro("vocab_size", &Corpus::vocab_size)
      .def_prop_ro("num_bytes", &Corpus::num_bytes);

  nb::class_<Figures>(module, "CorpusFigures")
      .def_ro("num_tokens", &Figures::num_tokens)
      .def_ro("num_sequences", &Figures::num_sequences)
      .def_ro("num_contexts", &Figures::num_contexts)
      .def_ro("num_buckets", &Figures::num_buckets)
      .def_ro("num_words", &Figures::num_words)
      .def_ro("directory_checksum", &Figures::directory_checksum)
      .def_ro("data_checksum", &Figures::data_checksum);

  nb::class_<CorpusBuilder>(module, "CorpusBuilder")
      .def(nb::init<const std::string&, std::int64_t, std::size_t>(), "path"_a, "vocab_size"_a, "max_bytes"_a)
      .def("extend", &extend, "tokens"_a)
      .def("end_sequence", &CorpusBuilder::end_sequence)
      .def("finish", &finish, "progress"_a)
      .def_prop_ro("num_tokens", &CorpusBuilder::num_tokens)
      .def_prop_ro("num_sequences", &CorpusBuilder::num_sequences)
      .def_prop_ro("num_runs", &CorpusBuilder::num_runs);
}

}  // namespace pia
