"""The surface of the command line: help, and every mistake that shows before a model is loaded."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from cli_support import assert_one_line_error, environment

VERBS = ("demo", "generate", "chat", "bench", "replay", "cache", "convert", "models", "env")


def test_help_is_instant_and_imports_nothing_heavy(pia):
    started = time.perf_counter()
    result = min((_timed(pia) for _ in range(3)), key=lambda pair: pair[0])
    assert result[0] < 0.5, f"{result[0]:.2f} s (all: {time.perf_counter() - started:.2f} s)"
    assert result[1].returncode == 0
    assert all(verb in result[1].stdout for verb in VERBS)
    code = (
        "import sys, pia.cli; pia.cli.build_parser(); "
        "print([name for name in ('torch', 'transformers', 'rich', 'numpy') if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert loaded.stdout.strip() == "[]"


def _timed(pia):
    started = time.perf_counter()
    result = pia("--help")
    return time.perf_counter() - started, result


@pytest.mark.parametrize("verb", [*VERBS, "cache build", "cache info", "cache merge"])
def test_every_verb_explains_itself(run_here, verb):
    result = run_here(*verb.split(), "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: pia {verb}")


def test_version(run_here):
    import pia

    assert run_here("--version").stdout == f"pia {pia.__version__}\n"


def test_a_mistake_ends_the_process_with_code_2(pia):
    assert_one_line_error(pia("generate", "demo", "--prompt", "x", "--nonsense"), "--nonsense", "--help")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("", "VERB"),
        ("fly", "fly"),
        ("generate demo", "--prompt"),
        ("generate demo --prompt x --max-new 5", "--max-new"),  # no abbreviations
        ("generate demo --prompt x --max-new-tokens 0", "at least 1"),
        ("generate demo --prompt x --temperature -1", "-1"),
        ("generate demo --prompt x --temperature nan", "nan"),
        ("generate demo --prompt x --top-p 1.5", "from 0 to 1"),
        ("generate demo --prompt x --stop=", "empty"),
        ("generate demo --prompt x --budget many", "many"),
        ("generate --jacobi demo --prompt x", "'demo' is not W,N,G"),
        ("generate demo --prompt x --jacobi 15,5", "'15,5' is not W,N,G"),
        ("generate demo --prompt x --jacobi 15,1,15", "ngram_size must be a whole number of at least 2"),
        ("generate demo --prompt x --dtype int8", "int8"),
        ("cache", "ACTION"),
        ("cache build out.pia", "FILE"),
        ("cache merge out.pia", "FILE"),
        ("demo --questions three", "three"),
        ("demo --questions 101", "100 questions"),
        ("bench demo --rounds 0", "at least 1"),
        ("bench ./nowhere", "--prompts"),
        ("generate demo --prompt x --record notes.txt", "notes.txt"),
        ("generate demo --prompt x --record nowhere/notes.jsonl", "folder exists"),
        ("generate demo --prompt x --record-top-k 8", "--record FILE"),
        ("generate demo --prompt x --sources cache,magic", "sources must be one or more of cache, recycled"),
        ("bench demo --sources ,", "commas"),
    ],
)
def test_wrong_command_lines(run_here, line, part):
    assert_one_line_error(run_here(*line.split()), part)


@pytest.mark.parametrize(
    "line",
    [
        "cache info missing.pia",
        "cache merge out.pia missing.pia",
        "cache build out.pia --tokenizer demo missing.txt",
        "bench demo --prompts missing.txt",
        "replay missing.npz",
        "replay missing.jsonl",
    ],
)
def test_missing_files(run_here, line):
    assert_one_line_error(run_here(*line.split()), "missing", "No such file")


def test_missing_model_folder(run_here):
    assert_one_line_error(run_here("generate", "./no-model", "--prompt", "x"), "no folder", "no-model")


def test_folder_without_a_model(run_here, tmp_path):
    (tmp_path / "empty").mkdir()
    assert_one_line_error(run_here("generate", "./empty", "--prompt", "x"), "holds no model", "empty")


def test_model_that_is_nowhere(pia):
    result = pia("generate", "no-such/model", "--prompt", "x")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "no-such/model" in result.stderr.splitlines()[-1]


def test_unusable_device(run_here):
    assert_one_line_error(run_here("generate", "demo", "--prompt", "x", "--device", "warp:9"), "warp:9")


def test_bad_json_line_is_named(run_here, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "one"}\n\n{"prompt": two}\n')
    assert_one_line_error(run_here("bench", "demo", "--prompts", "prompts.jsonl"), "prompts.jsonl, line 3", "JSON")


def test_debug_shows_the_traceback(pia):
    result = pia("cache", "info", "missing.pia", PIA_DEBUG="1")
    assert result.returncode != 0
    assert "Traceback" in result.stderr


@pytest.mark.parametrize("line", ["--help", "cache info FILE"])
def test_a_reader_that_leaves_is_no_error(small_cache, line):
    command = f"{sys.executable} -m pia {line.replace('FILE', str(small_cache))} | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment(), timeout=60)
    assert (result.returncode, result.stderr) == (0, "")


def test_env(run_here):
    import json

    facts = json.loads(run_here("env", "--json").stdout)
    assert {"pia", "torch", "transformers", "python", "cpu", "cores", "threads", "cache_format"} <= set(facts)
    assert "sdpa" in facts["attention_implementations"]
    shown = run_here("env", "--model", "demo").stdout
    assert "one forward over q tokens" in shown
    assert "tree" in shown
