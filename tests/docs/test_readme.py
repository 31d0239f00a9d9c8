"""The commands and snippets of README.md do what the README says.

A fenced block is run when the line above its fence is `<!-- test -->` (or `<!-- test: slow -->`):

* in a `console` block every line that begins with `$ ` is a command, run by bash in an empty folder that all blocks
  share, in order; it must succeed. Other lines are its output, for the reader only. In `sh` and `bash` blocks all lines
  are commands.
* a `python` block is executed; `name` (the demo model's folder), `prompt` and `texts` (a list of two) are there for it.

Every `pia ...` command of every console block, marked or not, must at least be one that the command line understands.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
_FENCE = re.compile(
    r"^(?P<mark><!-- *test(?P<slow>: *slow)? *-->\n+)?```(?P<language>\w+)\n(?P<body>.*?)^```", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    language: str
    body: str
    line: int
    is_marked: bool
    is_slow: bool

    @property
    def commands(self) -> list[str]:
        """Shell commands, continued lines joined."""
        lines = self.body.replace("\\\n", " ").splitlines()
        if self.language == "console":
            return [line[2:].strip() for line in lines if line.startswith("$ ")]
        return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def blocks_of(text):
    return [
        Block(
            found["language"],
            found["body"],
            text[: found.start()].count("\n") + 1,
            bool(found["mark"]),
            bool(found["slow"]),
        )
        for found in _FENCE.finditer(text)
    ]


BLOCKS = blocks_of(README.read_text(encoding="utf-8")) if README.exists() else []
SHELL = ("console", "sh", "bash", "shell")


def _marked(languages):
    return [
        pytest.param(block, id=f"line{block.line}", marks=[pytest.mark.slow] if block.is_slow else [])
        for block in BLOCKS
        if block.is_marked and block.language in languages
    ]


def _pia_commands():
    commands = [(block.line, command) for block in BLOCKS if block.language in SHELL for command in block.commands]
    return [pytest.param(command, id=f"line{line}") for line, command in commands if re.match(r"pia\b", command)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An empty folder with a `pia` of this very environment in reach."""
    folder = tmp_path_factory.mktemp("readme")
    tools = tmp_path_factory.mktemp("bin")
    for name, module in (("pia", "-m pia "), ("python", "")):
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module}"$@"\n')
        (tools / name).chmod(0o755)
    return folder, {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}


@pytest.mark.parametrize("block", _marked(SHELL))
def test_commands_run(block, folder):
    where, environment = folder
    for command in block.commands:
        result = subprocess.run(
            ["bash", "-c", command],
            cwd=where,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            stdin=subprocess.DEVNULL,
        )
        assert result.returncode == 0, f"README.md line {block.line}: $ {command}\n{result.stdout}{result.stderr}"


@pytest.mark.parametrize("block", _marked(("python",)))
def test_snippets_run(block, folder, monkeypatch):
    from pia.assets import demo_model_path

    where, _ = folder
    monkeypatch.chdir(where)
    given = {
        "__name__": "__main__",
        "name": str(demo_model_path()),
        "prompt": "Tom has 3 apples and buys 4 more. How many apples does he have?",
        "texts": ["Tom has 3 + 4 = 7 apples.", "She has 2 + 2 = 4 pears."],
    }
    exec(compile("\n" * block.line + block.body, str(README), "exec"), given)


@pytest.mark.parametrize("command", _pia_commands())
def test_every_command_is_understood(command):
    from pia.cli import build_parser

    words = shlex.split(command, comments=True)
    end = next((i for i, word in enumerate(words) if word in ("|", ">", "<", "&&", ";", "2>", ">>")), len(words))
    try:
        build_parser().parse_args(words[1:end])
    except SystemExit as stop:
        if stop.code:
            pytest.fail(f"README.md shows a command that pia refuses: {command}")


def test_blocks_are_found():
    text = "# T\n\n<!-- test -->\n```console\n$ pia env \\\n  --json\n{}\n```\n\n```python\nx = 1\n```\n"
    text += "<!-- test: slow -->\n```python\ny\n```\n"
    first, second, third = blocks_of(text)
    assert first.commands == ["pia env    --json"]
    assert (first.is_marked, first.is_slow, second.is_marked, third.is_slow) == (True, False, False, True)
