"""Jacobi lookahead decoding as a source of drafts, against the published algorithm written out plainly."""

from __future__ import annotations

import numpy as np
import pytest

from jacobi_reference import lookahead_decode
from pia.config import JacobiConfig
from pia.drafting.cache import DraftCache
from pia.drafting.guesses import GuessAcceptance, Guesses
from pia.drafting.jacobi import JacobiSession, JacobiSource, new_pool
from pia.drafting.jacobi_window import JacobiWindow
from pia.drafting.shape import ancestors
from pia.drafting.source import PatientSession
from pia.drafting.top_tokens import TopTokens
from pia.drafting.tree import SOURCE_NAMES, DraftTree, TreeWalk

_ALL = 10_000


def looping_model(texts: list[list[int]]) -> list[int]:
    """A next-token function whose texts repeat themselves in part, so that guesses come true now and then."""
    return [(sum(text[-2:]) * 7 + len(text) // 40) % 23 for text in texts]


def decode(session: JacobiSession, text: list[int], num_new: int) -> list[list[int]]:
    """Greedy decoding with a function for a model: what the loop does, in tokens."""
    session.observe(text[-1:])
    steps: list[list[int]] = []
    text = list(text)
    while (left := num_new - sum(map(len, steps))) > 0:
        draft, window = session.propose(_ALL, left - 1 or 1), session.window(_ALL, _ALL)
        paths = [[]] + [[int(tree.token_ids[n]) for n in ancestors(tree.parents.tolist(), node)]
                        for tree in (draft, window) for node in range(len(tree))]  # fmt: skip
        answers = looping_model([text + path for path in paths])
        walk, emitted = TreeWalk(draft), []
        while len(emitted) < left:
            emitted.append(answers[walk.node + 1])
            if not walk.follow(emitted[-1]):
                break
        fed = draft.with_window(window)
        session.recycle(fed, TopTokens(np.array(answers, np.int32)[:, None], np.ones((len(answers), 1), np.float16)))
        session.observe(emitted)
        text += emitted
        steps.append(emitted)
    return steps


@pytest.mark.parametrize("pool_from_prompt", [False, True])
@pytest.mark.parametrize("sizes", [(4, 4, 3), (5, 7, None), (1, 3, 2), (6, 2, 4), (15, 5, 15)])
def test_alone_it_is_the_published_algorithm(sizes, pool_from_prompt):
    w, n, g = sizes
    config = JacobiConfig(window_size=w, ngram_size=n, max_ngrams=g, pool_from_prompt=pool_from_prompt)
    prompt = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    text = [*prompt, *looping_model([prompt])]
    level_0 = JacobiWindow(config, np.array(prompt, np.int32)).levels[0]
    reference = lookahead_decode(
        looping_model, text, level_0, num_prompt=len(prompt), window_size=w, ngram_size=n, max_ngrams=g,
        pool_from_prompt=pool_from_prompt, num_new=200,
    )  # fmt: skip
    steps = decode(JacobiSession(config, np.array(prompt, np.int32)), text, 200)
    assert steps == reference
    assert max(map(len, steps)) > 1


def test_a_full_match_yields_all_its_tokens_and_one_more():
    """The reference accepts one draft fewer (peers.md, defect b)."""
    config = JacobiConfig(window_size=8, ngram_size=4)
    prompt = [3, 1, 4, 1, 5]
    steps = decode(JacobiSession(config, np.array(prompt, np.int32)), [*prompt, *looping_model([prompt])], 300)
    assert max(map(len, steps)) == config.ngram_size


def test_several_accepted_tokens_enter_the_history_in_order():
    """The reference appends the last of them again and again (peers.md, defect c)."""
    config = JacobiConfig(window_size=2, ngram_size=3, pool_from_prompt=True)
    session = JacobiSession(config, np.array([1, 2], np.int32))
    session.observe([3, 4, 5, 6])
    session.observe([7])
    session.observe([8, 9])
    assert {first: session.pool.ngrams(first) for first in range(1, 10)} == {
        1: [[2, 3]], 2: [[3, 4]], 3: [[4, 5]], 4: [[5, 6]], 5: [[6, 7]], 6: [[7, 8]], 7: [[8, 9]], 8: [], 9: [],
    }  # fmt: skip


def test_guesses_share_prefixes_and_come_newest_first():
    tree = Guesses([[5, 6], [7, 8], [5, 9]]).tree(GuessAcceptance(), 10, 10)
    assert sorted(zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True))[:2] == [(5, -1), (6, 0)]
    assert tree.token_ids[0] == 5 and sorted(tree.token_ids.tolist()) == [5, 6, 7, 8, 9]
    assert (np.diff(tree.probs) <= 0).all() and tree.probs[tree.parents < 0].sum() < 1
    assert {SOURCE_NAMES[source] for source in tree.sources} == {"jacobi"}
    assert len(Guesses([[5, 6], [7, 8]]).tree(GuessAcceptance(), 3, 10)) == 3
    assert Guesses([[5, 6], [7, 8]]).tree(GuessAcceptance(), 9, 1).depth == 1
    assert len(Guesses([]).tree(GuessAcceptance(), 9, 9)) == 0


def test_probabilities_follow_what_comes_true():
    acceptance, guesses = GuessAcceptance(), Guesses([[5, 6], [7, 8]])
    before = guesses.tree(acceptance, 2, 1)
    assert before.token_ids.tolist() == [5, 7]
    for _ in range(200):
        guesses.teach(acceptance, [7, 1])
    after = guesses.tree(acceptance, 4, 2)
    assert after.token_ids.tolist()[:1] == [7] and after.probs[0] > 0.9
    by_token = dict(zip(after.token_ids.tolist(), after.probs.tolist(), strict=True))
    assert by_token[5] < 0.1 and by_token[8] < 0.1


class Spy:
    """An inner session that keeps books."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def propose(self, budget, max_depth):
        self.told.append(("propose", budget, max_depth))
        return DraftTree.chain([1])

    def observe(self, token_ids):
        self.told.append(("observe", token_ids))

    def end(self, *, commit):
        self.told.append(("end", commit))


def test_an_inner_session_drafts_and_is_told_everything():
    spy = Spy()
    session = JacobiSource(JacobiConfig()).begin(np.array([1, 2], np.int32), namespace="x", inner=spy)
    assert not isinstance(session, PatientSession)  # what is put off would be learned of a pool that knows more by then
    assert session.propose(5, 6).token_ids.tolist() == [1]
    session.observe([3])
    session.end(commit=True)
    assert spy.told == [("propose", 5, 6), ("observe", [3]), ("end", True)]


def _over_a_cache(config):
    """A window around a session that drafts from its pool and nothing else."""
    prompt, pool = np.array([1, 2, 3], np.int32), new_pool(config)
    inner = DraftCache().begin(prompt, sources=(), pool=pool)
    return JacobiSource(config).begin(prompt, pool=pool, inner=inner)


def test_an_inner_draft_cache_drafts_from_the_pool():
    session = _over_a_cache(JacobiConfig(ngram_size=3))
    session.pool.add([[3, 40, 41]])
    tree = session.propose(4, 8)
    assert tree.token_ids.tolist()[:2] == [40, 41]
    assert [SOURCE_NAMES[source] for source in tree.sources[:2]] == ["jacobi", "jacobi"]


def test_a_lesson_does_not_see_what_its_own_forward_made():
    """A window whose n-grams come true only once they are seen must not be trusted for it."""
    config = JacobiConfig(window_size=2, ngram_size=3)
    session = _over_a_cache(config)
    fed = session.window(_ALL, _ALL)
    session.recycle(fed, TopTokens(np.full((len(fed) + 1, 1), 9, np.int32), np.ones((len(fed) + 1, 1), np.float16)))
    assert len(session.pool) == 0
    session.observe([9])
    for _ in range(3):
        fed = session.window(_ALL, _ALL)
        top = np.full((len(fed) + 1, 1), 9, np.int32)
        session.recycle(fed, TopTokens(top, np.ones((len(fed) + 1, 1), np.float16)))
        known = len(session.pool)
        session.observe([9])
        assert len(session.pool) >= known
    assert len(session.pool) > 0


def test_a_window_left_out_stands_still():
    session = JacobiSession(JacobiConfig(window_size=3, ngram_size=3), np.array([1, 2, 3], np.int32))
    session.observe([4])
    whole = session.window(_ALL, _ALL)
    assert len(session.window(0, _ALL)) == 0
    assert session.num_top == 0
    session.recycle(DraftTree.empty(), TopTokens(np.array([[9]], np.int32), np.ones((1, 1), np.float16)))
    assert session.window(_ALL, _ALL).token_ids.tolist() == whole.token_ids.tolist()
