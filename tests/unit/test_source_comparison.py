"""Sources of drafts against each other: what is compared, and what is said of it."""

from __future__ import annotations

import pytest
import torch

from pia.bench.by_source import by_source, source_cells, source_names
from pia.bench.contenders import Accelerated, Run
from pia.bench.latency import measure
from pia.bench.report import Report
from pia.bench.source_comparison import PLAIN, SourceComparison, Way, usual_ways
from pia.bench.workload import Workload
from pia.decoding.stats import Stats
from pia.drafting.cache import DraftCache

PROMPTS = [torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5]]), torch.tensor([[9, 8, 7]])]


def stats(num_steps, accepted, drafted):
    made = Stats(num_requests=1, num_steps=num_steps, num_tokens=1 + num_steps + sum(accepted.values()))
    made.accepted_by_source.update(accepted)
    made.drafted_by_source.update(drafted)
    made.num_drafted, made.num_accepted = sum(drafted.values()), sum(accepted.values())
    return made


def test_every_source_is_alone_once_and_all_are_together():
    ways = {way.name: way for way in usual_ways()}
    assert list(ways) == ["cache", "recycled", "jacobi", "token_recycling", "mix", "mix_jacobi"]
    comparison = SourceComparison(usual_ways(), [16, "auto"], engine="eager")
    names = [entry.name for entry in comparison.entries]
    assert names == [
        "cache@16", "recycled@16", "jacobi@16", "token_recycling@16", "mix@16", "mix_jacobi@16",
        "cache@auto", "recycled@auto", "jacobi@auto", "mix@auto", "mix_jacobi@auto", "token_recycling@80",
    ]  # fmt: skip
    assert [one.name for one in comparison.contenders(is_sampled=False)] == ["generate", "plain", *names]
    assert [one.name for one in comparison.contenders(is_sampled=True)] == ["plain", *names]


def test_a_comparison_of_a_toy(llama):
    comparison = SourceComparison(usual_ways(), [24], engine="eager")
    workload = Workload(llama, PROMPTS, [20, 20], {"do_sample": False})
    report = measure(workload, comparison.contenders(is_sampled=False), rounds=2)
    result = comparison.result(workload, report)
    assert result["identical"] == result["questions"] == 2
    rows = result["contenders"]
    assert set(rows["cache@24"]["by_source"]) <= {"own", "shared"}
    assert set(rows["recycled@24"]["by_source"]) == {"recycled"}
    assert {"own", "recycled"} <= set(rows["mix@24"]["by_source"])
    assert set(rows["jacobi@24"]["by_source"]) == {"jacobi"}
    assert rows["jacobi@24"]["window"] > 10 > rows["mix@24"]["window"] == 0
    for row in rows.values():
        assert row["edl"] == pytest.approx(1 + sum(part["accepted"] for part in row["by_source"].values()), abs=2e-3)
        assert row["drafted"] == pytest.approx(sum(part["drafted"] for part in row["by_source"].values()), abs=2e-3)
    assert result["mix_over_best"].keys() == {"mix@24", "mix_jacobi@24"}
    assert result["edl"]["mix@24"] == rows["mix@24"]["edl"]


def test_the_mix_is_held_against_the_best_single_source_and_no_peer():
    names = {"cache": (10, 2.0), "recycled": (20, 4.0), "jacobi": (1, 5.0), "token_recycling": (90, 1.0),
             "mix": (30, 2.5), "mix_jacobi": (30, 2.0)}  # fmt: skip
    runs = {PLAIN: [[Run([1] * 50, 5.0, Stats())]], "generate": [[Run([1] * 50, 6.0, None)]]}
    for name, (accepted, seconds) in names.items():
        runs[f"{name}@16"] = [[Run([1] * 50, seconds, stats(10, {"own": accepted}, {"own": 100}))]]
    runs["token_recycling@80"] = runs["token_recycling@16"]
    result = SourceComparison(usual_ways(), [16]).result(
        Workload(None, PROMPTS[:1], [50]), Report(runs, reference="generate")
    )
    assert list(result["mix_over_best"]) == ["mix@16", "mix_jacobi@16"]
    against = result["mix_over_best"]["mix@16"]
    assert (against["best"], against["fastest"]) == ("recycled", "cache")
    assert against["edl"] == pytest.approx(4 / 3, abs=1e-4)
    assert against["speed"] == pytest.approx(2 / 2.5)
    assert result["over_plain"]["mix@16"] == pytest.approx(2.0)


@pytest.mark.parametrize("forgets", [False, True])
def test_a_contender_forgets_if_it_is_to(llama, forgets):
    contender = Accelerated("x", DraftCache, forgets=forgets, budget=8, sources="cache")
    contender.reset(llama, PROMPTS[0])
    runs = [contender.run(llama, [PROMPTS[1]], {"max_new_tokens": 24, "do_sample": False})[0] for _ in range(2)]
    assert runs[0].token_ids == runs[1].token_ids
    assert (runs[0].stats.edls == runs[1].stats.edls) == forgets
    assert ("shared" in runs[1].stats.accepted_by_source) != forgets


def test_a_way_of_ones_own_is_compared_like_the_others():
    ways = [Way("shallow", "two tokens ahead", {"max_depth": 2}), Way("mix", "all in one tree")]
    assert [entry.name for entry in SourceComparison(ways, [4]).entries] == ["shallow@4", "mix@4"]


def test_cells_say_what_was_accepted_of_what_was_drafted():
    rows = [
        {"label": "plain", "by_source": {}},
        {"label": "cold", "by_source": by_source(stats(10, {"recycled": 5}, {"recycled": 80, "own": 20}))},
        {"label": "warm", "by_source": by_source(stats(4, {"shared": 6}, {"shared": 24}))},
    ]
    assert source_names(rows) == ["own", "shared", "recycled"]
    names, cells = source_cells(rows)
    assert names == ["own", "shared", "recycled", "all"]
    assert cells == [
        ["cold", "0.00 of 2.0", "", "0.50 of 8.0", "0.50 of 10.0"],
        ["warm", "", "1.50 of 6.0", "", "1.50 of 6.0"],
    ]
    assert by_source(None) == {}
