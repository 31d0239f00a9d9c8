"""The draft cache by its own lights: drafts, stop tokens, namespaces, memory, bad input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pia.drafting.cache
from pia import _core
from pia.drafting.cache import DraftCache, LearnedSequences
from pia.drafting.tree import SOURCE_NAMES, DraftTree
from pia.errors import CacheMismatchError

STOP = 9


def drafted(tree: DraftTree) -> list[int]:
    """The first chain of a tree."""
    chain, node = [], -1
    while node in tree.parents.tolist():
        node = tree.parents.tolist().index(node)
        chain.append(int(tree.token_ids[node]))
    return chain


def continuations(cache: DraftCache, text: list[int], namespace: str = "") -> set[int]:
    """What the cache drafts directly after `text`."""
    session = cache.begin(text, namespace=namespace)
    tree = session.propose(64, 1)
    session.end(commit=False)
    return set(tree.token_ids.tolist())


def noise(seed: int, size: int, vocab_size: int = 50_000) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab_size, size, dtype=np.int32)


# --- Drafts ----------------------------------------------------------------------------------------------------------


def test_an_empty_cache_drafts_nothing():
    session = DraftCache().begin([])
    assert len(session.propose(16)) == 0
    session.observe([])
    assert len(session.propose(16)) == 0


def test_a_draft_says_who_proposed_it():
    cache = DraftCache()
    cache.insert([1, 2])
    tree = cache.begin([1]).propose(8)
    assert tree.token_ids.tolist() == [2]
    assert [SOURCE_NAMES[source] for source in tree.sources] == ["shared"]
    tree = DraftCache().begin([1, 2, 1]).propose(1)
    assert [SOURCE_NAMES[source] for source in tree.sources] == ["own"]


def test_more_counts_make_a_draft_likelier():
    cache, probs = DraftCache(), []
    for _ in range(5):
        cache.insert([1, 2])
        probs.append(float(cache.begin([1]).propose(1).probs[0]))
    assert probs == sorted(probs)


def test_sparse_contexts_bridge_a_token_never_seen():
    cache = DraftCache()
    cache.insert([5, 6, 7, 8, 9, 10])
    assert drafted(cache.begin([5, 6, 99]).propose(2)) == [8, 9]


def test_known_contexts_say_why():
    cache = DraftCache()
    cache.insert([1, 2, 3])
    assert cache.begin([1, 2]).known_contexts() == [
        ("shared", 0, 1, 1, {3: 1}),
        ("shared", 0, 2, 1, {3: 1}),
        ("shared", 1, 1, 1, {3: 1}),
    ]


def test_longer_contexts_decide():
    cache = DraftCache()
    cache.insert([6, 1, 2, 3, 7, 0, 6, 5, 2, 3, 8])
    assert drafted(cache.begin([6, 1, 2, 3]).propose(1)) == [7]
    assert drafted(cache.begin([6, 5, 2, 3]).propose(1)) == [8]


def test_probabilities_never_rise_along_the_tree():
    cache = DraftCache()
    for _ in range(200):
        cache.insert([1, 2, 3, 4])
    tree = cache.begin([1]).propose(3)
    assert tree.token_ids.tolist() == [2, 3, 4]
    assert 0.3 < tree.probs[2] <= tree.probs[1] <= tree.probs[0] <= 1


def test_what_comes_true_is_believed_more():
    """The mixing model learns online: after a page of a text that repeats itself, a right draft is nearly certain."""
    page = noise(0, 50, 1000).tolist()
    session = DraftCache().begin([*page, page[0]])
    first = float(session.propose(1).probs[0])
    for token in [*page[1:], *page * 20]:
        session.observe([token])
    assert float(session.propose(1).probs[0]) > max(first, 0.95)


def test_predictions_are_calibrated():
    """A source that is right four times in five: of drafts given probability p, p come true."""
    random = np.random.default_rng(0)
    session = DraftCache().begin([0])
    expected = hits = 0.0
    token = 0
    for step in range(4000):
        tree = session.propose(1)
        token = (token + 1) % 50 if random.random() < 0.8 else int(random.integers(50))
        if step > 1000:
            expected += float(tree.probs.sum())
            hits += token in tree.token_ids
        session.observe([token])
    assert expected == pytest.approx(hits, rel=0.05)


def test_drafts_stop_at_the_budget_and_at_the_depth():
    text = list(range(100))
    session = DraftCache().begin([*text, *text[:20]])
    assert len(session.propose(5, 32)) == 5
    assert session.propose(64, 32).depth == 32
    assert session.propose(64, 3).depth == 3
    assert len(session.propose(0)) == 0
    assert drafted(session.propose(10**6, 10**6))[:30] == text[20:50]


def test_a_huge_budget_ends():
    cache = DraftCache()
    cache.insert(noise(0, 3000, 8))
    tree = cache.begin(noise(1, 50, 8)).propose(10**6, 6)
    assert 8 < len(tree) <= 10**6
    assert (np.diff(tree.probs) <= 0).all()


def test_token_id_0_is_an_ordinary_token():
    cache = DraftCache(vocab_size=3)
    cache.insert([1, 2, 0])
    session = cache.begin([1, 2])
    assert drafted(session.propose(4)) == [0]
    session.observe([0, 1, 2, 0])
    assert drafted(session.propose(2)) == [1, 2]


def test_emitted_tokens_are_draftable_at_once_and_across_the_border():
    session = DraftCache().begin([5, 6])
    session.observe([7, 6])
    assert drafted(session.propose(2)) == [7, 6]
    session.observe([8, 5, 6])
    assert 7 in session.propose(4).token_ids


def test_a_tree_is_cut_to_its_best_part():
    cache = DraftCache()
    cache.insert(noise(0, 500, 5))
    session = cache.begin([1, 2, 3])
    tree = session.propose(40)
    small = session.propose(10)
    assert tree.prefix(10).token_ids.tolist() == small.token_ids.tolist()
    assert tree.prefix(10).parents.tolist() == small.parents.tolist()
    assert tree.depth == max(tree.depths()) <= 32
    assert "40 nodes" in repr(tree)
    assert len(DraftTree.empty()) == DraftTree.empty().depth == 0


# --- Stop tokens -----------------------------------------------------------------------------------------------------


def test_a_stop_token_ends_a_learned_sequence():
    cache = DraftCache()
    cache.insert([1, 2, STOP, 3, 4], stop_ids={STOP})
    assert continuations(cache, [1, 2]) == {STOP}
    assert continuations(cache, [1, 2, STOP]) == set()
    assert continuations(cache, [STOP, 3]) == {4}
    assert cache.num_tokens == 5


def test_a_stop_token_ends_what_an_output_teaches():
    cache = DraftCache()
    session = cache.begin([1], stop_ids={STOP})
    session.observe([2, STOP, 3, 4])
    session.end(commit=True)
    assert continuations(cache, [2]) == {STOP}
    assert continuations(cache, [STOP]) == set()


def test_the_whole_prompt_is_learned_across_stop_tokens():
    session = DraftCache().begin([5, STOP, 6, 7, 5], stop_ids={STOP})
    assert drafted(session.propose(3)) == [STOP, 6, 7]


# --- Requests --------------------------------------------------------------------------------------------------------


def test_only_the_output_is_shared_and_only_at_the_end():
    cache = DraftCache()
    session = cache.begin([1, 2, 3])
    session.observe([4, 5, 6])
    assert continuations(cache, [4, 5]) == set()
    session.end(commit=True)
    assert continuations(cache, [4, 5]) == {6}
    assert continuations(cache, [1, 2]) == set()
    assert continuations(cache, [2, 3]) == set()  # no context reaches back into the prompt
    assert cache.num_tokens == 3


def test_an_aborted_request_leaves_no_trace():
    cache = DraftCache()
    cache.insert(noise(0, 1000, 50))
    before = (cache.memory_usage, cache.num_contexts, cache.num_tokens, cache.namespaces)
    known = cache.begin([1, 2, 3]).known_contexts()
    for namespace in ("", "new"):
        session = cache.begin(noise(1, 500, 50), namespace=namespace)
        session.observe(noise(2, 500, 50))
        session.propose(16)
        session.end(commit=False)
    assert (cache.memory_usage, cache.num_contexts, cache.num_tokens, cache.namespaces) == before
    assert cache.begin([1, 2, 3]).known_contexts() == known


def test_a_dropped_session_counts_as_aborted():
    cache = DraftCache()
    session = cache.begin([1, 2, 3])
    session.observe([4, 5])
    del session
    assert cache.num_tokens == cache.request_memory_usage == 0


def test_end_may_be_called_again_but_nothing_else():
    cache = DraftCache()
    session = cache.begin([1, 2])
    session.observe([3, 4])
    session.end(commit=True)
    session.end(commit=True)
    session.end(commit=False)
    assert cache.num_tokens == 2
    with pytest.raises(ValueError, match="has ended"):
        session.propose(4)
    with pytest.raises(ValueError, match="has ended"):
        session.observe([1])
    assert repr(session) == "DraftSession(ended)"


def test_a_long_prompt_works_and_its_memory_is_freed():
    cache = DraftCache()
    prompt = noise(0, 100_000)
    session = cache.begin(prompt)
    session.wait()
    assert cache.request_memory_usage > 4 * len(prompt)
    session.observe(prompt[500:520])
    assert drafted(session.propose(16, 16)) == prompt[520:536].tolist()
    session.end(commit=False)
    assert cache.request_memory_usage == 0


def test_a_long_prompt_may_still_be_read_at_the_first_step():
    prompt = np.tile(noise(0, 25_000), 4)
    for _ in range(5):
        session = DraftCache().begin(prompt)
        session.observe(prompt[-8:])
        assert len(session.propose(16)) <= 16
        session.end(commit=False)


def test_a_long_prompt_is_learned_once_whatever_happens_meanwhile():
    prompt, output = noise(0, 30_000, 200), noise(1, 400, 200)
    patient, busy = DraftCache().begin(prompt), DraftCache().begin(prompt)
    patient.wait()
    for session in (patient, busy):
        for start in range(0, 400, 8):
            session.propose(8)
            session.observe(output[start : start + 8])
    busy.wait()
    assert patient.known_contexts() == busy.known_contexts()


@pytest.mark.parametrize("commit", [True, False])
def test_a_session_may_end_while_its_prompt_is_read(commit):
    cache = DraftCache()
    for _ in range(20):
        session = cache.begin(noise(0, 50_000))
        session.observe([1, 2, 3])
        session.end(commit=commit)
        with pytest.raises(ValueError, match="has ended"):
            session.wait()
    assert cache.num_tokens == (60 if commit else 0)
    assert cache.request_memory_usage == 0


def test_a_session_survives_clear():
    cache = DraftCache()
    cache.insert([1, 2, 3])
    session = cache.begin([1])
    cache.clear()
    assert len(session.propose(4)) == 0
    session.observe([5, 6])
    session.end(commit=True)
    assert continuations(cache, [5]) == {6}


# --- Namespaces ------------------------------------------------------------------------------------------------------


def test_namespaces_are_kept_apart():
    cache = DraftCache()
    cache.insert([1, 2], namespace="a")
    cache.insert([1, 3], namespace="b")
    assert continuations(cache, [1], "a") == {2}
    assert continuations(cache, [1], "b") == {3}
    assert continuations(cache, [1]) == set()
    assert cache.namespaces == ["a", "b"]
    cache.clear("a")
    assert continuations(cache, [1], "a") == set()
    assert continuations(cache, [1], "b") == {3}
    assert cache.namespaces == ["b"]
    cache.clear("never seen")
    cache.clear()
    assert cache.memory_usage == cache.num_contexts == cache.num_tokens == 0


def test_merge_learns_all_that_the_other_knows():
    ours, theirs = DraftCache(vocab_size=10), DraftCache(vocab_size=10, tokenizer_fingerprint="f")
    ours.insert([1, 2])
    theirs.insert([1, 3])
    theirs.insert([4, 5], namespace="b")
    ours.merge(theirs)
    assert continuations(ours, [1]) == {2, 3}
    assert continuations(ours, [4], "b") == {5}
    assert ours.tokenizer_fingerprint == "f"
    assert continuations(theirs, [1]) == {3}


def test_a_cache_belongs_to_one_tokenizer():
    cache = DraftCache()
    cache.bind(100, "f")
    cache.bind(100, "f")
    cache.bind()
    with pytest.raises(CacheMismatchError, match="vocabulary of 100 tokens, not 200"):
        cache.bind(200)
    with pytest.raises(CacheMismatchError, match="another tokenizer"):
        cache.bind(100, "g")
    with pytest.raises(CacheMismatchError):
        cache.merge(DraftCache(vocab_size=7))
    with pytest.raises(ValueError, match="vocab_size"):
        DraftCache(vocab_size=0)


# --- Forgetting ------------------------------------------------------------------------------------------------------


def test_a_request_can_be_forgotten():
    cache = DraftCache()
    cache.insert([1, 2, 3])
    for prompt, output in (([7], [1, 2, 4, STOP, 5, 6]), ([8], [1, 2, 4])):
        session = cache.begin(prompt, stop_ids={STOP}, request_id="r")
        session.observe(output)
        session.end(commit=True)
    assert continuations(cache, [1, 2]) == {3, 4}
    assert cache.forget("r", namespace="elsewhere") == cache.forget("s") == 0
    assert cache.forget("r") == 9
    assert cache.forget("r") == 0
    assert continuations(cache, [1, 2]) == {3}
    assert continuations(cache, [5]) == set()
    assert cache.num_tokens == 3
    cache.check_integrity()


def test_forgetting_all_leaves_nothing():
    cache = DraftCache()
    for index in range(200):
        cache.insert(noise(index, 100, 30), request_id=f"r{index}", namespace="a")
    for index in range(200):
        assert cache.forget(f"r{index}", namespace="a") == 100
        if index % 40 == 0:
            cache.check_integrity()
    assert cache.memory_usage == cache.num_contexts == cache.num_tokens == 0
    assert cache.namespaces == []


def test_forgetting_is_exact_in_a_large_cache():
    """Learned in bulk, half of it forgotten one by one, against a cache that learned the other half one by one."""
    large, small = DraftCache(), DraftCache()
    texts = [(np.random.default_rng(seed).zipf(1.3, 400) % 250).astype(np.int32) for seed in range(400)]
    log = LearnedSequences(
        np.concatenate(texts), np.full(400, 400, np.int32), np.arange(400, dtype=np.int32) % 2, ["stays", "goes"]
    )
    large.import_log(log)
    for text in texts[::2]:
        small.insert(text)
    assert large.num_contexts > 1.4 * small.num_contexts
    assert large.forget("goes") == 200 * 400
    large.check_integrity()
    assert large.num_contexts == small.num_contexts
    assert large.num_tokens == small.num_tokens
    for text in texts[:40]:
        trees = [cache.begin(text[:20]).propose(64) for cache in (large, small)]
        assert trees[0].token_ids.tolist() == trees[1].token_ids.tolist()
        assert trees[0].probs.tolist() == trees[1].probs.tolist()


def test_a_sequence_can_be_forgotten_without_an_id():
    cache = DraftCache()
    for _ in range(2):
        cache.insert([1, 2, STOP, 3, 4], stop_ids={STOP})
    assert cache.forget_sequence([1, 2]) == 0
    assert cache.forget_sequence([1, 2, STOP, 3, 4], stop_ids={STOP}) == 5
    assert continuations(cache, [3]) == {4}
    assert cache.forget_sequence([3, 4]) == 2
    assert continuations(cache, [3]) == set()
    assert cache.num_tokens == 3


def test_what_the_log_drops_for_room_is_forgotten():
    cache = DraftCache(max_bytes=1 << 16)
    first = [1, 2, 3, 4, 5, 6, 7, 8]
    cache.insert(first, request_id="old")
    for seed in range(40):
        cache.insert(noise(seed, 50) + 100)
    assert cache.forget("old") == 0
    assert continuations(cache, first[:4]) == set()
    cache.check_integrity()


def test_forgetting_in_a_full_cache_leaves_no_trace_of_the_request():
    cache = DraftCache(max_bytes=1 << 18)
    for seed in range(60):
        cache.insert(noise(seed, 200, 500), request_id=f"r{seed % 10}")
    for index in range(10):
        cache.forget(f"r{index}")
        cache.check_integrity()
    assert cache.num_contexts == cache.num_tokens == 0


def test_common_contexts_keep_their_most_frequent_continuations():
    cache = DraftCache()
    for token in range(100, 700):
        cache.insert([1, token])
    for _ in range(3):
        cache.insert([1, 50])
    assert drafted(cache.begin([1]).propose(1)) == [50]
    cache.check_integrity()


def test_merging_keeps_request_ids():
    ours, theirs = DraftCache(), DraftCache()
    theirs.insert([1, 2], request_id="r")
    ours.insert([1, 2])
    ours.merge(theirs)
    assert ours.forget("r") == 2
    assert ours.num_tokens == 2


@pytest.mark.parametrize("request_id", ["", "x" * 257])
def test_bad_request_ids_are_refused(request_id):
    cache = DraftCache()
    for call in (cache.begin, cache.insert):
        with pytest.raises(ValueError, match="1 to 256 bytes"):
            call([1], request_id=request_id)
    with pytest.raises(ValueError, match="1 to 256 bytes"):
        cache.forget(request_id)


# --- Memory ----------------------------------------------------------------------------------------------------------


def test_memory_stays_within_its_bound_and_flat():
    cache = DraftCache(max_bytes=2 << 20)
    usage = []
    for seed in range(120):
        cache.insert(noise(seed, 1000))
        usage.append(cache.memory_usage)
    cache.check_integrity()
    assert max(usage) <= cache.max_bytes
    assert min(usage[60:]) > 0.8 * cache.max_bytes
    assert cache.num_contexts > 20_000


def test_what_recurs_outlives_what_does_not():
    cache = DraftCache(max_bytes=1 << 20)
    habit = noise(12345, 40).tolist()
    for seed in range(150):
        cache.insert(noise(seed, 400))
        if seed % 5 == 0 and seed < 100:
            cache.insert(habit)
    assert drafted(cache.begin(habit[:8]).propose(16, 16)) == habit[8:24]


def test_a_newcomer_finds_room_in_a_full_cache():
    cache = DraftCache(max_bytes=1 << 20)
    for seed in range(60):
        cache.insert(noise(seed, 1000), namespace="large")
    text = noise(99, 60).tolist()
    cache.insert(text, namespace="small")
    assert drafted(cache.begin(text[:8], namespace="small").propose(8)) == text[8:16]
    for index in range(200):
        cache.insert([index, index + 1], namespace=f"tenant {index}")
    cache.check_integrity()
    assert cache.memory_usage <= cache.max_bytes


def test_a_sequence_larger_than_the_memory_is_survived():
    cache = DraftCache(max_bytes=1 << 16)
    cache.insert(noise(0, 100_000))
    cache.check_integrity()
    assert 0 < cache.memory_usage <= cache.max_bytes
    assert 0 < cache.num_tokens < 100_000
    assert cache.export_sequences()[0][-1] == noise(0, 100_000)[-1]


def test_memory_per_token_is_modest():
    cache = DraftCache()
    cache.insert(noise(0, 200_000))  # nothing recurs: the most contexts a token can make
    assert cache.memory_usage < 150 * cache.num_tokens


def test_the_least_memory_is_named():
    with pytest.raises(ValueError, match="64 KiB"):
        DraftCache(max_bytes=1000)
    with pytest.raises(ValueError, match="64 KiB"):
        DraftCache(max_bytes=-1)


# --- Input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [list, tuple, np.array, lambda ids: np.array(ids, np.int32), bytearray])
def test_all_sequences_of_whole_numbers_are_taken(make):
    cache = DraftCache(vocab_size=10)
    cache.insert(make([1, 2, 3]))
    session = cache.begin(make([1]))
    session.observe(make([2]))
    assert drafted(session.propose(1)) == [3]
    cache.insert(make([]))


def test_strided_arrays_are_taken():
    cache = DraftCache()
    cache.insert(np.arange(20, dtype=np.int32)[::2])
    assert continuations(cache, [4]) == {6}


@pytest.mark.parametrize("make", [list, np.array, lambda ids: np.array(ids, np.int32)])
@pytest.mark.parametrize(("ids", "message"), [([1, -2], "token id -2"), ([1, 10], "token id 10 .*vocabulary of 10")])
def test_ids_outside_the_vocabulary_are_refused(make, ids, message):
    cache = DraftCache(vocab_size=10)
    session = cache.begin([1])
    for call in (cache.insert, cache.begin, session.observe):
        with pytest.raises(ValueError, match=message):
            call(make(ids))
    session.end(commit=True)
    assert cache.num_tokens == 0


@pytest.mark.parametrize("ids", [[1 << 31], [1 << 40], [-1]])
def test_ids_that_cannot_be_are_refused_without_a_vocabulary(ids):
    cache = DraftCache()
    for call in (cache.insert, cache.begin, cache.begin([1]).observe):
        with pytest.raises(ValueError, match="is not a token id"):
            call(ids)


def test_other_shapes_and_types_are_refused():
    cache = DraftCache()
    with pytest.raises(ValueError, match="whole numbers"):
        cache.insert([1.5])
    with pytest.raises(ValueError, match="flat"):
        cache.begin(np.zeros((1, 3), np.int32))


def test_bad_sizes_are_refused():
    session = DraftCache().begin([1])
    with pytest.raises(ValueError, match="budget must be 0 or more, not -1"):
        session.propose(-1)
    with pytest.raises(ValueError, match="max_depth must be 1 or more, not 0"):
        session.propose(4, 0)


def test_repr_says_what_is_inside():
    cache = DraftCache(max_bytes=1 << 20)
    cache.insert([1, 2, 3])
    assert repr(cache) == "DraftCache(3 tokens, 4 contexts, 0.0 of 1 MiB)"


def test_the_stub_in_the_source_tree_is_the_built_one():
    built = Path(_core.__file__).with_name("_core.pyi")
    kept = Path(pia.drafting.cache.__file__).parents[1] / "_core.pyi"
    if not built.exists() or built == kept:
        pytest.skip("not an editable installation")
    assert kept.read_text() == built.read_text(), f"copy {built} to src/pia"


def test_drafting_does_not_import_torch():
    code = "import pia.drafting.cache, pia.drafting.cache_file, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
