"""`pytest tests/models --model ...`, run as a user would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from zoo import build

_ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["gemma3_text", "llama (dynamic rope)"])
def test_own_model_is_checked_and_its_row_is_shown(name, tmp_path):
    build(name).save_pretrained(tmp_path / "own")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/models"]
    result = subprocess.run(
        [*command, "--model", str(tmp_path / "own")], capture_output=True, text=True, cwd=_ROOT, timeout=300
    )
    assert result.returncode == 0, result.stdout
    assert "4 passed" in result.stdout
    assert "mode         tree" in result.stdout and name in result.stdout
    assert "verdict      accelerated: token trees are verified" in result.stdout
