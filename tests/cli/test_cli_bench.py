"""`pia bench` and `pia demo`: their figures, their last line, and fairness."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from cli_support import QUESTION, assert_one_line_error, environment

from pia.bench.contenders import Accelerated, Run, Stock, usual_contenders, warm_up
from pia.bench.latency import measure
from pia.bench.report import Report, repeats
from pia.drafting.cache import DraftCache
from pia.lookahead import Lookahead

CONTENDERS = ["generate", "prompt_lookup", "plain", "pia_cold", "pia"]


@pytest.fixture
def prompts_file(tmp_path):
    path = tmp_path / "prompts.jsonl"
    lines = [{"question": QUESTION}, {"prompt": "Tom has 3"}, {"messages": [{"role": "user", "content": QUESTION}]}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


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
    report = measure(model, prompts, contenders, rounds=3, max_new_tokens=24, do_sample=False)
    steps = [[run.stats.edls for run in runs] for runs in report.runs["pia_cold"]]
    assert steps[0] == steps[1] == steps[2]
    assert report.num_identical("pia_cold") == 2


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
    options = {"max_new_tokens": 4, "do_sample": False}
    measure(model, prompts, contenders, rounds=1, on_answer=lambda _, name: order.append(name), **options)
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
