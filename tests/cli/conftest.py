"""Runs the command line as a user does, in a process of its own; `run_here` saves the start-up where that will do."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from cli_support import QUESTION, TEXTS, environment


@pytest.fixture
def pia(tmp_path):
    """Runs `python -m pia ...` in an empty folder."""

    def run(*args, stdin="", **extra):
        command = [sys.executable, "-m", "pia", *map(str, args)]
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, cwd=tmp_path, env=environment(**extra), timeout=120
        )

    return run


@pytest.fixture
def run_here(capsys, monkeypatch, tmp_path):
    """Runs a command line in this process; the same result as from `pia`."""
    from pia.cli import main

    def run(*args):
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=captured.out, stderr=captured.err)

    return run


@pytest.fixture(scope="session")
def texts_file(tmp_path_factory):
    """A few answers, as JSON lines."""
    path = tmp_path_factory.mktemp("texts") / "answers.jsonl"
    path.write_text("".join(json.dumps({"question": QUESTION, "answer": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture(scope="session")
def small_cache(tmp_path_factory, texts_file):
    """A draft cache of the demo tokenizer with a few answers."""
    path = tmp_path_factory.mktemp("cache") / "small.pia"
    command = [sys.executable, "-m", "pia", "cache", "build", str(path), "--tokenizer", "demo", str(texts_file)]
    subprocess.run(command, check=True, env=environment(), capture_output=True, timeout=120)
    return path
