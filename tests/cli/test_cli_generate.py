"""`pia generate`: plain text in a pipe, marks where they are asked for, Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

from cli_support import QUESTION, assert_one_line_error, environment

LONG = ["--temperature", "5", "--seed", "1", "--max-new-tokens", "900"]
"""So hot that the end is hardly ever drawn."""


def test_a_pipe_gets_the_plain_text(pia, small_cache, demo):
    model, tokenizer = demo
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**prompt, max_new_tokens=48, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    expected = tokenizer.decode(ids, skip_special_tokens=True)
    line = ["generate", "demo", "--chat", "--prompt", "-", "--cache", small_cache, "--max-new-tokens", "48"]
    result = pia(*line, "--stats", stdin=QUESTION + "\n")
    assert result.returncode == 0, result.stderr
    assert result.stdout == expected + "\n"
    assert result.stderr.startswith("Stats(")


def test_drafts_are_marked_on_demand(run_here, small_cache):
    line = ["generate", "demo", "--chat", "--prompt", QUESTION, "--cache", small_cache, "--budget", "8"]
    plain = run_here(*line).stdout
    marked = run_here(*line, "--show-drafts").stdout
    opening, closing = "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}", "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}"
    assert marked.count(opening) == marked.count(closing)
    assert marked.replace(opening, "").replace(closing, "") == plain


def test_json(run_here, small_cache):
    result = run_here(
        "generate", "demo", "--prompt", "Tom has 3", "--cache", small_cache, "--max-new-tokens", "16", "--json"
    )
    assert result.stdout.count("\n") == 1
    fields = json.loads(result.stdout)
    assert {"text", "token_ids", "finish_reason", "stats"} <= fields.keys()
    assert len(fields["token_ids"]) == fields["stats"]["num_tokens"] <= 16


def test_a_seed_gives_the_same_text_with_and_without_drafts(run_here, small_cache):
    line = ["generate", "demo", "--chat", "--prompt", QUESTION, "--cache", small_cache, "--max-new-tokens", "48"]
    sampling = ["--temperature", "0.9", "--top-p", "0.95", "--top-k", "50", "--seed", "7"]
    drafted, plain = run_here(*line, *sampling, "--budget", "8"), run_here(*line, *sampling, "--budget", "0")
    assert drafted.returncode == 0, drafted.stderr
    assert drafted.stdout == plain.stdout
    assert drafted.stdout != run_here(*line, *sampling[:-1], "8").stdout


def test_stop_text(run_here, small_cache):
    line = ["generate", "demo", "--chat", "--prompt", QUESTION, "--cache", small_cache, "--budget", "8"]
    whole = run_here(*line).stdout
    word = whole.split()[3]
    stopped = run_here(*line, "--stop", word).stdout.rstrip("\n")
    assert whole.startswith(stopped)
    assert stopped.endswith(word)


def test_prompts_that_cannot_be_answered(run_here, small_cache):
    line = ["generate", "demo", "--cache", small_cache, "--prompt"]
    assert_one_line_error(run_here(*line, ""), "empty")
    assert_one_line_error(run_here(*line, "many words " * 1000), "context")


def test_an_answer_ends_with_the_context(run_here, small_cache):
    line = ["generate", "demo", "--prompt", "Tom", "--cache", small_cache, "--json", "--budget", "8", *LONG[:-2]]
    fields = json.loads(run_here(*line, "--max-new-tokens", "100000").stdout)
    assert len(fields["token_ids"]) < 1024


def test_ctrl_c_keeps_what_was_written(tmp_path, small_cache):
    command = [sys.executable, "-m", "pia", "generate", "demo", "--prompt", "Tom", "--cache", str(small_cache), *LONG]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # ignored in background jobs
    ) as process:
        start = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.decode().strip() == "pia: interrupted"
    assert (start + rest).endswith(b"\n")


def test_a_predicted_output(run_here, small_cache, tmp_path):
    line = ["generate", "demo", "--chat", "--prompt", QUESTION, "--cache", small_cache, "--budget", "16"]
    plain = run_here(*line, "--json")
    (tmp_path / "expected.txt").write_text(json.loads(plain.stdout)["text"])
    fields = json.loads(run_here(*line, "--json", "--predict", "expected.txt").stdout)
    assert fields["text"] == json.loads(plain.stdout)["text"]
    assert fields["stats"]["accepted_by_source"]["predicted"] > 0
    assert fields["stats"]["edl"] > json.loads(plain.stdout)["stats"]["edl"]
    (tmp_path / "empty.txt").write_text("")
    assert json.loads(run_here(*line, "--json", "--predict", "empty.txt").stdout)["text"] == fields["text"]


def test_files_that_hold_no_predicted_output(run_here, small_cache, tmp_path):
    line = ["generate", "demo", "--prompt", "Tom", "--cache", small_cache, "--predict"]
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    (tmp_path / "data.bin").write_bytes(b"text\0text")
    (tmp_path / "folder").mkdir()
    assert_one_line_error(run_here(*line, "missing.txt"), "missing.txt")
    assert_one_line_error(run_here(*line, "folder"), "folder")
    assert_one_line_error(run_here(*line, "latin.txt"), "latin.txt", "UTF-8")
    assert_one_line_error(run_here(*line, "data.bin"), "data.bin", "zero bytes")


def test_a_jacobi_window_changes_no_token(run_here, small_cache):
    line = [
        "generate",
        "demo",
        "--chat",
        "--prompt",
        QUESTION,
        "--cache",
        small_cache,
        "--max-new-tokens",
        "40",
        "--json",
    ]
    plain = json.loads(run_here(*line, "--budget", "0").stdout)
    for sizes in (["--jacobi"], ["--jacobi", "5,4,6"]):
        windowed = json.loads(run_here(*line, "--budget", "8", *sizes).stdout)
        assert windowed["token_ids"] == plain["token_ids"]
        assert windowed["stats"]["num_window"] > 0 == plain["stats"]["num_window"]
