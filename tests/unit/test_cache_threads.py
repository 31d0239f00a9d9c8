"""Many threads on one draft cache, and the interpreter free meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from pia.drafting.cache import DraftCache

NUM_THREADS = 6


def run_in_threads(work: Callable[[int], None]) -> None:
    """Runs `work(index)` in all threads at once and passes on the first failure."""
    failures: list[BaseException] = []
    barrier = threading.Barrier(NUM_THREADS)

    def run(index: int) -> None:
        try:
            barrier.wait()
            work(index)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_six_threads_teach_one_cache_all_they_know():
    cache = DraftCache(vocab_size=60_000)

    def work(index: int) -> None:
        for request in range(40):
            start = (index * 40 + request) * 200
            session = cache.begin([59_999])
            for token in range(start, start + 200, 5):
                session.propose(16)
                session.observe(list(range(token, token + 5)))
            session.end(commit=request % 4 != 0)

    run_in_threads(work)
    cache.check_integrity()
    assert cache.num_tokens == NUM_THREADS * 30 * 200
    assert cache.request_memory_usage == 0
    for request in range(NUM_THREADS * 40):
        start = request * 200
        tree = cache.begin(list(range(start, start + 20))).propose(4)
        assert tree.token_ids.tolist() == ([] if request % 40 % 4 == 0 else list(range(start + 20, start + 24)))


def test_threads_in_a_full_cache_keep_it_whole():
    cache = DraftCache(max_bytes=1 << 19, vocab_size=1000)

    def work(index: int) -> None:
        random = np.random.default_rng(index)
        for turn in range(60):
            namespace = f"tenant {random.integers(3)}"
            session = cache.begin(random.integers(0, 1000, 200), namespace=namespace)
            tree = session.propose(32)
            assert (tree.parents < np.arange(len(tree))).all()
            session.observe(random.integers(0, 1000, 100))
            session.end(commit=True)
            assert cache.memory_usage <= cache.max_bytes
            if turn % 20 == index:
                cache.clear(namespace)

    run_in_threads(work)
    cache.check_integrity()


def test_python_runs_on_while_the_cache_works():
    cache = DraftCache()
    text = np.random.default_rng(0).integers(0, 50_000, 600_000).astype(np.int32)
    thread = threading.Thread(target=cache.insert, args=(text,))
    thread.start()
    beats = [time.perf_counter()]
    while thread.is_alive():
        time.sleep(0.001)
        beats.append(time.perf_counter())
    longest, whole = max(np.diff(beats)), beats[-1] - beats[0]
    assert len(beats) > 10
    assert longest < whole / 2


def test_a_session_refuses_a_second_thread():
    cache = DraftCache()
    session = cache.begin(np.random.default_rng(0).integers(0, 20, 2000))
    refusals: list[str] = []

    def draft(_: int) -> None:
        for _ in range(20):
            try:
                assert len(session.propose(500)) > 100
            except ValueError as error:
                refusals.append(str(error))

    run_in_threads(draft)
    assert set(refusals) == {"a draft session can't be used by two threads at once"}
    assert len(session.propose(1)) == 1
