"""What the tests of the command line share."""

from __future__ import annotations

import os

TEXTS = [
    "Tom has 3 + 4 = 7 apples.\nSo he has 7 apples in all.\n#### 7",
    "She sold 48/2 = 24 clips in May.\nSo she sold 48 + 24 = 72 clips in all.\n#### 72",
    "Weng earns 12/60 = $0.2 per minute.\nWorking 50 minutes, she earned 0.2 x 50 = $10.\n#### 10",
]
QUESTION = "Tom has 3 apples and buys 4 more. How many apples does he have in all?"


def environment(**extra: str) -> dict[str, str]:
    """The environment of a user's shell: no network, no colours forced either way, one thread."""
    kept = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "NO_COLOR", "PIA_DEBUG")}
    return {**kept, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", **extra}


def assert_one_line_error(result, *parts, code=2):
    """The command failed with the code and one line on stderr that holds these parts."""
    assert result.returncode == code, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in lines[0]
