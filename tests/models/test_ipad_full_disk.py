"""A disk that fills in the middle of a shrink: one clear error, and the same call goes on to the same bytes."""

from __future__ import annotations

import contextlib
import errno
import json
import resource
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from ipad_checkpoints import OPTIONS, save_questions, save_small_model
from pia.ipad import rounds, shrink, shrinking
from pia.ipad.progress import Progress

SETTINGS = {**OPTIONS, "shape": "layers=3,ffn=32", "round_share": 0.3, "steps": 4, "teacher": "cache", "top_k": 32}


class FillsUp(Progress):
    """Lets no file grow beyond some bytes from a moment on."""

    def __init__(self, moment: str, num_bytes: int) -> None:
        self._moment, self._num_bytes = moment, num_bytes

    def begin(self, original, shapes, done):
        self._come("begin")

    def step(self, info):
        self._come(f"step {info.step}")

    def doing(self, text):
        self._come(text)

    def _come(self, moment: str) -> None:
        if moment == self._moment:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self._num_bytes, resource.RLIM_INFINITY))


@contextlib.contextmanager
def room_again():
    """Behind the block files may grow as they like."""
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.fixture(autouse=True, scope="module")
def _no_timing():
    """Speed is not what this is about, and takes most of the time."""
    patch = pytest.MonkeyPatch()
    for module in (rounds, shrinking):
        patch.setattr(
            module, "measure_speeds", lambda models, **_: dict.fromkeys(models, SimpleNamespace(tokens_per_second=1.0))
        )
    yield
    patch.undo()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full_disk")
    save_small_model(folder / "model")
    save_questions(folder / "data.jsonl")
    shrink(str(folder / "model"), folder / "data.jsonl", folder / "whole", **SETTINGS)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and "report" not in path.name}


@pytest.mark.parametrize(
    ("moment", "num_bytes", "named"),
    [
        pytest.param("begin", 1 << 15, "teacher/teacher-00000", id="teacher-cache", marks=pytest.mark.slow),
        pytest.param("step 0", 1 << 15, "round-01/checkpoint.pt", id="training-checkpoint", marks=pytest.mark.slow),
        pytest.param("saving round 2", 1 << 15, "rounds/round-02", id="weights-of-a-round"),
        pytest.param(
            "saving round 2", 1 << 8, "rounds/round-02", id="configuration-of-a-round", marks=pytest.mark.slow
        ),
        pytest.param("measuring round 2", 1 << 11, "journal.json", id="journal", marks=pytest.mark.slow),
        pytest.param("writing the model and the report", 1 << 15, "model.safetensors", id="final-weights"),
        pytest.param("writing the model and the report", 0, "out", id="anything-final", marks=pytest.mark.slow),
    ],
)
def test_it_goes_on_when_there_is_room_again(place, tmp_path, moment, num_bytes, named):
    call = (str(place / "model"), place / "data.jsonl", tmp_path / "out")
    with room_again(), pytest.raises(OSError, match=r"\[Errno") as caught:
        shrink(*call, progress=FillsUp(moment, num_bytes), **SETTINGS)
    assert caught.value.errno == errno.EFBIG
    assert named in str(caught.value.filename)
    assert not [*(tmp_path / "out").rglob("*.tmp")]
    shrink(*call, **SETTINGS)
    ours, theirs = contents(tmp_path / "out"), contents(place / "whole")
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - {"pia_shrink.json", "README.md"}:  # these tell times
        assert ours[name] == theirs[name], name
    for number in (1, 2):
        folder = f"rounds/round-{number:02}"
        assert contents(tmp_path / "out" / folder) == contents(place / "whole" / folder)


PUBLISH_AND_DIE = """
import contextlib, json, os, signal, sys
from pia.ipad import checkpoint, shrink
model, data, out, options, num_files = sys.argv[1:]
left, whole = int(num_files), checkpoint.replacing

@contextlib.contextmanager
def dying(path):
    global left
    with whole(path) as file:
        if left == 0:
            file.write(b"half of it")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        yield file

checkpoint.replacing = dying
shrink(model, data, out, **json.loads(options))
"""


@pytest.mark.slow
@pytest.mark.parametrize("num_files", [0, 2])
def test_killed_while_the_result_is_put_in_place_it_is_never_half_there(place, tmp_path, num_files):
    out = tmp_path / "out"
    shutil.copytree(place / "whole", out)
    call = [str(place / "model"), str(place / "data.jsonl"), str(out)]
    command = [sys.executable, "-c", PUBLISH_AND_DIE, *call, json.dumps(SETTINGS), str(num_files)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert not (out / "config.json").exists()
    assert [*out.glob(".*.tmp")]
    shrink(*call, **SETTINGS)
    assert contents(out) == contents(place / "whole")
    assert not [*out.glob(".*.tmp")]
