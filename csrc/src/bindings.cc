// The one file that knows both Python and the draft cache. Everything that takes time runs without the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <stdexcept>
#include <unordered_map>

#include "corpus_bindings.h"
#include "draft_session.h"
#include "half.h"
#include "ngram_pool_bindings.h"
#include "top_tokens.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using pia::Corpora;
using pia::DraftCache;
using pia::DraftSession;
using pia::TokenId;
using pia::Tokens;
using TokenArray = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

[[noreturn]] void refuse(std::int64_t token, std::int64_t vocab_size) {
  if (token < 0 || vocab_size == 0) {
    throw std::invalid_argument("token id " + std::to_string(token) + " is not a token id (0 to 2147483647)");
  }
  throw std::invalid_argument("token id " + std::to_string(token) + " lies outside the vocabulary of " +
                              std::to_string(vocab_size) + " tokens: was the text encoded by another tokenizer?");
}

void check(std::int64_t token, std::int64_t vocab_size) {
  const std::int64_t limit = vocab_size ? vocab_size : pia::kMaxVocabSize;
  if (token < 0 || token >= limit) refuse(token, vocab_size);
}

// The array's memory read as token ids, after a look at every one of them.
Tokens checked(const TokenArray& tokens, std::int64_t vocab_size) {
  for (std::size_t i = 0; i < tokens.size(); ++i) check(tokens.data()[i], vocab_size);
  return {reinterpret_cast<const TokenId*>(tokens.data()), tokens.size()};
}

std::vector<TokenId> checked(const std::vector<std::int64_t>& tokens, std::int64_t vocab_size) {
  for (const std::int64_t token : tokens) check(token, vocab_size);
  return {tokens.begin(), tokens.end()};
}

// A session is one thread's at a time. Python can't be trusted with that, so every call takes its turn or is refused.
class Turn {
 public:
  explicit Turn(DraftSession& session) : session_(session) {
    if (!session.try_enter()) throw std::invalid_argument("a draft session can't be used by two threads at once");
  }
  ~Turn() { session_.leave(); }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  DraftSession& session_;
};

std::unique_ptr<DraftSession> begin(DraftCache& cache, const TokenArray& prompt,
                                    const std::vector<std::int64_t>& stop_ids, const std::string& space,
                                    const std::string& request, const TokenArray& predicted,
                                    const Corpora& corpora, bool reads_counts, bool recycles) {
  const Tokens tokens = checked(prompt, cache.vocab_size());
  const Tokens expected = checked(predicted, cache.vocab_size());
  const auto stops = checked(stop_ids, 0);
  const nb::gil_scoped_release released;
  return cache.begin(tokens, stops, space, request, expected, corpora, {reads_counts, recycles});
}

void learn(DraftCache& cache, const TokenArray& text, const std::vector<std::int64_t>& stop_ids,
           const std::string& space, const std::string& request) {
  const Tokens tokens = checked(text, cache.vocab_size());
  const auto stops = checked(stop_ids, 0);
  const nb::gil_scoped_release released;
  cache.learn(tokens, stops, space, request);
}

std::size_t forget_text(DraftCache& cache, const TokenArray& text, const std::vector<std::int64_t>& stop_ids,
                        const std::string& space) {
  const Tokens tokens = checked(text, cache.vocab_size());
  const auto stops = checked(stop_ids, 0);
  const nb::gil_scoped_release released;
  return cache.forget_text(tokens, stops, space);
}

const std::string& request_at(const std::vector<std::string>& requests, std::int64_t owner) {
  static const std::string none;
  if (owner < 0) return none;
  if (static_cast<std::size_t>(owner) >= requests.size()) throw std::invalid_argument("a sequence has an unknown owner");
  return requests[static_cast<std::size_t>(owner)];
}

// Learns `lengths[0]` tokens as one sequence, the next `lengths[1]` as another, and so on. `owners` may be empty, or
// say for each sequence which of `requests` it comes from (-1: none).
void learn_many(DraftCache& cache, const TokenArray& text, const TokenArray& lengths, const TokenArray& owners,
                const std::vector<std::string>& requests, const std::string& space) {
  const Tokens tokens = checked(text, cache.vocab_size());
  if (owners.size() != 0 && owners.size() != lengths.size()) {
    throw std::invalid_argument("there must be as many owners as sequences");
  }
  std::vector<pia::LearnedSequence> sequences;
  std::size_t at = 0;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    if (lengths.data()[i] < 0) throw std::invalid_argument("a sequence has a negative length");
    const auto length = static_cast<std::size_t>(lengths.data()[i]);
    if (length > tokens.size() - at) throw std::invalid_argument("the lengths do not add up to the number of tokens");
    sequences.push_back({tokens.subspan(at, length), request_at(requests, owners.size() ? owners.data()[i] : -1)});
    at += length;
  }
  if (at != tokens.size()) throw std::invalid_argument("the lengths do not add up to the number of tokens");
  const nb::gil_scoped_release released;
  cache.learn_many(std::move(sequences), space);
}

template <class T>
nb::bytes as_bytes(const std::vector<T>& values) {
  return nb::bytes(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

using Log = nb::typed<nb::tuple, nb::bytes, nb::bytes, nb::bytes, std::vector<std::string>>;

// (tokens, lengths, owners, requests) of all learned sequences, the first three as the bytes of int32 arrays; an owner
// is an index into `requests`, or -1.
Log sequences(const DraftCache& cache, const std::string& space) {
  std::vector<TokenId> tokens;
  std::vector<std::uint32_t> lengths;
  std::vector<std::int32_t> owners;
  std::vector<std::string> requests;
  {
    const nb::gil_scoped_release released;
    std::unordered_map<std::string, std::int32_t> index;
    cache.read_log(space, [&](const std::vector<TokenId>& sequence, const std::string* request) {
      lengths.push_back(static_cast<std::uint32_t>(sequence.size()));
      tokens.insert(tokens.end(), sequence.begin(), sequence.end());
      owners.push_back(-1);
      if (!request) return;
      const auto [at, is_new] = index.try_emplace(*request, static_cast<std::int32_t>(requests.size()));
      if (is_new) requests.push_back(*request);
      owners.back() = at->second;
    });
  }
  return Log(nb::make_tuple(as_bytes(tokens), as_bytes(lengths), as_bytes(owners), requests));
}

// n nodes as one bytes object: n token ids (int32), n parents (int32), n path probabilities (float32), n sources
// (uint8). One object costs far less than four arrays, and numpy reads it in place.
nb::bytes pack(std::span<const pia::DraftNode> nodes) {
  const std::size_t count = nodes.size();
  auto packed = nb::steal<nb::bytes>(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(count * 13)));
  if (!packed.is_valid()) throw nb::python_error();
  char* at = PyBytes_AS_STRING(packed.ptr());
  for (std::size_t i = 0; i < count; ++i) {
    std::memcpy(at + 4 * i, &nodes[i].token, 4);
    std::memcpy(at + 4 * (count + i), &nodes[i].parent, 4);
    std::memcpy(at + 4 * (2 * count + i), &nodes[i].prob, 4);
    at[12 * count + i] = static_cast<char>(nodes[i].source);
  }
  return packed;
}

std::uint32_t checked_depth(std::int64_t budget, std::int64_t max_depth) {
  if (budget < 0) throw std::invalid_argument("budget must be 0 or more, not " + std::to_string(budget));
  if (max_depth < 1) throw std::invalid_argument("max_depth must be 1 or more, not " + std::to_string(max_depth));
  return static_cast<std::uint32_t>(std::min<std::int64_t>(max_depth, INT32_MAX));
}

nb::bytes propose(DraftSession& session, std::int64_t budget, std::int64_t max_depth) {
  const std::uint32_t depth = checked_depth(budget, max_depth);
  const Turn turn(session);
  std::span<const pia::DraftNode> nodes;
  {
    const nb::gil_scoped_release released;
    nodes = session.propose(static_cast<std::size_t>(budget), depth);
  }
  return pack(nodes);
}

void observe(DraftSession& session, const std::vector<std::int64_t>& tokens) {
  const auto ids = checked(tokens, session.cache().vocab_size());
  const Turn turn(session);
  const nb::gil_scoped_release released;
  session.observe(ids);
}

void observe_array(DraftSession& session, const TokenArray& tokens) {
  const Tokens ids = checked(tokens, session.cache().vocab_size());
  const Turn turn(session);
  const nb::gil_scoped_release released;
  session.observe(ids);
}

void advance(DraftSession& session, const std::vector<std::int64_t>& tokens) {
  const auto ids = checked(tokens, session.cache().vocab_size());
  const Turn turn(session);
  const nb::gil_scoped_release released;
  session.advance(ids);
}

void learn_emitted(DraftSession& session) {
  const Turn turn(session);
  const nb::gil_scoped_release released;
  session.learn();
}

std::size_t prepare(DraftSession& session, const TokenArray& tokens, const TokenArray& parents, std::int64_t budget,
                    std::int64_t max_depth, std::size_t max_outcomes) {
  const std::uint32_t depth = checked_depth(budget, max_depth);
  if (tokens.size() != parents.size()) throw std::invalid_argument("a draft needs a parent for each token");
  const pia::FedDraft fed{checked(tokens, 0), {parents.data(), parents.size()}};
  const Turn turn(session);
  const nb::gil_scoped_release released;
  return session.prepare(fed, static_cast<std::size_t>(budget), depth, max_outcomes);
}

using TopIds = nb::ndarray<const std::int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using TopHalves = nb::ndarray<const std::uint16_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// A row's likeliest tokens; ids beyond the vocabulary, which a model may have room for, are left out.
pia::TopTokens top_of(const std::int32_t* ids, const std::uint16_t* halves, std::size_t count, std::int64_t vocab_size) {
  const std::int64_t limit = vocab_size ? vocab_size : pia::kMaxVocabSize;
  pia::TopTokens top{};
  std::size_t num_kept = 0;
  for (std::size_t i = 0; i < count && num_kept < pia::kNumTop; ++i) {
    if (ids[i] < 0 || ids[i] >= limit) continue;
    top.tokens[num_kept] = static_cast<TokenId>(ids[i]);
    top.likelihoods[num_kept++] = pia::likelihood_of(pia::float_of_half(halves[i]));
  }
  return top;
}

// `ids` and `halves` (the bits of float16 probabilities) are [1 + nodes, k]: what follows the text, and each node.
void recycle(DraftSession& session, const TokenArray& tokens, const TokenArray& parents, const TopIds& ids,
             const TopHalves& halves) {
  const std::size_t count = tokens.size() + 1;
  const std::size_t width = ids.shape(1);
  if (parents.size() != tokens.size()) throw std::invalid_argument("a draft needs a parent for each token");
  if (ids.shape(0) < count || halves.shape(0) != ids.shape(0) || halves.shape(1) != width) {
    throw std::invalid_argument("a row of likeliest tokens and their probabilities is needed for the text and each node");
  }
  const pia::FedDraft fed{checked(tokens, 0), {parents.data(), parents.size()}};
  for (std::size_t i = 0; i < parents.size(); ++i) {
    if (parents.data()[i] < -1 || parents.data()[i] >= static_cast<std::int64_t>(i)) {
      throw std::invalid_argument("parents come before their children");
    }
  }
  const Turn turn(session);
  const nb::gil_scoped_release released;
  std::vector<pia::TopTokens> top(count);
  for (std::size_t i = 0; i < count; ++i) {
    top[i] = top_of(ids.data() + i * width, halves.data() + i * width, width, session.cache().vocab_size());
  }
  session.recycle(fed, top);
}

void wait(DraftSession& session) {
  const Turn turn(session);
  const nb::gil_scoped_release released;
  session.wait();
}

// One (source, tokens skipped, tokens taken, total, {token: count}) for each context of the text's end that is known.
using KnownContexts =
    nb::typed<nb::list, nb::typed<nb::tuple, int, std::uint32_t, std::uint32_t, std::uint32_t,
                                  nb::typed<nb::dict, std::uint32_t, std::uint32_t>>>;

KnownContexts known_contexts(DraftSession& session) {
  const Turn turn(session);
  nb::list result;
  for (const auto& context : session.known_contexts()) {
    nb::dict counts;
    for (const pia::Edge& edge : context.edges) counts[nb::int_(edge.token)] = edge.count;
    result.append(nb::make_tuple(static_cast<int>(context.source), context.shape.skip, context.shape.length,
                                 context.total, counts));
  }
  return KnownContexts(result);
}

void end(DraftSession& session, bool commit) {
  const Turn turn(session);
  const nb::gil_scoped_release released;
  session.end(commit);
}

using Logits = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using IdsOut = nb::ndarray<std::int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using HalvesOut = nb::ndarray<std::uint16_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Fills `ids` and `halves`, [rows, count], from logits [rows, vocab].
void top_tokens(const Logits& logits, std::size_t count, IdsOut ids, HalvesOut halves) {
  const std::size_t rows = logits.shape(0);
  if (count < 1 || count > logits.shape(1)) throw std::invalid_argument("count must lie between 1 and the vocabulary's size");
  if (ids.shape(0) != rows || halves.shape(0) != rows || ids.shape(1) != count || halves.shape(1) != count) {
    throw std::invalid_argument("ids and halves must have the rows of the logits and `count` columns");
  }
  const nb::gil_scoped_release released;
  for (std::size_t row = 0; row < rows; ++row) {
    pia::top_tokens({logits.data() + row * logits.shape(1), logits.shape(1)}, {ids.data() + row * count, count},
                    {halves.data() + row * count, count});
  }
}

}  // namespace

NB_MODULE(_core, module) {
  nb::set_leak_warnings(false);  // objects that outlive the interpreter are no news to a user
  module.doc() = "Native draft cache; see pia.drafting.cache for its Python face.";
  using released = nb::call_guard<nb::gil_scoped_release>;
  pia::bind_corpora(module);
  pia::bind_ngram_pool(module);

  module.def("top_tokens", &top_tokens, "logits"_a, "count"_a, "ids"_a, "halves"_a);

  nb::class_<DraftCache>(module, "Cache")
      .def_static("create", [](std::size_t max_bytes) { return std::make_shared<DraftCache>(max_bytes); },
                  "max_bytes"_a)
      .def("begin", &begin, "prompt"_a, "stop_ids"_a, "namespace"_a, "request"_a, "predicted"_a, "corpora"_a,
           "reads_counts"_a, "recycles"_a)
      .def("learn", &learn, "text"_a, "stop_ids"_a, "namespace"_a, "request"_a)
      .def("learn_many", &learn_many, "text"_a, "lengths"_a, "owners"_a, "requests"_a, "namespace"_a)
      .def("forget", &DraftCache::forget, "request"_a, "namespace"_a, released())
      .def("forget_text", &forget_text, "text"_a, "stop_ids"_a, "namespace"_a)
      .def("sequences", &sequences, "namespace"_a)
      .def("clear", nb::overload_cast<const std::string&>(&DraftCache::clear), "namespace"_a, released())
      .def("clear_all", nb::overload_cast<>(&DraftCache::clear), released())
      .def("find_fault", &DraftCache::find_fault, released())
      .def_prop_ro("namespaces", &DraftCache::namespaces)
      .def_prop_ro("max_bytes", &DraftCache::max_bytes)
      .def_prop_ro("num_bytes", &DraftCache::num_bytes)
      .def_prop_ro("num_request_bytes", &DraftCache::num_request_bytes)
      .def_prop_ro("num_tokens", &DraftCache::num_tokens)
      .def_prop_ro("num_contexts", &DraftCache::num_contexts)
      .def_prop_rw("vocab_size", &DraftCache::vocab_size, &DraftCache::set_vocab_size);

  nb::class_<DraftSession>(module, "Session")
      .def("propose", &propose, "budget"_a, "max_depth"_a)
      .def("observe", &observe, "tokens"_a)
      .def("observe_array", &observe_array, "tokens"_a)
      .def("advance", &advance, "tokens"_a)
      .def("learn", &learn_emitted)
      .def("recycle", &recycle, "tokens"_a, "parents"_a, "ids"_a, "halves"_a)
      .def("prepare", &prepare, "tokens"_a, "parents"_a, "budget"_a, "max_depth"_a, "max_outcomes"_a)
      .def_prop_ro("was_prepared", &DraftSession::was_prepared)
      .def("wait", &wait)
      .def("known_contexts", &known_contexts)
      .def("end", &end, "commit"_a)
      .def_prop_ro("has_ended", &DraftSession::has_ended)
      .def_prop_ro("num_bytes", &DraftSession::num_bytes);
}
