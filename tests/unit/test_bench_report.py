"""The report of the benchmark suite, from made-up figures: text, JSON, plots."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from pia.bench.labels import LABELS
from pia.bench.report_folder import ReportFolder
from pia.bench.report_markdown import markdown
from pia.bench.report_plots import draw_plots
from pia.errors import UnsupportedOptionError

MACHINE = {"cpu": "Abacus", "cores": 2, "threads": 2, "gpu": None, "torch": "2", "transformers": "5",
           "dtype": "float32", "device": "cpu"}  # fmt: skip
STEPS = {
    "ms": {"draft": 0.1, "forward": 4.0, "accept": 0.2, "keep": 0.3, "other": 0.4},
    "share": {"draft": 0.02, "forward": 0.8, "accept": 0.04, "keep": 0.06, "other": 0.08},
    "step_ms": 5.0,
    "host_ms": 0.6,
}


def row(name, speed, over, **more):
    ours = name in ("plain", "pia_cold", "pia")
    return {
        "label": LABELS[name],
        "tokens_per_s": {"median": speed, "min": speed - 3, "max": speed + 5, "quartiles_by_prompt": [speed, speed]},
        "over_generate": over,
        "edl": 1.0,
        "identical": None if name == "generate" else 4,
        "by_source": {"own": {"drafted": 6.0, "accepted": 1.25}} if name in ("pia_cold", "pia") else {},
        "setup_s": {"first": 0.25, "median": 0.2},
        "steps": STEPS if ours else None,
        "step_ms": 5.0 if ours else 7.5,
        "mode": "tree" if ours else None,
        "reason": "explicit masks" if ours else None,
        "engine": "static" if ours else "transformers",
        "engine_reason": "measured: 2.0 x eager" if ours else None,
        "first_token_ms": {"median": 12.5, "quartiles": [11.0, 14.0]},
        "peak_memory_bytes": 8_000_000,
        "memory_method": "high-water mark of resident memory",
        **more,
    }


def made_up(**more):
    speeds = {"generate": (100.0, 1.0), "plain": (150.0, 1.5), "pia_cold": (250.0, 2.5), "pia": (333.3, 3.333)}
    return {
        "model": "abacus-7b", "prompt_set": "sums", "label": None, "machine": MACHINE, "is_replay": False,
        "is_sampled": False, "questions": 5, "identical": 4, "batch": 1, "rounds": 3, "tokens": 1234,
        "nonrepeating": 2, "contenders": {name: row(name, *figures) for name, figures in speeds.items()},
        "missing": {"assisted": "nobody is there to assist"},
        "memory": {"weight_bytes": 25_000_000, "kv_bytes_per_token": 8192.0, "kv_bytes_at_context": 800_000},
        "curve": {"sizes": [1, 2, 8, 64], "ms": [4.0, 5.0, 6.0, 12.0], "context": 128},
        "roofline": {"weight_bytes": 24_000_000, "kv_bytes": 1_000_000, "context": 99.5, "bytes": 25_000_000,
                     "memory_gb_s": 10.0, "bandwidth_gb_s": 25.0, "operation": "sum", "floor_ms": 1.0,
                     "share_of_step": {"generate": 0.133, "plain": 0.2}, "share_of_forward": {"plain": 0.25},
                     "notes": ["only made up"]},
        **more,
    }  # fmt: skip


def test_the_text_says_what_was_measured():
    text = markdown([made_up()], {"speed": ["speed.png", "speed.svg"]}, date="2030-01-02")
    assert "| abacus-7b | sums | Abacus, 2 threads, float32 | 100.0 | 333.3 (x3.33) | 4 of 5 | measured |" in text
    assert "| PIA, cache warmed | 333.3 | 330.3 .. 338.3 | 3.33 x | 1.00 | 4 of 5 | 12.5 (11.0 .. 14.0) | 8.0 |" in text
    assert "| PIA, cache warmed | 5.000 | 0.100 (2.0%) | 4.000 (80.0%) |" in text
    assert "*generate, assisted* is not here: nobody is there to assist." in text
    assert "engine static (measured: 2.0 x eager)" in text
    assert "| PIA without drafts, forward alone | 25.0% |" in text
    assert "only made up" in text
    assert "| PIA, cache warmed | 1.25 of 6.0 | 1.25 of 6.0 |" in text
    assert "| PIA without drafts | 1.25" not in text
    assert "![Tokens per second](speed.png)" in text
    assert "2030-01-02" in text


def test_replays_are_marked():
    label = "abacus-7b shape, random weights, tokens from sums"
    text = markdown([made_up(), made_up(is_replay=True, label=label)], {}, date="")
    rows = [line for line in text.splitlines() if line.startswith("| abacus-7b |")]
    assert [line.endswith("| **replay** |") for line in rows] == [False, True]
    assert f"**Replay**: {label}." in text


def test_a_batch_has_no_roofline():
    case = made_up(batch=8, roofline=None)
    case["contenders"]["generate"]["step_ms"] = None
    text = markdown([case], {}, date="")
    assert "sums, batch 8" in text
    assert "### Roofline" not in text


def test_tables_are_whole():
    for line in markdown([made_up()], {}, date="").split("\n\n"):
        if line.startswith("| "):
            assert len({part.count("|") for part in line.splitlines()}) == 1


@pytest.mark.parametrize("num_cases", [1, 3])
def test_plots(tmp_path, num_cases):
    pytest.importorskip("matplotlib")
    cases = [made_up(prompt_set=f"sums {number}") for number in range(num_cases)]
    plots = draw_plots(cases, tmp_path)
    assert list(plots) == ["speed", "steps", "roofline"]
    for png, svg in plots.values():
        assert (tmp_path / png).read_bytes().startswith(b"\x89PNG")
        assert ElementTree.parse(tmp_path / svg).getroot().tag.endswith("svg")


def test_plots_without_figures_are_left_out(tmp_path):
    pytest.importorskip("matplotlib")
    case = made_up(curve=None)
    for contender in case["contenders"].values():
        contender["step_ms"] = contender["steps"] = None
    assert list(draw_plots([case], tmp_path)) == ["speed"]


def test_steps_that_would_hide_the_others_are_left_out(tmp_path):
    pytest.importorskip("matplotlib")
    case = made_up()
    case["contenders"]["generate"]["step_ms"] = 50.0
    (steps,) = draw_plots([{**case, "curve": None}], tmp_path)["steps"][1:]
    assert "not drawn: generate 50.0" in (tmp_path / steps).read_text()  # the comment beside the drawn letters


def test_a_report_grows(tmp_path):
    folder = tmp_path / "new" / "report"
    first = ReportFolder(str(folder))
    first.add(made_up())
    assert json.loads((folder / "report.json").read_bytes())["cases"][0]["model"] == "abacus-7b"
    more = ReportFolder(str(folder), append=True)
    more.add(made_up(prompt_set="products"))
    more.add(made_up(tokens=99))  # measured again
    files = more.finish()
    cases = json.loads((folder / "report.json").read_bytes())["cases"]
    assert [(case["prompt_set"], case["tokens"]) for case in cases] == [("products", 1234), ("sums", 99)]
    assert "| abacus-7b | products |" in (folder / "report.md").read_text()
    assert str(folder / "report.md") in files
    ReportFolder(str(folder)).add(made_up())
    assert len(json.loads((folder / "report.json").read_bytes())["cases"]) == 1


def test_without_matplotlib_there_are_no_plots(tmp_path, monkeypatch):
    monkeypatch.setattr("pia.bench.report_folder.has_matplotlib", lambda: False)
    folder = ReportFolder(str(tmp_path))
    folder.add(made_up())
    assert len(folder.finish()) == 2
    assert "Matplotlib is not installed" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("content", ["{", "[]", '{"cases": [{"model": 1}]}'])
def test_what_cannot_be_added_to(tmp_path, content):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(UnsupportedOptionError, match="leave out --append"):
        ReportFolder(str(tmp_path), append=True)
