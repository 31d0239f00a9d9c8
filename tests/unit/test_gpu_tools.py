"""The script of the figures asked of a GPU: tried end to end on a tiny shape, and its arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pia.bench.contenders import Run
from pia.bench.shapes import SHAPES, Shape
from pia.bench.trace import Trace
from pia.decoding.stats import Stats

TOOLS = Path(__file__).parents[2] / "tools"


_LINE = (
    "--shape tiny --device cpu --dtype float32 --warm 4 --limit 2 --generate-limit 1 --context 40 --max-new-tokens 15 "
    "--step-requests 1"
)


@pytest.fixture(autouse=True)
def tools(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))


@pytest.fixture
def folder(tmp_path):
    """Traces of requests that repeat each other in part."""
    rng = np.random.default_rng(3)
    phrases = rng.integers(3, 90, (6, 5)).astype(np.int32)
    for name in ("gsm-toy", "alpaca-toy"):
        outputs = [np.concatenate(phrases[rng.integers(0, 6, 4)]) for _ in range(6)]
        Trace(name, [rng.integers(3, 90, 9).astype(np.int32) for _ in range(6)], outputs).save(tmp_path / f"{name}.npz")
    return tmp_path


def test_all_figures_are_measured_and_outputs_identical(folder, monkeypatch, capsys):
    from gpu_figures import main

    monkeypatch.setitem(SHAPES, "tiny", Shape("tiny", "llama", 64, 96, 2, 4, 2, 97, 512))
    monkeypatch.setenv("OUT", str(folder))
    assert main(["--traces", str(folder), *_LINE.split()]) == 0
    printed = capsys.readouterr().out
    report = json.loads(printed.splitlines()[-1])
    assert json.loads((folder / "gpu_figures.json").read_text()) == report
    figures = {figure["name"]: figure for figure in report["figures"]}
    assert len(figures) == 10
    assert figures["outputs identical"]["value"] == 1
    assert figures["outputs identical"]["reached"]
    assert all(figure["value"] > 0 for name, figure in figures.items() if "64" not in name and "16" not in name)
    assert report["gsm"]["requests"]["generate"] == 1
    assert report["gsm"]["requests"]["pia"] == report["random"]["requests"]["pia"] == 2
    assert report["gsm"]["answers"] == sum(report["gsm"]["requests"].values())
    assert report["steps"]["0"]["steps"] == 14
    assert report["gsm"]["steps"]["plain"]["edl"] == 1 <= report["gsm"]["steps"]["pia"]["edl"]
    assert report["errors"] == {}
    assert "tiny shape, random weights, tokens from gsm-toy" in printed


def test_a_part_that_fails_leaves_the_others_their_turn(folder, monkeypatch, capsys):
    import gpu_figures

    def fail(*_, **__):
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(SHAPES, "tiny", Shape("tiny", "llama", 64, 96, 2, 4, 2, 97, 512))
    monkeypatch.delenv("OUT", raising=False)
    monkeypatch.setattr(gpu_figures, "step_times", fail)
    assert gpu_figures.main(["--traces", str(folder), *_LINE.split()]) == 1
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["errors"] == {"steps": "RuntimeError: no such kernel"}
    figures = {figure["name"]: figure for figure in report["figures"]}
    assert figures["step with 16 nodes over plain"]["reached"] is None
    assert figures["outputs identical"]["reached"]


def test_a_wrong_answer_is_seen():
    from gpu_measure import Answers

    right, wrong = Run([1, 2], 1.0, None), Run([1, 3], 1.0, None)
    answers = Answers("", [[1, 2]], {"plain": {(0, 0): right}, "pia": {(0, 0): wrong}})
    assert (answers.num_identical, answers.num_answers) == (1, 2)


def test_ratios_are_over_the_requests_that_both_answered():
    from gpu_measure import Answers

    runs = {
        "generate": {(0, 0): Run([1] * 4, 8.0, None)},
        "pia": {
            (0, 0): Run([1] * 4, 2.0, Stats(num_tokens=4, num_requests=1, num_steps=2)),
            (0, 1): Run([1], 9.0, None),
        },
    }
    answers = Answers("", [[1] * 4, [1]], runs)
    assert answers.ratio("pia", "generate") == 4
    assert answers.spread("pia", "generate") == [4, 4, 4]
    assert answers.ratio("plain", "pia") is None
    assert answers.stats("pia").edl == 1.5
    assert answers.stats("generate") is None
    assert answers.tokens_per_s("generate") == 0.5


def test_steps_count_only_with_full_trees():
    from gpu_measure import _full_steps

    steps = [(16, 3.0, 1.0, 0.1), (7, 2.0, 1.5, 0.2), (16, 5.0, 2.0, 0.3)]
    full = {"steps": 2, "ms": 4000.0, "host_ms": 1500.0, "launch_ms": 200.0, "nodes": 13}
    assert _full_steps(16, steps).as_dict() == full
    assert len(_full_steps("auto", steps).whole) == 3
    assert _full_steps(64, steps).as_dict()["ms"] is None


def test_waits_are_gaps_between_all_work():
    from gpu_waits import waits_us

    spans = [(0, 100), (105, 150), (300, 400), (320, 330), (390, 450), (460, 470)]
    assert waits_us(spans) == 150 + 10
    assert waits_us(spans, shortest_us=5) == 5 + 150 + 10
    assert waits_us([]) == 0


def test_figures_say_whether_they_are_reached():
    from gpu_figures import Figure

    assert Figure("", 2.6, 2.6).is_reached
    assert not Figure("", 2.6, 2.5).is_reached
    assert Figure("", 1.08, 1.05, is_floor=False).is_reached
    assert not Figure("", 1.08, 1.09, is_floor=False).is_reached
    assert Figure("", 1.08, None).is_reached is None


def test_missing_traces_are_named(tmp_path):
    from gpu_figures import main

    with pytest.raises(SystemExit, match=r"holds no gsm-\*\.npz; tools/gpu_pack\.sh copies the traces"):
        main(["--traces", str(tmp_path), "--shape", "llama-68m", "--device", "cpu"])
