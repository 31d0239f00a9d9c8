"""Drafts from recorded likeliest tokens, and Token Recycling as published."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pia.bench.drafters import find
from pia.bench.drafters.protocol import SourceDrafter
from pia.bench.drafters.token_recycling import NUM_NODES, TokenRecycling, template
from pia.bench.replay import fixed_budget, play, warm_up
from pia.bench.trace import Trace
from pia.drafting.top_tokens import TopTokens
from pia.drafting.tree import DraftTree
from pia.lookahead import Lookahead

PROMPT = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5]])


def top_of(rows: list[list[int]]) -> TopTokens:
    ids = np.array(rows, np.int32)
    return TopTokens(ids, np.tile(np.linspace(0.5, 0.1, ids.shape[1], dtype=np.float16), (len(ids), 1)))


def counting_trace(num_requests: int = 2) -> Trace:
    """Outputs that count up, whose tokens are never seen twice; what follows each was always found likely before."""
    outputs = [np.arange(10, 40, dtype=np.int32) for _ in range(num_requests)]
    tops = [top_of([[token, token + 500] for token in output.tolist()]) for output in outputs]
    return Trace("count", [np.array([9], np.int32) for _ in outputs], outputs, tops=tops)


class Listener:
    """Drafts the next two tokens, the second wrongly from 20 on, and remembers what it is told."""

    def __init__(self):
        self.told = []

    def begin(self, prompt_ids):
        self.last = int(prompt_ids[-1])

    def propose(self, budget):
        return [self.last + 1, self.last + (2 if self.last < 20 else 3)], [-1, 0]

    def recycle(self, fed, top):
        self.told.append((self.last, fed.token_ids.tolist(), fed.parents.tolist(), top.ids[:, 0].tolist()))

    def observe(self, token_ids):
        self.last = token_ids[-1]


def test_drafters_are_told_of_the_places_that_were_recorded():
    drafter = Listener()
    play(drafter, counting_trace(1), fixed_budget(2))
    assert drafter.told[0] == (9, [], [], [10])  # the prefill
    assert drafter.told[1] == (10, [11, 12], [-1, 0], [11, 12, 13])
    assert drafter.told[-1] == (38, [], [], [39])  # the rest of the text is over, and so are its logits
    assert (22, [23], [-1], [23, 24]) in drafter.told
    for last, fed, _, likeliest in drafter.told:
        assert likeliest == [token + 1 for token in [last, *fed]]


def test_warming_tells_them_too():
    drafter = Listener()
    warm_up(drafter, counting_trace(1))
    assert drafter.told == [(9, list(range(10, 39)), list(range(-1, 28)), list(range(10, 40)))]


@pytest.mark.parametrize("name", ["pia-recycled", "token-recycling"])
def test_recycled_drafts_are_replayed(name):
    trace = counting_trace(4)
    drafter = find(name).new()
    warm_up(drafter, trace.part(0, 2))
    result = play(drafter, trace.part(2, 4), fixed_budget(8))
    assert result.edl > 3
    assert result.accepted_by_source["recycled"] > 0
    assert set(result.by_source()) == {"recycled"}


def test_recycled_drafts_join_those_of_the_cache():
    """Every word may be followed by two: the cache knows those it has seen, the likeliest tokens both at once."""
    rng = np.random.default_rng(0)
    places = np.arange(240) % 40
    output = (places + 10 + 100 * rng.integers(0, 2, len(places))).astype(np.int32)
    top = top_of([[place + 10, place + 110] for place in places.tolist()])
    trace = Trace("forks", [np.array([9], np.int32)], [output], tops=[top])
    mixed, cache = (play(find(name).new(), trace, fixed_budget(8)) for name in ("pia", "pia-cache"))
    assert mixed.edl > 1.05 * cache.edl
    assert mixed.accepted_by_source["recycled"] > 0


def test_a_single_source_leaves_the_others_alone():
    trace = counting_trace(2)
    result = play(find("pia-cache").new(), trace, fixed_budget(8))
    assert "recycled" not in result.by_source()
    result = play(find("pia-recycled").new(), trace, fixed_budget(8))
    assert set(result.by_source()) == {"recycled"}


def test_without_likeliest_tokens_pia_replays_as_before():
    plain = Trace("count", counting_trace().prompts, counting_trace().outputs)
    both, cache = (play(find(name).new(), plain, fixed_budget(8)) for name in ("pia", "pia-cache"))
    assert both.num_emitted == cache.num_emitted
    assert play(find("pia-recycled").new(), plain, fixed_budget(8)).edl == 1


# --- Token Recycling as published ------------------------------------------------------------------------------------


def test_the_template_is_the_best_tree_of_every_size():
    whole = template(NUM_NODES)
    assert len(whole.parents) == 80
    assert (np.diff(whole.probs) <= 0).all()
    assert (whole.parents < np.arange(80)).all()
    depths = np.append(whole.depths, 0)
    assert (whole.depths == depths[whole.parents] + 1).all()
    assert len(set(zip(whole.parents.tolist(), whole.ranks.tolist(), strict=True))) == 80
    small = template(16)
    assert all(np.array_equal(part, of_whole[:16]) for part, of_whole in zip(small, whole, strict=True))
    assert whole.depths.max() >= 4
    assert len(template(0).parents) == 0


def test_drafts_are_looked_up_in_the_latest_likeliest_tokens():
    source = TokenRecycling()
    session = source.begin(np.array([1, 2], np.int32))
    assert len(session.propose(80, 8)) == 0  # nothing is known yet
    session.recycle(DraftTree.chain([3, 4]), top_of([[3, 5], [4, 6], [2, 7]]))
    session.observe([3, 4])
    tree = session.propose(80, 3)
    assert tree.token_ids[:2].tolist() == [2, 3]  # 4 -> 2 -> 3
    assert tree.parents[:2].tolist() == [-1, 0]
    assert tree.depth == 3
    assert set(tree.token_ids.tolist()) == {2, 3, 4, 5, 6, 7}
    assert (tree.parents < np.arange(len(tree))).all()
    assert len(session.propose(2, 8)) == 2
    session.recycle(DraftTree.empty(), top_of([[9, 8]]))
    assert session.propose(1, 8).token_ids.tolist() == [9]  # the latest counts
    other = source.begin(np.array([4], np.int32))  # and stays for others
    assert other.propose(1, 8).token_ids.tolist() == [9]


def test_it_works_live_and_changes_nothing(llama):
    plain = llama.generate(PROMPT, max_new_tokens=40, do_sample=False)
    for budget in (16, NUM_NODES):
        lookahead = Lookahead(TokenRecycling(), budget=budget)
        for _ in range(2):
            output = llama.generate(PROMPT, custom_generate=lookahead, max_new_tokens=40, do_sample=False)
            assert output.tolist() == plain.tolist()
        assert lookahead.last_stats.edl > 1.2
        assert set(lookahead.last_stats.drafted_by_source) == {"recycled"}
    assert isinstance(SourceDrafter(TokenRecycling()).propose(4), DraftTree)
