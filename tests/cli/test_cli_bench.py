"""`pia bench` and `pia demo`: their figures, their last line, and fairness."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from cli_support import QUESTION, assert_one_line_error, environment

from pia.assets import demo_model_path
from pia.bench.contenders import Accelerated, Run, Stock, usual_contenders, warm_up
from pia.bench.latency import measure
from pia.bench.report import Report, repeats
from pia.bench.workload import Workload
from pia.cli.bench_prompts import encode_prompt, read_prompt_sets
from pia.drafting.cache import DraftCache
from pia.lookahead import Lookahead
from toys import prompts, tiny_model

CONTENDERS = ["generate", "prompt_lookup", "plain", "pia_cold", "pia"]


@pytest.fixture
def prompts_file(tmp_path):
    path = tmp_path / "prompts.jsonl"
    lines = [{"question": QUESTION}, {"prompt": "Tom has 3"}, {"messages": [{"role": "user", "content": QUESTION}]}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(autouse=True)
def short_bandwidth_passes(monkeypatch):
    """What a roofline is worth does not matter here, and its passes through memory take seconds."""
    monkeypatch.setattr("pia.bench.bandwidth._SECONDS", 0.01)
    monkeypatch.setattr("pia.bench.bandwidth._LARGE", {"cpu": 64 << 20, "other": 64 << 20})


def check_figures(line, num_questions):
    figures = json.loads(line)
    assert figures["questions"] == figures["identical"] == num_questions
    assert list(figures["tokens_per_s"]) == CONTENDERS
    assert all(speed > 0 for speed in figures["tokens_per_s"].values())
    assert figures["ratio"].keys() == {"pia_over_generate", "pia_over_plain", "pia_over_prompt_lookup"}
    assert figures["ratio_nonrepeating"].keys() == figures["ratio"].keys()
    assert figures["edl"] >= 1
    assert 0 <= figures["host_share"] < 1
    assert {"cpu", "cores", "torch", "transformers", "threads", "dtype"} <= figures["machine"].keys()
    assert sum(figures["accepted_by_source"].values()) == figures["accepted"]
    assert set(figures["by_source"]) <= {"pia_cold", "pia"}
    return figures


def test_bench_ends_with_one_json_line(pia, prompts_file, texts_file):
    result = pia(
        "bench", "demo", "--prompts", prompts_file, "--warm", texts_file, "--rounds", "1", "--max-new-tokens", "24"
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    table, _, last = result.stdout.rstrip("\n").rpartition("\n")
    check_figures(last, 3)
    assert "PIA without drafts" in table
    assert "float32" in table
    assert "of nodes drafted, by source" in table


def test_sources_are_compared(run_here, tmp_path):
    (tmp_path / "one.txt").write_text("Tom has 3 apples and buys 4 more.\n")
    line = ["bench", "demo", "--compare-sources", "--prompts", "one.txt", "--budgets", "8", "--rounds", "1"]
    result = run_here(*line, "--max-new-tokens", "12", "--forget")
    assert result.returncode == 0, result.stderr
    table, _, last = result.stdout.rstrip("\n").rpartition("\n")
    figures = json.loads(last)
    assert figures["identical"] == figures["questions"] == 1
    ways = ["cache", "recycled", "jacobi", "token_recycling", "mix", "mix_jacobi"]
    assert list(figures["edl"]) == [*(f"{way}@8" for way in ways), "token_recycling@80"]
    assert figures["edl"].keys() == figures["over_plain"].keys() == figures["contenders"].keys()
    assert figures["forgets"] is True
    worst = figures["worst_case"]
    assert (worst["is_sampled"], worst["temperature"], worst["identical"]) == (True, 4.0, 1)
    ways.remove("token_recycling")
    assert list(worst["edl"]) == [*(f"{way}@auto" for way in ways), "token_recycling@80"]
    assert "all in one tree" in table
    assert "text drawn at temperature 4" in table
    assert "At 8, all in one tree: " in table


def test_a_report_of_two_prompt_sets(run_here, prompts_file, tmp_path):
    (tmp_path / "more=1.txt").write_text("Tom has 3\n")
    result = run_here(
        "bench", "demo", "--prompts", f"mixed={prompts_file}", "--prompts", "more=1.txt", "--assistant", "demo",
        "--rounds", "1", "--max-new-tokens", "12", "--questions", "2", "--budget", "4", "--report", "out/report",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    *shown, last = result.stdout.splitlines()
    assert any("Beside the steps" in line for line in shown)
    figures = json.loads(last)
    assert figures["prompt_set"] == "mixed" and figures["questions"] == figures["identical"] == 2
    assert [case["prompt_set"] for case in figures["cases"]] == ["mixed", "more=1"]
    assert not figures["is_replay"]
    cases = json.loads((tmp_path / "out/report/report.json").read_bytes())["cases"]
    for case in cases:
        check_full_case(case)
    assert all((tmp_path / name).exists() for name in figures["files"])
    assert "| demo | more=1 |" in (tmp_path / "out/report/report.md").read_text()


def check_full_case(case):
    assert list(case["contenders"]) == [*CONTENDERS[:2], "assisted", *CONTENDERS[2:]]
    assert case["missing"] == {}
    for name, row in case["contenders"].items():
        assert row["first_token_ms"]["median"] > 0
        assert row["step_ms"] > 0
        assert row["setup_s"]["first"] > 0
        assert (row["steps"] is not None) == (name in ("plain", "pia_cold", "pia"))
        assert row["identical"] in (None, case["questions"])
    assert case["contenders"]["assisted"]["edl"] > 1
    assert case["roofline"]["bytes"] > case["memory"]["weight_bytes"] == 24_921_088
    assert case["roofline"]["share_of_step"].keys() == {"generate", "plain"}
    assert case["curve"]["sizes"][0] == 1


def test_packed_prompts_are_continued_as_they_are(run_here, tmp_path, demo):
    """HumanEval's file: the text of `prompt`, its last line end included, without the chat template."""
    _, tokenizer = demo
    records = [{"task_id": f"Tiny/{i}", "prompt": f'def f{i}():\n    """Gives {i}."""\n'} for i in range(2)]
    packed = gzip.compress("".join(json.dumps(record) + "\n" for record in records).encode())
    (tmp_path / "Tiny.jsonl.gz").write_bytes(packed)
    line = ["bench", "demo", "--prompts", "Tiny.jsonl.gz", "--rounds", "1", "--max-new-tokens", "4", "--budget", "4"]
    figures = json.loads(run_here(*line, "--questions", "1", "--json").stdout)
    assert figures["prompt_set"] == "Tiny" and figures["questions"] == figures["identical"] == 1
    args = SimpleNamespace(model="demo", prompts=["Tiny.jsonl.gz"], questions=None, chat=False, max_new_tokens=4)
    (prompts,) = read_prompt_sets(args).values()
    encoded = [encode_prompt(demo[0], tokenizer, prompt, args)[0].tolist() for prompt in prompts]
    assert [tokenizer.decode(ids) for ids in encoded] == [record["prompt"] for record in records]


def test_packed_prompts_that_are_wrong(run_here, tmp_path):
    packed = gzip.compress(b'{"task_id": "Tiny/0", "canonical_solution": "return 1"}')
    (tmp_path / "no-prompt.jsonl.gz").write_bytes(packed)
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[:-8])
    for name, part in (("no-prompt", "only task_id, canonical_solution"), ("cut", "no whole gzip file")):
        assert_one_line_error(run_here("bench", "demo", "--prompts", f"{name}.jsonl.gz"), part)


def test_batches_say_who_is_missing(run_here, prompts_file):
    result = run_here(
        "bench", "demo", "--prompts", prompts_file, "--rounds", "1", "--max-new-tokens", "8", "--batch", "2",
        "--budget", "4", "--report", "report",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["missing"].keys() == {"prompt_lookup", "assisted"}
    assert figures["roofline"] is None
    assert figures["identical"] == 3


def test_the_demo_model_assists_models_of_its_tokenizer(run_here, tmp_path):
    shutil.copytree(demo_model_path(), tmp_path / "copy")
    (tmp_path / "prompts.txt").write_text("Tom has 3\n")
    line = ["bench", "./copy", "--prompts", "prompts.txt", "--rounds", "1", "--max-new-tokens", "8", "--budget", "4"]
    figures = json.loads(run_here(*line, "--json").stdout)
    assert figures["model"] == "copy"
    assert figures["identical_by_contender"]["assisted"] == 1
    assert figures["missing"] == {}


class FakeReplay:
    """What `pia.bench.forced` makes: a model that is made to write recorded texts, one prompt at a time."""

    label = "tiny shape, random weights, tokens from nowhere"
    max_new_tokens = [6, 8]  # noqa: RUF012

    def __init__(self, trace, shape, **options):
        self.asked = (trace, shape, options)
        self.model = tiny_model("llama")
        self.prompts = prompts(2)
        self.new_cache = DraftCache
        self.forced = []

    @contextmanager
    def forcing(self, index):
        self.forced.append(index)
        yield


@pytest.fixture
def fake_replays(monkeypatch):
    made = []

    def replay_case(*args, **options):
        made.append(FakeReplay(*args, **options))
        return made[-1]

    monkeypatch.setitem(sys.modules, "pia.bench.forced", SimpleNamespace(replay_case=replay_case))
    return made


def test_replays_are_marked_everywhere(run_here, fake_replays, tmp_path):
    result = run_here(
        "bench", "--replay", "one.npz", "--replay", "two.npz", "--shape", "tiny", "--warm-requests", "3",
        "--questions", "2", "--budget", "4", "--rounds", "1", "--context", "100", "--dtype", "bfloat16",
        "--device", "cpu", "--report", "report",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout.splitlines()[-1])
    assert [(case["prompt_set"], case["is_replay"]) for case in figures["cases"]] == [("one", True), ("two", True)]
    assert figures["model"] == "tiny shape" and figures["label"] == FakeReplay.label
    assert figures["missing"].keys() == {"assisted"}
    assert "A REPLAY" in result.stdout
    for case in figures["cases"]:  # the logits of such a model are no source of drafts
        assert all(set(sources) <= {"own", "shared"} for sources in case["by_source"].values())
    assert (tmp_path / "report/report.md").read_text().count("**replay** |") == 2
    first, second = fake_replays
    wanted = {"dtype": torch.bfloat16, "device": "cpu", "limit": 2, "warm": 3, "context": 100}
    assert first.asked == ("one.npz", "tiny", {**wanted, "like": None})
    assert second.asked == ("two.npz", "tiny", {**wanted, "like": first})
    assert set(first.forced[:5]) == {0} and set(first.forced) == {0, 1}


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("bench", "name a MODEL"),
        ("bench --replay one.npz", "--shape"),
        ("bench --shape llama2-7b", "--replay"),
        ("bench demo --replay one.npz --shape llama2-7b", "takes no MODEL"),
        ("bench --replay one.npz --shape llama2-7b --prompts x.txt", "takes no --prompts"),
        ("bench --replay one.npz --shape llama2-7b --temperature 1", "takes no --temperature"),
        ("bench --replay one.npz --shape llama2-7b --batch 2", "--batch"),
        ("bench --replay one.npz --shape llama2-7b --sources recycled", "leave out --sources"),
        ("bench demo --warm-requests 3", "--warm-requests"),
        ("bench demo --context 3", "--context"),
        ("bench demo --append", "--report"),
        ("bench demo --budgets 8", "--compare-sources"),
        ("bench demo --forget", "--compare-sources"),
        ("bench --compare-sources", "name a MODEL"),
        ("bench demo --compare-sources --report x", "takes no --report"),
        ("bench demo --compare-sources --budget 8", "--budgets"),
        ("bench demo --compare-sources --sources cache", "--sources"),
        ("bench demo --prompts a/x.txt --prompts b/x.txt", "NAME=FILE"),
    ],
)
def test_wrong_command_lines(run_here, tmp_path, line, part):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text("Tom\n")
    assert_one_line_error(run_here(*line.split()), part)


def test_sampling_is_compared_with_the_plain_loop(run_here, prompts_file, small_cache):
    result = run_here(
        "bench", "demo", "--prompts", prompts_file, "--warm", small_cache, "--rounds", "2", "--max-new-tokens", "24",
        "--questions", "2", "--sample", "--seed", "3", "--budget", "8", "--json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1
    assert check_figures(result.stdout, 2)["reference"] == "plain"


def test_demo_shows_and_measures(run_here):
    result = run_here("demo", "--questions", "2", "--max-new-tokens", "48")
    assert result.returncode == 0, result.stderr
    assert "outputs identical: 2 of 2" in result.stdout
    assert "2 of 2 " in result.stdout
    assert "time in draft" in result.stdout
    assert "\x1b" not in result.stdout
    check_figures(run_here("demo", "--questions", "1", "--max-new-tokens", "8", "--json").stdout.splitlines()[-1], 1)


def test_demo_in_colour(run_here, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = run_here("demo", "--questions", "1", "--max-new-tokens", "32")
    assert "\x1b[1;32m" in result.stdout
    assert "outputs identical" in result.stdout


def test_prompts_that_do_not_fit(run_here, tmp_path):
    (tmp_path / "long.txt").write_text("many words " * 1000)
    assert_one_line_error(run_here("bench", "demo", "--prompts", "long.txt"), "context of", "--max-new-tokens")
    (tmp_path / "empty.txt").write_text("\n\n")
    assert_one_line_error(run_here("bench", "demo", "--prompts", "empty.txt"), "no prompts")


def test_rounds_do_not_see_their_own_answers(demo):
    """Every round of a cold cache drafts exactly what the first one did."""
    model, _ = demo
    prompts = [torch.tensor([[5, 6, 7, 8]]), torch.tensor([[5, 6, 7, 9]])]
    contenders = [Stock("generate"), Accelerated("pia_cold", DraftCache, budget=8)]
    workload = Workload(model, prompts, [24, 24], {"do_sample": False})
    report = measure(workload, contenders, rounds=3)
    steps = [[run.stats.edls for run in runs] for runs in report.runs["pia_cold"]]
    assert steps[0] == steps[1] == steps[2]
    assert report.num_identical("pia_cold") == 2
    assert [len(report.setup_s[name]) for name in ("generate", "pia_cold")] == [3, 3]


def test_warming_up_teaches_nothing(demo):
    model, _ = demo
    lookahead = Lookahead(budget=8)
    warm_up(model, torch.tensor([[5, 6, 7, 8]]), lookahead)
    assert lookahead.cache.num_tokens == 0


def test_contenders_take_turns(demo):
    model, _ = demo
    order: list[str] = []
    contenders = usual_contenders(DraftCache, budget=4)
    prompts = [torch.tensor([[5, 6, 7, token]]) for token in (8, 9)]
    workload = Workload(model, prompts, [4, 4], {"do_sample": False})
    measure(workload, contenders, rounds=1, on_answer=lambda _, name: order.append(name))
    assert order[:5] == CONTENDERS
    assert order[5:] == [*CONTENDERS[1:], CONTENDERS[0]]


def test_figures_of_a_report():
    fast = [
        [Run([1, 2, 3, 4], 1.0, None), Run([7] * 9, 1.0, None)],
        [Run([1, 2, 3, 4], 2.0, None), Run([7] * 9, 1.0, None)],
    ]
    slow = [[Run([1, 2, 3, 4], 4.0, None), Run([8] * 9, 9.0, None)]] * 2
    report = Report({"generate": slow, "pia": fast}, "generate")
    assert report.num_identical("pia") == 1
    assert report.nonrepeating == [0]
    assert report.tokens_per_s("generate") == pytest.approx(1.0)
    assert report.tokens_per_s("pia") == pytest.approx((13 / 2 + 13 / 3) / 2)
    assert report.ratio("pia", "generate", [0]) == pytest.approx(3.0)
    assert report.ratio("pia", "generate", []) is None
    assert report.ratio_per_prompt("pia", "generate") == pytest.approx(6.5)


def test_repeats():
    assert not repeats([1, 2, 3] * 2)
    assert repeats(list(range(8)) + list(range(8)))
    assert repeats([0] * 9)
    assert not repeats([0] * 8)


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_ctrl_c_leaves_the_terminal_clean(tmp_path, prompts_file, small_cache):
    import pty

    ours, theirs = pty.openpty()
    line = ["bench", "demo", "--prompts", str(prompts_file), "--warm", str(small_cache), "--rounds", "99"]
    with subprocess.Popen(
        [sys.executable, "-m", "pia", *line],
        stdout=subprocess.PIPE,
        stderr=theirs,
        cwd=tmp_path,
        env=environment(TERM="xterm"),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # ignored in background jobs
    ) as process:
        os.close(theirs)
        shown = b""
        deadline = time.monotonic() + 60
        while b"round 1" not in shown and time.monotonic() < deadline:
            shown += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        shown += _rest(ours)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output == b""
    assert b"Traceback" not in shown
    assert b"pia: interrupted" in shown
    assert shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l"), "the cursor is still hidden"


def _rest(terminal):
    shown = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # the other side is closed
            return shown
        if not part:
            return shown
        shown += part
