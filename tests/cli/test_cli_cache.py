"""`pia cache`: build, info, merge, and what can go wrong with files."""

from __future__ import annotations

import json
import os

import pytest
from cli_support import TEXTS, assert_one_line_error

from pia.drafting.cache import DraftCache


def test_build_info_and_merge_agree(pia, run_here, texts_file, tmp_path):
    built = pia("cache", "build", "one.pia", "--tokenizer", "demo", texts_file, "--field", "answer")
    assert built.returncode == 0, built.stderr
    assert f"{len(TEXTS)} texts" in built.stdout
    assert "\x1b" not in built.stdout + built.stderr

    (tmp_path / "two.txt").write_text("One line of text.\n\nAnother line of text.\n")
    second = run_here("cache", "build", "two.pia", "--tokenizer", "demo", "two.txt", "--namespace", "notes")
    assert second.returncode == 0, second.stderr

    merged = run_here("cache", "merge", "all.pia", "one.pia", "two.pia")
    assert merged.returncode == 0, merged.stderr
    facts = {
        name: json.loads(run_here("cache", "info", f"{name}.pia", "--json").stdout) for name in ("one", "two", "all")
    }
    assert facts["one"]["sequences"] == len(TEXTS)
    assert facts["two"]["namespaces"].keys() == {"notes"}
    assert facts["all"]["tokens"] == facts["one"]["tokens"] + facts["two"]["tokens"]
    assert facts["all"]["namespaces"].keys() == {"", "notes"}
    assert facts["all"]["tokenizer_fingerprint"] == facts["one"]["tokenizer_fingerprint"]
    assert f"{facts['all']['tokens']:,}" in run_here("cache", "info", "all.pia").stdout


def test_what_was_built_is_what_is_drafted(run_here, small_cache, demo):
    _, tokenizer = demo
    ids = tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
    session = DraftCache.load(small_cache).begin(ids[:8])
    assert session.propose(16, 16).token_ids[0] == ids[8]


def test_a_whole_file_is_one_text(run_here, tmp_path):
    (tmp_path / "book.txt").write_text("first line\nsecond line\n" * 50)
    result = run_here("cache", "build", "book.pia", "--tokenizer", "demo", "book.txt", "--whole")
    assert "1 texts" in result.stdout


def test_limit_and_bound(run_here, texts_file):
    result = run_here("cache", "build", "one.pia", "--tokenizer", "demo", texts_file, texts_file, "--limit", "1")
    assert "2 texts" in result.stdout
    assert_one_line_error(
        run_here("cache", "build", "x.pia", "--tokenizer", "demo", texts_file, "--max-mib", "0"), "at least 1"
    )


def test_an_existing_file_is_not_overwritten_without_force(run_here, texts_file, tmp_path):
    (tmp_path / "out.pia").write_text("precious")
    for line in (["build", "out.pia", "--tokenizer", "demo", texts_file], ["merge", "out.pia", "out.pia"]):
        assert_one_line_error(run_here("cache", *line), "out.pia exists", "--force")
    assert (tmp_path / "out.pia").read_text() == "precious"
    forced = run_here("cache", "build", "out.pia", "--tokenizer", "demo", texts_file, "--force")
    assert forced.returncode == 0, forced.stderr
    assert run_here("cache", "info", "out.pia").returncode == 0


def test_a_bad_line_leaves_no_file(run_here, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"title": "no text here"}\n')
    result = run_here("cache", "build", "out.pia", "--tokenizer", "demo", "bad.jsonl")
    assert_one_line_error(result, "bad.jsonl, line 2", "title", "--field")
    assert not (tmp_path / "out.pia").exists()


def test_files_that_are_no_caches(run_here, small_cache, tmp_path):
    (tmp_path / "foreign.pia").write_text("hello")
    damaged = bytearray(small_cache.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "damaged.pia").write_bytes(damaged)
    newer = bytearray(small_cache.read_bytes())
    newer[8] = 99
    (tmp_path / "newer.pia").write_bytes(newer)
    assert_one_line_error(run_here("cache", "info", "foreign.pia"), "not a draft cache")
    assert_one_line_error(run_here("cache", "info", "damaged.pia"), "damaged")
    assert_one_line_error(run_here("cache", "info", "newer.pia"), "format 99", "newer PIA")
    assert_one_line_error(run_here("generate", "demo", "--prompt", "x", "--cache", "damaged.pia"), "damaged")


def test_a_cache_of_another_tokenizer(run_here, small_cache, tmp_path):
    other = DraftCache(vocab_size=2048, tokenizer_fingerprint="0" * 32)
    other.insert([1, 2, 3])
    other.save(tmp_path / "other.pia")
    assert_one_line_error(run_here("generate", "demo", "--prompt", "x", "--cache", "other.pia"), "another tokenizer")
    assert_one_line_error(run_here("cache", "merge", "out.pia", small_cache, "other.pia"), "another tokenizer")
    assert_one_line_error(run_here("bench", "demo", "--warm", "other.pia", "--questions", "1"), "another tokenizer")
    assert not (tmp_path / "out.pia").exists()


@pytest.mark.parametrize("folder", ["nowhere/out.pia", "/proc/out.pia"])
def test_folders_that_cannot_be_written(run_here, texts_file, folder):
    result = run_here("cache", "build", folder, "--tokenizer", "demo", texts_file)
    assert_one_line_error(result, "can't save", folder)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(run_here, texts_file, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    result = run_here("cache", "build", "locked/out.pia", "--tokenizer", "demo", texts_file)
    assert_one_line_error(result, "can't save", "Permission denied")
