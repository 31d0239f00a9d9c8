"""Replay of recorded outputs: the walk, the figures, and the study over them."""

from __future__ import annotations

import numpy as np
import pytest

from pia.bench.curves import BUILT_IN, load_curve
from pia.bench.drafters import Kind, find
from pia.bench.drafters.native import PiaDrafter
from pia.bench.replay import accepted_nodes, count_accepted, fixed_budget, play, replay, warm, warm_up
from pia.bench.replay_study import Plan, cut, run
from pia.bench.trace import Trace
from pia.drafting.budget import CostCurve
from pia.drafting.cache import DraftCache
from pia.drafting.source import NoDrafts
from pia.drafting.tree import DraftTree, TreeWalk
from pia.errors import DrafterError, TraceError, UnsupportedOptionError

FLAT = CostCurve([1, 128], [1.0, 1.0])
STEEP = CostCurve([1, 128], [1.0, 128.0])


def trace(num_requests: int = 3) -> Trace:
    outputs = [np.arange(10, 40, dtype=np.int32) for _ in range(num_requests)]
    return Trace("count", [np.arange(5, dtype=np.int32) for _ in outputs], outputs)


def tree() -> DraftTree:
    ints = np.array([7, 8, 9, 8], np.int32), np.array([-1, -1, 0, 2], np.int32)
    return DraftTree(*ints, np.ones(4, np.float32), np.zeros(4, np.uint8))


class Oracle:
    """Knows what comes next, and one thing that does not."""

    def begin(self, prompt_ids):
        self.last = 9

    def propose(self, budget):
        nodes = [self.last + 1, self.last + 2, 5][:budget]
        return nodes, [-1, 0, 1][:budget], [0.9, 0.8, 0.1][:budget]

    def observe(self, token_ids):
        self.last = token_ids[-1]


def test_without_drafts_every_forward_yields_one_token():
    result = replay(NoDrafts(), trace(), budget=16)
    assert (result.num_steps, result.num_tokens, result.edl) == (87, 87, 1.0)
    figures = result.as_dict()
    assert (figures["drafted"], figures["acceptance_by_depth"], figures["calibration"]) == (0, [], [])
    assert result.speedup(FLAT) == 1


def test_a_warm_cache_yields_the_whole_output():
    cache = DraftCache()
    for _ in range(10):
        warm(cache, trace())
    result = replay(cache, trace(), budget=32)
    assert result.num_tokens == 87
    assert result.num_steps == 3
    assert result.edl == 29
    assert result.as_dict()["p99_us"] > 0


def test_later_requests_learn_from_earlier_ones():
    assert replay(DraftCache(), trace(), budget=32).edl > 2


def test_accepted_tokens_follow_a_path_of_the_tree():
    assert [count_accepted(tree(), truth) for truth in ([7, 9, 8, 1], [8, 9], [9], [])] == [3, 1, 0, 0]
    assert accepted_nodes(tree(), [7, 9, 8, 1]) == [0, 2, 3]
    assert count_accepted(DraftTree.empty(), [1]) == 0


def test_a_walk_follows_all_siblings_of_one_token():
    ints = np.array([7, 7, 8], np.int32), np.array([-1, -1, 1], np.int32)
    walk = TreeWalk(DraftTree(*ints, np.ones(3, np.float32), np.zeros(3, np.uint8)))
    assert walk.follow(7)
    assert walk.node == 0
    assert walk.follow(8)
    assert walk.node == 2
    assert not walk.follow(8)
    assert walk.node == 2


def test_figures_of_a_known_drafter():
    result = play(Oracle(), trace(1), fixed_budget(3))
    assert result.num_emitted == [3] * 9 + [2]  # two drafts and one more, until 29 are there
    figures = result.as_dict()
    assert figures["edl"] == 2.9
    assert figures["drafted"] == 3
    assert figures["acceptance_by_depth"] == [1.0, 1.0]  # the last draft reached the end
    assert figures["expected_edl"] == pytest.approx(2.8)
    assert [part["count"] for part in figures["calibration"]] == [3] * 10
    assert figures["calibration"][0] == {"predicted": 0.1, "real": 0.0, "count": 3}
    assert figures["calibration"][-1]["real"] == 1
    assert figures["by_source"] == {}
    assert result.speedup(FLAT) == 2.9
    assert result.speedup(STEEP) == pytest.approx(29 / 40)


def test_sources_are_counted():
    drafter = find("pia").new()
    warm_up(drafter, trace())
    by_source = play(drafter, trace(2), fixed_budget(16)).by_source()
    assert by_source.keys() <= {"own", "shared"}
    assert by_source["shared"]["accepted"] > 1
    assert drafter.num_bytes() > 0


def test_of_two_runs_the_shorter_times_stay():
    first, second = (play(Oracle(), trace(1), fixed_budget(3)) for _ in range(2))
    first.draft_us[0], second.draft_us[0] = 5.0, 2.0
    first.update_us[1], second.update_us[1] = 3.0, 8.0
    first.take_faster(second)
    assert (first.draft_us[0], first.update_us[1]) == (2.0, 3.0)


def test_a_study_has_a_row_for_each_setting_and_says_what_is_missing():
    curves = {"flat": FLAT, "steep": STEEP}
    plan = Plan([find("pia"), find("seed"), Kind("oracle", Oracle, has_probs=None)], [4, "auto"], curves, warm=1)
    told = []
    study = run([trace()], plan, on_row=told.append)
    assert [(row["drafter"], row["budget"], row["curve"]) for row in study.rows] == [
        ("pia", 4, None), ("pia", "auto", "flat"), ("pia", "auto", "steep"), ("seed", 4, None),
        ("oracle", 4, None), ("oracle", "auto", "flat"), ("oracle", "auto", "steep"),
    ]  # fmt: skip
    assert len(told) == plan.num_runs == 9
    assert study.notes == ["no auto budget for seed, which estimates no probabilities"]
    row = study.rows[0]
    assert (row["warm"], row["requests"], row["speedup"].keys()) == (1, 2, curves.keys())
    assert study.rows[1]["speedup"].keys() == {"flat"}
    assert study.rows[3]["bytes_per_token"] is None
    flat, steep = study.rows[-2:]
    assert steep["drafted"] < flat["drafted"]
    assert steep["speedup"]["steep"] >= 0.9  # it stops drafting where that does not pay


def test_replays_are_deterministic_and_repeats_change_no_count():
    plans = [Plan([find("pia"), find("seed")], [8], {"flat": FLAT}, repeat=repeat) for repeat in (1, 2)]
    timed = ("draft_us", "update_us", "p99_us", "begin_us")
    studies = [run([trace(6)], plan).rows for plan in plans]
    once, twice = ([{key: row[key] for key in row if key not in timed} for row in rows] for rows in studies)
    assert once == twice


def test_the_requests_of_a_trace_are_cut_as_asked():
    assert [len(part) for part in cut(trace(9), Plan([], [], {}))] == [4, 5]
    assert [len(part) for part in cut(trace(9), Plan([], [], {}, warm=2, limit=3))] == [2, 1]
    for plan, words in (
        (Plan([], [], {}, warm=9), "lower --warm below 9"),
        (Plan([], [], {}, warm=3, limit=3), "or raise --limit"),
    ):
        with pytest.raises(TraceError, match=words):
            cut(trace(9), plan)
    with pytest.raises(TraceError, match="no requests"):
        cut(trace(0), Plan([], [], {}))
    short = Trace("short", [np.arange(3, dtype=np.int32)] * 2, [np.arange(1, dtype=np.int32)] * 2)
    with pytest.raises(TraceError, match="two tokens"):
        cut(short, Plan([], [], {}))


def test_a_drafter_that_fails_is_named():
    class Broken(Oracle):
        def observe(self, token_ids):
            raise KeyError("lost")

    with pytest.raises(DrafterError, match=r"mine failed on count: KeyError: 'lost' .*PIA_DEBUG"):
        run([trace()], Plan([Kind("mine", Broken)], [4], {"flat": FLAT}))


def test_empty_outputs_and_prompts_are_played():
    odd = Trace("odd", [np.empty(0, np.int32)] * 3, [np.arange(n, dtype=np.int32) for n in (0, 1, 5)])
    for name in ("pia", "pld", "seed"):
        drafter = find(name).new()
        warm_up(drafter, odd)
        assert play(drafter, odd, fixed_budget(8)).num_tokens == 4


def test_the_depth_of_drafts_is_bounded():
    drafter = PiaDrafter(max_depth=3)
    warm_up(drafter, trace(8))
    assert len(play(drafter, trace(1), fixed_budget(32)).acceptance_by_depth()) <= 3


def test_curves_are_built_in_or_read(tmp_path):
    assert [load_curve(name)[0] for name in BUILT_IN] == list(BUILT_IN)
    measured = tmp_path / "mine.json"
    measured.write_text('{"sizes": [1, 4, 16], "seconds": [0.01, 0.011, 0.02]}')
    name, curve = load_curve(str(measured))
    assert (name, curve.sizes, curve.table(4)[-1]) == ("mine", [1, 4, 16], pytest.approx(1.1))
    measured.write_text('{"cpu": "x", "forward_ms": {"1": 2.0, "8": 4.0}}')
    assert load_curve(str(measured))[1].table(8)[-1] == 2
    for text in ("[]", "{", '{"sizes": [2, 4], "seconds": [1, 1]}', '{"sizes": [1, 2], "seconds": [0, 1]}'):
        measured.write_text(text)
        with pytest.raises(UnsupportedOptionError, match="holds no cost curve"):
            load_curve(str(measured))
    with pytest.raises(UnsupportedOptionError, match="unknown cost curve 'tpu'; choose from flat-gpu, cpu"):
        load_curve("tpu")
