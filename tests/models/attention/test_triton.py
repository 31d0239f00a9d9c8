"""The Triton kernels, as far as they can be tested without a GPU: in the interpreter, and through the compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is for Linux")
HERE = Path(__file__).parent


def test_kernels_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(HERE)}
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:xdist", "-p", "no:cacheprovider"]
    process = subprocess.run(
        [*command, str(HERE / "triton_in_interpreter.py")], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout[-6000:] + process.stderr[-2000:]
    assert " passed" in process.stdout
