"""What can be replayed: PIA, its peers as they are, and classes of the user's."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from pia.bench.drafters import built_in, find
from pia.bench.drafters.protocol import check
from pia.bench.drafters.trie import TrieDrafter
from pia.bench.replay import NoProbabilitiesError, fixed_budget, play, warm_up
from pia.bench.trace import Trace
from pia.drafting.budget import BudgetPolicy, CostCurve
from pia.drafting.tree import DraftTree
from pia.errors import DrafterError

ARCTIC = ["arctic", "arctic-wide", "arctic-full"]


def trace() -> Trace:
    generator = np.random.default_rng(0)
    phrases = [generator.integers(0, 50, 12).astype(np.int32) for _ in range(6)]
    texts = [np.concatenate([phrases[i] for i in generator.integers(0, 6, 8)]) for _ in range(24)]
    return Trace("phrases", [text[:24] for text in texts], [text[24:] for text in texts])


def figures(name):
    drafter = find(name).new()
    warm_up(drafter, trace().part(0, 12))
    result = play(drafter, trace().part(12, 24), fixed_budget(16))
    assert result.num_tokens == 12 * 71
    return result, drafter


def ids(*tokens):
    return np.array(tokens, np.int32)


@pytest.mark.parametrize("name", ["pia", "pld", "seed"])
def test_every_drafter_drafts(name):
    result, _ = figures(name)
    assert result.edl > 1.9
    assert max(result.num_nodes) <= 16
    assert result.has_probs == (name == "pia")


@pytest.mark.parametrize("name", ARCTIC)
def test_arctic_drafts(name):
    pytest.importorskip("arctic_inference.suffix_decoding")
    result, drafter = figures(name)
    assert result.edl > 2
    assert result.has_probs
    assert drafter.num_bytes() > 0


def test_arctic_goes_on_in_long_texts():
    pytest.importorskip("arctic_inference.suffix_decoding")
    long = Trace("long", [ids(1, 2)], [np.tile(np.arange(100, dtype=np.int32), 100)])
    assert play(find("arctic").new(), long, fixed_budget(8)).edl > 5


def test_a_missing_peer_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "arctic_inference.suffix_decoding", None)
    with pytest.raises(DrafterError, match=r"pip install --no-deps arctic-inference"):
        find("arctic").new()


def test_pld_is_a_chain_of_what_followed_before():
    drafter = find("pld").new()
    drafter.begin(ids(1, 2, 3, 4, 5, 6))
    drafter.observe([1, 2])
    token_ids, parents = drafter.propose(3)
    assert (token_ids, list(parents)) == ([3, 4, 5], [-1, 0, 1])
    drafter.begin(ids(7))
    assert list(drafter.propose(3)[0]) == []
    drafter.observe(list(range(10_000)))  # beyond its buffer
    drafter.observe([5, 6])
    assert drafter.propose(2)[0] == [7, 8]


def test_unknown_drafters_are_refused():
    for name, words in (
        ("magic", "unknown drafter 'magic'; choose from pia, pia-cache"),
        ("no_such_module_x:Class", "no module 'no_such_module_x'"),
        ("json:Nothing", "has no class 'Nothing'"),
        ("json:JSONEncoder", "lacks begin, propose, observe"),
    ):
        with pytest.raises(DrafterError, match=words):
            find(name)


def test_names_of_the_built_in():
    assert list(built_in()) == ["pia", "pia-cache", "pia-recycled", *ARCTIC, "pld", "seed", "token-recycling"]
    assert [name for name, kind in built_in().items() if kind.is_usual] == ["pia", *ARCTIC, "pld", "seed"]


# --- The protocol ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("proposal", "words"),
    [
        (None, "not NoneType"),
        ([1, 2], "not list"),
        (([1],), "not tuple"),
        (([1, 2], [-1]), "2 token ids, 1 parents"),
        (([1, 2], [-1, 0], [0.5]), "1 probabilities"),
        (([1, 2, 3], [-1, 0, 1]), "3 nodes for a budget of 2"),
        (([1, 2], [1, -1]), "node 0 with parent 1"),
        (([1, 2], [-1, -2]), "node 1 with parent -2"),
        (([1, 2], [-1, 0], [0.5, 0.6]), "node 1 with probability 0.6"),
        (([1], [-1], [1.5]), "node 0 with probability 1.5"),
        (([1], [-1], [float("nan")]), "probability nan"),
        (([1.5], [-1]), "token_ids as a flat row"),
        (([[1]], [-1]), "token_ids as a flat row"),
    ],
)
def test_bad_proposals_are_named(proposal, words):
    with pytest.raises(DrafterError, match=words):
        check(proposal, 2)


def test_good_proposals_become_trees_best_first():
    checked = check(([1, 2, 3, 4], [-1, 0, -1, 2], [0.3, 0.2, 0.6, 0.25]), 8)
    assert checked.tree.token_ids.tolist() == [3, 1, 4, 2]
    assert checked.tree.parents.tolist() == [-1, -1, 0, 1]
    assert checked.tree.probs.tolist() == pytest.approx([0.6, 0.3, 0.25, 0.2])
    assert (checked.has_probs, checked.has_sources) == (True, False)
    nothing = check(([], []), 8)
    assert (len(nothing.tree), nothing.has_probs) == (0, True)
    assert check(((4, 5), (-1, 0)), 8).has_probs is False
    whole = check(DraftTree.empty(), 8)
    assert (whole.has_probs, whole.has_sources) == (True, True)


def test_an_automatic_budget_needs_probabilities():
    policy = BudgetPolicy(CostCurve([1, 64], [1.0, 1.1]), max_nodes=16)
    with pytest.raises(NoProbabilitiesError):
        play(find("seed").new(), trace(), lambda: policy)


def test_warming_without_learn_shows_the_request():
    calls = []

    class Mine:
        def begin(self, prompt_ids):
            calls.append(prompt_ids.tolist())

        def propose(self, budget):
            return [], []

        def observe(self, token_ids):
            calls.append(token_ids)

    warm_up(Mine(), Trace("x", [ids(1, 2)], [ids(3, 4)]))
    assert calls == [[1, 2], [3, 4]]


# --- The seed's trie -------------------------------------------------------------------------------------------------


def serve(drafter, output):
    drafter.begin(ids())
    drafter.observe(output.tolist())
    drafter.end()


def test_the_trie_prefers_the_prompt_and_spends_itself_depth_first():
    drafter = TrieDrafter(branch_length=3)
    for _ in range(5):
        serve(drafter, ids(1, 2, 7, 8, 9))
    drafter.begin(ids(1, 2, 4, 5, 6))
    drafter.observe([1, 2])
    token_ids, parents = drafter.propose(6)
    assert token_ids == [4, 5, 6, 7, 8, 9]
    assert parents == [-1, 0, 1, -1, 3, 4]
    drafter.end()
    drafter.begin(ids(1, 2))
    token_ids, _ = drafter.propose(3)
    assert token_ids == [7, 8, 9]  # what the last prompt held counts no more, though its nodes stay


def test_the_trie_asks_a_shorter_context_where_a_longer_one_says_little():
    drafter = TrieDrafter(branch_length=4)
    serve(drafter, ids(1, 2, 3))
    serve(drafter, ids(9, 2, 5, 6, 7, 8))
    drafter.begin(ids(1, 2))
    assert set(drafter.propose(16)[0]) >= {3, 5, 6, 7, 8}


def test_output_is_drafted_once_a_whole_window_followed():
    drafter = TrieDrafter(branch_length=2)
    drafter.begin(ids(50))
    drafter.observe([1, 2])
    drafter.observe([1])
    assert drafter.propose(4)[0] == []  # three tokens must follow the first
    drafter.observe([9, 1])
    assert drafter.propose(4)[0][:1] == [2]


def test_the_trie_is_squeezed_when_much_has_changed(monkeypatch):
    from pia.bench.drafters import trie as module

    monkeypatch.setattr(module, "_SQUEEZE_AFTER", 1)
    monkeypatch.setattr(module, "_MAX_OUTPUT_NODES", 3)
    drafter = TrieDrafter(branch_length=2)
    serve(drafter, ids(1, 2, 3))
    serve(drafter, ids(1, 2, 4))
    serve(drafter, ids(1, 5, 6))
    drafter.begin(ids(0, 1))
    assert drafter.propose(8)[0] == [2]  # seen twice; what was seen once is gone
