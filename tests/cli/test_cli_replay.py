"""`pia replay`: its table, its last line, its plot, and every mistake a user can make with it."""

from __future__ import annotations

import json

import pytest
from cli_support import QUESTION, assert_one_line_error

from pia.bench.trace import Trace

FIELDS = {
    "trace", "drafter", "budget", "curve", "warm", "requests", "edl", "drafted", "acceptance_by_depth", "by_source",
    "calibration", "draft_us", "update_us", "p99_us", "bytes_per_token", "speedup",
}  # fmt: skip

MINE = """
class Repeat:
    def begin(self, prompt_ids):
        self.last = 0

    def propose(self, budget):
        return [self.last], [-1], [0.5]

    def observe(self, token_ids):
        self.last = token_ids[-1]


class Backwards(Repeat):
    def propose(self, budget):
        return [1, 2], [1, -1]


class Failing(Repeat):
    def __init__(self):
        raise RuntimeError("no luck")
"""


@pytest.fixture
def trace_file(tmp_path):
    """A small trace as JSON lines."""
    requests = [{"prompt_ids": [1, 2, 3], "output_ids": [*range(4, 24), 7, 7, n]} for n in range(8)]
    path = tmp_path / "small.jsonl"
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    return path


def test_the_table_and_the_last_line(pia):
    """The traces that come with PIA, through what every installation has."""
    result = pia("replay", "--drafters", "pia,pld,seed", "--budgets", "8,16,auto", "--warm", "12", "--limit", "18")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    table, _, last = result.stdout.rstrip("\n").rpartition("\n")
    figures = json.loads(last)
    assert set(figures) == {"rows", "notes", "machine"}
    assert {"cpu", "cores", "python", "pia"} <= figures["machine"].keys()
    rows = figures["rows"]
    assert all(row.keys() >= FIELDS for row in rows)
    assert len(rows) == 2 * (2 * 3 + 2)  # two traces; three drafters at fixed budgets, pia's auto under two curves
    assert all((row["warm"], row["requests"]) == (12, 6) for row in rows)
    best = {row["drafter"]: row["edl"] for row in rows if row["budget"] == 16}
    assert best["pia"] > best["seed"] > best["pld"] > 1
    assert "gsm-mixtral-8x7b: 6 requests, after 12 that warm" in table
    assert "pia against the best of the others: " in table
    assert "best fixed" in table
    assert "no auto budget for pld, seed, which estimate no probabilities" in table
    assert "\x1b" not in table


def test_json_alone_by_default_with_half_of_the_requests_to_warm(run_here, trace_file):
    result = run_here("replay", trace_file, "--json")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1
    rows = json.loads(result.stdout)["rows"]
    assert {row["drafter"] for row in rows} >= {"pia", "pld", "seed"}
    assert {row["budget"] for row in rows} == {16, 64}
    assert {(row["warm"], row["requests"], row["trace"]) for row in rows} == {(4, 4, "small")}


def test_a_class_of_the_users(run_here, trace_file, tmp_path):
    (tmp_path / "mine_ok.py").write_text(MINE)
    result = run_here("replay", trace_file, "--drafters", "pia,mine_ok:Repeat", "--budgets", "4,auto", "--repeat", "2")
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout.splitlines()[-1])["rows"]
    assert [row["drafter"] for row in rows] == ["pia"] * 3 + ["mine_ok:Repeat"] * 3
    assert rows[3]["drafted"] == 1
    assert rows[3]["calibration"][0]["predicted"] == 0.5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Backwards", "the drafter mine_bad:Backwards: propose returned node 0 with parent 1"),
        ("Failing", "RuntimeError: no luck"),
        ("Nothing", "has no class 'Nothing'"),
    ],
)
def test_classes_that_do_not_do(run_here, trace_file, tmp_path, name, words):
    (tmp_path / "mine_bad.py").write_text(MINE)
    assert_one_line_error(run_here("replay", trace_file, "--drafters", f"mine_bad:{name}"), words)


def test_a_measured_curve(run_here, trace_file, tmp_path):
    (tmp_path / "mine.json").write_text('{"sizes": [1, 8], "seconds": [0.1, 0.8]}')
    result = run_here("replay", trace_file, "--drafters", "pia", "--budgets", "4", "--cost", "mine.json", "--json")
    (row,) = json.loads(result.stdout)["rows"]
    assert row["speedup"].keys() == {"mine"}
    assert row["speedup"]["mine"] == pytest.approx(row["edl"] / (1 + row["drafted"]), rel=1e-3)


def test_a_peer_that_is_missing(run_here, trace_file, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "arctic_inference.suffix_decoding", None)
    monkeypatch.setattr("pia.bench.drafters.Kind.is_installed", property(lambda kind: kind.needs != "arctic_inference"))
    result = run_here("replay", trace_file, "--budgets", "4")
    assert result.returncode == 0, result.stderr
    shown = " ".join(result.stdout.split())
    assert "arctic, arctic-wide, arctic-full: left out, not installed (get it: pip install --no-deps arctic" in shown
    asked = run_here("replay", trace_file, "--drafters", "arctic", "--budgets", "4")
    assert_one_line_error(asked, "the drafter arctic:", "pip install --no-deps arctic-inference")


@pytest.mark.parametrize("name", ["chart.png", "chart.svg"])
def test_plot(run_here, trace_file, tmp_path, name):
    pytest.importorskip("matplotlib")
    result = run_here("replay", trace_file, "--drafters", "pia,seed", "--budgets", "4,8,auto", "--plot", name, "--json")
    assert result.returncode == 0, result.stderr
    start = (tmp_path / name).read_bytes()[:8]
    assert start.startswith((b"\x89PNG", b"<?xml"))


@pytest.mark.parametrize("settings", ["--drafters seed --budgets 4", "--drafters pia --budgets auto --cost cpu"])
def test_plot_of_little(run_here, trace_file, tmp_path, settings):
    pytest.importorskip("matplotlib")
    result = run_here("replay", trace_file, *settings.split(), "--plot", "one.png", "--json")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "one.png").stat().st_size > 1000


def test_plots_that_cannot_be(run_here, trace_file, monkeypatch):
    assert_one_line_error(run_here("replay", trace_file, "--plot", "chart.bmp"), "chart.bmp", ".png")
    assert_one_line_error(run_here("replay", trace_file, "--plot", "nowhere/chart.png"), "no such folder")
    monkeypatch.setattr("pia.bench.plot.has_matplotlib", lambda: False)
    assert_one_line_error(run_here("replay", trace_file, "--plot", "chart.png"), "pip install matplotlib")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--warm 8", "lower --warm below 8"),
        ("--warm 4 --limit 4", "lower --warm below 4 or raise --limit"),
        ("--limit 0", "at least 1"),
        ("--warm -1", "-1"),
        ("--drafters magic", "unknown drafter 'magic'; choose from pia"),
        ("--drafters pia,,seed", "names with commas"),
        ("--budgets 8,many", "'many'"),
        ("--budgets 0", "at least 1"),
        ("--cost tpu", "unknown cost curve 'tpu'; choose from flat-gpu, cpu"),
        ("--cost missing.json", "missing.json"),
        ("--save out.txt", "ends with .npz"),
        ("--tokenizer ./nowhere", "nowhere"),
    ],
)
def test_mistakes(run_here, trace_file, line, words):
    assert_one_line_error(run_here("replay", trace_file, *line.split()), words)


def test_files_that_are_no_traces(run_here, tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 and no more")
    assert_one_line_error(run_here("replay", "bad.npz"), "bad.npz is damaged")
    (tmp_path / "empty.jsonl").write_text("")
    assert_one_line_error(run_here("replay", "empty.jsonl"), "holds no requests", "--record")
    (tmp_path / "text.jsonl").write_text('{"prompt": "a", "output": "b"}\n')
    assert_one_line_error(run_here("replay", "text.jsonl"), "--tokenizer")


def test_traces_of_one_name_are_told_apart(run_here, trace_file, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "small.jsonl").write_text(trace_file.read_text())
    line = ["replay", "small.jsonl", "old/small.jsonl", "--drafters", "pia", "--budgets", "4", "--json"]
    rows = json.loads(run_here(*line).stdout)["rows"]
    assert [row["trace"] for row in rows] == ["small.jsonl", "old/small.jsonl"]


def test_more_requests_than_there_are(run_here, trace_file):
    result = run_here("replay", trace_file, "--drafters", "pia", "--limit", "99", "--json")
    assert json.loads(result.stdout)["notes"] == ["small has 8 requests, not 99; all are taken"]


def test_text_with_a_tokenizer_is_saved_as_token_ids(run_here, tmp_path, texts_file):
    lines = [json.loads(line) for line in texts_file.read_text().splitlines()]
    renamed = [{"prompt": line["question"], "output": line["answer"]} for line in lines]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in renamed))
    line = ["replay", "text.jsonl", "--tokenizer", "demo", "--drafters", "pia", "--json", "--save", "ids.npz"]
    first = run_here(*line)
    assert first.returncode == 0, first.stderr
    second = run_here("replay", "ids.npz", "--drafters", "pia", "--json")
    assert json.loads(first.stdout)["rows"][0]["edl"] == json.loads(second.stdout)["rows"][0]["edl"]
    assert len(Trace.load(tmp_path / "ids.npz")) == len(lines)


@pytest.mark.parametrize("name", ["runs.jsonl", "runs.npz"])
def test_what_was_recorded_is_replayed(run_here, tmp_path, name):
    """Record real generations, then replay them: the same outputs, and drafts that would have helped."""
    line = ["generate", "demo", "--chat", "--prompt", QUESTION, "--budget", "8", "--max-new-tokens", "48"]
    record = ["--record", name, "--record-top-k", "8", "--sources", "cache", "--json"]
    answers = [json.loads(run_here(*line, *record).stdout) for _ in range(3)]
    trace = Trace.load(tmp_path / name)
    assert len(trace) == 3
    assert trace.meta["model"] == "demo_model"
    for answer, output in zip(answers, trace.outputs, strict=True):
        ids = answer["token_ids"]
        assert output.tolist() == (ids[:-1] if answer["finish_reason"] == "eos" else ids)
    assert all("recycled" not in answer["stats"]["drafted_by_source"] for answer in answers)
    drafters = "pia,pia-cache,pia-recycled,token-recycling"
    result = run_here("replay", name, "--drafters", drafters, "--budgets", "16", "--warm", "2")
    assert result.returncode == 0, result.stderr
    table, _, last = result.stdout.rstrip("\n").rpartition("\n")
    rows = {row["drafter"]: row for row in json.loads(last)["rows"]}
    assert rows["pia"]["edl"] > 4  # it has seen this very answer twice
    assert rows["pia"]["by_source"]["recycled"]["drafted"] > 0
    for name in ("pia-recycled", "token-recycling"):
        assert set(rows[name]["by_source"]) == {"recycled"}
        assert 1 < rows[name]["edl"] < rows["pia"]["edl"]
    assert "pia against the best of the single sources: " in table
    assert "x token-recycling at 16" in table
