"""The native draft cache against a slow dictionary model, over random histories of requests."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule
from slow_draft_model import SlowTable, first_probs, known_contexts

from pia.drafting.cache import DraftCache
from pia.drafting.session import DraftSession
from pia.drafting.tree import DraftTree

STOP = 4
VOCAB_SIZE = 6
tokens = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=30)
namespaces = st.sampled_from(["", "a tenant"])
request_ids = st.sampled_from([None, "one", "two", "three"])


class Request:
    """A session and what the model knows about it."""

    def __init__(self, session: DraftSession, namespace: str, request_id: str | None, prompt: list[int]) -> None:
        self.session = session
        self.namespace = namespace
        self.request_id = request_id
        self.text = list(prompt)
        self.num_prompt = len(prompt)
        self.own = SlowTable()
        self.own.learn(prompt)


def pieces(text: list[int]) -> list[list[int]]:
    """`text` cut behind each stop token."""
    found: list[list[int]] = [[]]
    for token in text:
        found[-1].append(token)
        if token == STOP:
            found.append([])
    return [piece for piece in found if piece]


class DraftCacheMachine(RuleBasedStateMachine):
    requests: Bundle[Request] = Bundle("requests")

    @initialize()
    def start(self) -> None:
        self.cache = DraftCache(vocab_size=VOCAB_SIZE)
        self.shared = {"": SlowTable(), "a tenant": SlowTable()}
        self.logs: dict[str, list[tuple[str | None, list[int]]]] = {"": [], "a tenant": []}
        self.num_running = 0

    def learn(self, namespace: str, request_id: str | None, text: list[int]) -> None:
        for piece in pieces(text):
            self.shared[namespace].learn(piece)
            self.logs[namespace].append((request_id, piece))

    def unlearn(self, namespace: str, entries: list[tuple[str | None, list[int]]]) -> int:
        for entry in entries:
            self.shared[namespace].unlearn(entry[1])
            log = self.logs[namespace]
            del log[len(log) - 1 - log[::-1].index(entry)]
        return sum(len(piece) for _, piece in entries)

    @rule(text=tokens, namespace=namespaces, request_id=request_ids)
    def insert(self, text: list[int], namespace: str, request_id: str | None) -> None:
        self.cache.insert(text, stop_ids={STOP}, namespace=namespace, request_id=request_id)
        self.learn(namespace, request_id, text)

    @rule(namespace=namespaces, request_id=st.sampled_from(["one", "two", "three"]))
    def forget(self, namespace: str, request_id: str) -> None:
        theirs = [entry for entry in self.logs[namespace] if entry[0] == request_id]
        assert self.cache.forget(request_id, namespace=namespace) == self.unlearn(namespace, theirs)

    @rule(namespace=namespaces, data=st.data())
    def forget_sequence(self, namespace: str, data: st.DataObject) -> None:
        known = [piece for _, piece in self.logs[namespace]]
        text = data.draw(st.sampled_from(known) if known else st.just([1, 2, 3]))
        youngest = [entry for entry in self.logs[namespace] if entry[1] == text][-1:]
        num_tokens = self.cache.forget_sequence(text, stop_ids={STOP}, namespace=namespace)
        assert num_tokens == self.unlearn(namespace, youngest)

    @rule(target=requests, prompt=tokens, namespace=namespaces, request_id=request_ids)
    def begin(self, prompt: list[int], namespace: str, request_id: str | None) -> Request:
        session = self.cache.begin(prompt, stop_ids={STOP}, namespace=namespace, request_id=request_id)
        self.num_running += 1
        return Request(session, namespace, request_id, prompt)

    @rule(request=requests, text=tokens)
    def observe(self, request: Request, text: list[int]) -> None:
        request.session.observe(text)
        first = len(request.text)
        request.text += text
        request.own.learn(request.text, first)

    @rule(request=requests)
    def look_up(self, request: Request) -> None:
        shared = self.shared[request.namespace]
        assert known_to(request.session) == [
            *(("own", *known) for known in known_contexts(request.text, request.own)),
            *(("shared", *known) for known in known_contexts(request.text, shared)),
        ]

    @rule(request=requests, budget=st.integers(0, 40), max_depth=st.integers(1, 8))
    def propose(self, request: Request, budget: int, max_depth: int) -> None:
        tree = request.session.propose(budget, max_depth)
        paths = paths_of(tree)
        assert len(set(paths)) == len(paths) <= budget
        assert max(map(len, paths), default=0) <= max_depth
        assert (np.diff(tree.probs) <= 0).all()
        assert ((tree.probs > 0) & (tree.probs <= 1)).all()
        known = [*request.own.counts.values(), *self.shared[request.namespace].counts.values()]
        assert set(tree.token_ids.tolist()) <= {token for counts in known for token in counts}

    @rule(target=requests, request=consumes(requests), commit=st.booleans())
    def end(self, request: Request, commit: bool) -> object:
        request.session.end(commit=commit)
        self.num_running -= 1
        if commit:
            self.learn(request.namespace, request.request_id, request.text[request.num_prompt :])
        return multiple()

    @rule(namespace=namespaces)
    def clear(self, namespace: str) -> None:
        self.cache.clear(namespace)
        self.shared[namespace] = SlowTable()
        self.logs[namespace] = []

    @rule()
    def save_and_load(self) -> None:
        if self.num_running:
            return  # running sessions would go on with the old cache
        with tempfile.TemporaryDirectory() as folder:
            self.cache.save(Path(folder) / "cache.pia")
            self.cache = DraftCache.load(Path(folder) / "cache.pia")

    @invariant()
    def is_whole(self) -> None:
        if not hasattr(self, "cache"):
            return
        self.cache.check_integrity()
        assert self.cache.num_contexts == sum(len(table.counts) for table in self.shared.values())
        for name, log in self.logs.items():
            assert logged(self.cache, name) == log
        assert self.cache.namespaces == sorted(name for name, log in self.logs.items() if log)
        assert (self.cache.request_memory_usage > 0) == (self.num_running > 0)


def logged(cache: DraftCache, namespace: str) -> list[tuple[str | None, list[int]]]:
    """The cache's own log, as the model keeps it."""
    log = cache.export_log(namespace)
    pieces = np.split(log.tokens, np.cumsum(log.lengths)[:-1]) if len(log.lengths) else []
    names = [log.request_ids[owner] if owner >= 0 else None for owner in log.owners]
    return [(name, piece.tolist()) for name, piece in zip(names, pieces, strict=True)]


def known_to(session: DraftSession) -> list[tuple[str, int, int, int, dict[int, int]]]:
    return [tuple(context) for context in session.known_contexts()]


def paths_of(tree: DraftTree) -> list[tuple[int, ...]]:
    """The tokens from the root down to each node; checks on the way that parents come first."""
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True):
        assert -1 <= parent < len(paths)
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    return paths


TestDraftCacheAgainstModel = DraftCacheMachine.TestCase
TestDraftCacheAgainstModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_tables_of_many_segments_match_too():
    """Large enough to be split dozens of times, on both the shared and the own side."""
    random = np.random.default_rng(0)
    cache, own, shared = DraftCache(), SlowTable(), SlowTable()
    for _ in range(40):
        text = random.zipf(1.5, 300) % 250
        cache.insert(text)
        shared.learn(text.tolist())
    for _ in range(40):
        text = random.zipf(1.3, 300) % 250
        cache.insert(text, request_id="passing")
    assert cache.forget("passing") == 40 * 300
    prompt = (random.zipf(1.5, 6000) % 250).tolist()
    session = cache.begin(prompt)
    session.wait()
    own.learn(prompt)
    cache.check_integrity()
    assert cache.num_contexts == len(shared.counts) > 20 * 1024
    for end in range(0, 6000, 150):
        text = [*prompt, *prompt[end : end + 7]]
        own.learn(text, len(prompt))
        session.observe(prompt[end : end + 7])
        assert known_to(session) == [
            *(("own", *known) for known in known_contexts(text, own)),
            *(("shared", *known) for known in known_contexts(text, shared)),
        ]
        prompt = text


@given(
    text=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    learned=st.lists(st.lists(st.integers(0, 3), max_size=40), max_size=4),
)
def test_the_first_draft_follows_the_formulas(text: list[int], learned: list[list[int]]):
    cache, own, shared = DraftCache(), SlowTable(), SlowTable()
    for sequence in learned:
        cache.insert(sequence)
        shared.learn(sequence)
    own.learn(text)
    tree = cache.begin(text).propose(16, 1)
    expected = first_probs(text, own, shared)
    drafted = dict(zip(tree.token_ids.tolist(), tree.probs.tolist(), strict=True))
    assert drafted == pytest.approx(expected, rel=2e-3, abs=1e-6)
