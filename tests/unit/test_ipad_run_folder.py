from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pia.errors import ShrinkError
from pia.ipad.run_folder import RunFolder


def test_a_journal_is_read_back_as_it_was_written(tmp_path):
    folder = RunFolder(tmp_path / "out")
    with folder.locked():
        assert folder.read() is None
        folder.write({"a": [1, 2]})
        assert folder.read() == {"version": 1, "a": [1, 2]}


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ShrinkError, match="something other than a shrink"), RunFolder(tmp_path).locked():
        pass
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_or_a_missing_parent_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for path, message in ((tmp_path / "file", "no folder"), (tmp_path / "no" / "out", "there is no folder")):
        with pytest.raises(ShrinkError, match=message), RunFolder(path).locked():
            pass


def test_clearing_removes_what_an_older_shrink_left_and_nothing_else(tmp_path):
    folder = RunFolder(tmp_path / "out")
    with folder.locked():
        folder.write({})
        folder.stage_path(1).mkdir()
        folder.round_path(1).mkdir(parents=True)
        for name in ("config.json", "model.safetensors", "report.html", "my-notes.txt"):
            (folder.path / name).write_text("{}")
        folder.clear()
        assert folder.read() is None
        assert not folder.stage_path(1).exists()
        assert not folder.round_path(1).exists()
        assert {path.name for path in folder.path.iterdir()} == {".shrink", "my-notes.txt"}


def test_only_one_process_holds_a_folder(tmp_path):
    other = (
        "import sys; from pia.ipad.run_folder import RunFolder\n"
        "try:\n"
        "    with RunFolder(sys.argv[1]).locked(): print('held')\n"
        "except Exception as error: print(error)\n"
    )
    command = [sys.executable, "-c", other, str(tmp_path / "out")]
    with RunFolder(tmp_path / "out").locked():
        assert "another process" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "held\n"


@pytest.mark.parametrize(
    ("content", "message"), [("{", "damaged"), ("[]", "damaged"), (json.dumps({"version": 99}), "version 99")]
)
def test_a_journal_that_cannot_be_read_says_so(tmp_path, content, message):
    folder = RunFolder(tmp_path / "out")
    with folder.locked():
        (folder.state / "journal.json").write_text(content)
        with pytest.raises(ShrinkError, match=message):
            folder.read()


def test_other_settings_are_named_with_both_values(tmp_path):
    folder = RunFolder(tmp_path)
    folder.check_same("settings", {"a": {"b": 1}}, {"a": {"b": 1}})
    with pytest.raises(ShrinkError, match=r"settings a b = 1, and this one has 2"):
        folder.check_same("settings", {"a": {"b": 1}}, {"a": {"b": 2}})
