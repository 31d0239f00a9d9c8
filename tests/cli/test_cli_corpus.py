"""Corpora on the command line: building from files and folders, looking at them, generating with them."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from cli_support import TEXTS, assert_one_line_error

from pia.cli.text_files import Piece, TextSource, _cut, read_pieces, sources_of
from pia.drafting.corpus import Corpus, build_corpus
from pia.errors import PromptError


def encoded(demo, text):
    return demo[1](text, add_special_tokens=False)["input_ids"]


def joined(pieces):
    return "".join(piece.text for piece in pieces)


def read(path, **options):
    return list(
        read_pieces(TextSource(str(path), options.pop("is_found", False)), on_bytes=lambda size: None, **options)
    )


def test_build_info_verify_and_generate(pia, run_here, texts_file, tmp_path, demo):
    built = pia("cache", "build", "docs.corpus", "--tokenizer", "demo", texts_file, "--field", "answer")
    assert built.returncode == 0, built.stderr
    assert f"{len(TEXTS)} texts" in built.stdout and "bytes a token" in built.stdout
    assert built.stderr == ""
    facts = json.loads(run_here("cache", "info", "docs.corpus", "--json").stdout)
    assert facts["kind"] == "corpus" and facts["sequences"] == len(TEXTS)
    assert facts["tokens"] == sum(len(encoded(demo, text)) for text in TEXTS)
    assert facts["bytes"] == (tmp_path / "docs.corpus").stat().st_size
    assert f"{facts['contexts']:,}" in run_here("cache", "info", "docs.corpus").stdout
    assert "no damage" in run_here("cache", "verify", "docs.corpus").stdout

    line = ("generate", "demo", "--prompt", "Tom has 3", "--max-new-tokens", "8")
    plain, drafted = run_here(*line), run_here(*line, "--corpus", "docs=docs.corpus", "--corpus", "too=docs.corpus")
    assert drafted.returncode == 0, drafted.stderr
    assert drafted.stdout == plain.stdout


def test_what_was_built_is_what_was_read(run_here, tmp_path, demo):
    text = "first line\nsecond line\n" * 50
    (tmp_path / "book.txt").write_text(text)
    result = run_here("cache", "build", "any.name", "--corpus", "--tokenizer", "demo", "book.txt", "--whole")
    assert result.returncode == 0 and "1 texts" in result.stdout
    ids = encoded(demo, text)
    corpus = Corpus.open(tmp_path / "any.name")
    assert corpus.num_tokens == len(ids)
    two = corpus.header.shapes.index((0, 2))
    assert ids[20] in corpus.counts(ids[18:20], two)


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "code"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / "b.py").write_text("def b(): pass\n")
    (folder / "a.json").write_text('{"not": "json lines"}\n')
    (folder / "deep" / "er" / "c.md").write_text("# Köln\n")
    (folder / "image.png").write_bytes(b"\x89PNG\0\0")
    (folder / "latin.txt").write_bytes("K\xf6ln".encode("latin-1"))
    (folder / "empty.py").write_text("\n")
    (folder / ".hidden").write_text("secret")
    (folder / ".git" / "config").write_text("secret")
    os.symlink(folder, folder / "deep" / "loop")
    os.symlink(folder / "b.py", folder / "deep" / "link.py")
    return folder


def test_a_folder_is_its_text_files(run_here, tree, tmp_path):
    sources = sources_of([str(tree)])
    assert [os.path.relpath(source.path, tree) for source in sources] == ["a.json", "b.py", "deep/er/c.md"]
    for out, kind in (("code.corpus", "corpus"), ("code.pia", "cache")):
        result = run_here("cache", "build", out, "--tokenizer", "demo", "code")
        assert result.returncode == 0, result.stderr
        assert "3 texts" in result.stdout
        facts = json.loads(run_here("cache", "info", out, "--json").stdout)
        assert (facts["sequences"], facts["kind"]) == (3, kind)


def test_folders_without_text(run_here, tmp_path):
    (tmp_path / "bare").mkdir()
    assert_one_line_error(run_here("cache", "build", "x.corpus", "--tokenizer", "demo", "bare"), "no text files")
    (tmp_path / "blank.txt").write_text("\n\n")
    assert_one_line_error(run_here("cache", "build", "x.corpus", "--tokenizer", "demo", "blank.txt"), "no text in")
    assert_one_line_error(
        run_here("cache", "build", "x.corpus", "--tokenizer", "demo", "missing"), "missing", "No such"
    )
    assert not (tmp_path / "x.corpus").exists()


def test_long_texts_come_in_pieces(tmp_path, monkeypatch):
    from pia.cli import text_files

    monkeypatch.setattr(text_files, "_BLOCK", 1000)
    monkeypatch.setattr(text_files, "_MAX_LINE", 3000)
    letters = np.random.default_rng(0).choice(list("abcdeäöü€😀 \n"), 20_000, p=[0.08] * 8 + [0.1, 0.05, 0.2, 0.01])
    for name, text in {"lines": "".join(letters), "words": "wort " * 4000, "endless": "€" * 20_000}.items():
        (tmp_path / name).write_text(text)
        pieces = read(tmp_path / name, whole=True)
        assert joined(pieces) == text and len(pieces) > 3
        assert [piece.is_last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        assert max(len(piece.text) for piece in pieces) <= 4000
        ending = {"lines": "\n", "words": " ", "endless": "€"}[name]
        assert all(piece.text.endswith(ending) for piece in pieces[:-1])
    assert _cut("a short text\n") == 0


def test_other_texts(tmp_path):
    (tmp_path / "empty").write_text("")
    assert read(tmp_path / "empty", whole=True) == []
    (tmp_path / "lines.txt").write_text("\ufeffone\n\ntwo\n")
    assert read(tmp_path / "lines.txt") == [Piece("one", True), Piece("two", True)]
    assert joined(read(tmp_path / "lines.txt", whole=True)) == "one\n\ntwo\n"
    assert read(tmp_path / "lines.txt", limit=1) == [Piece("one", True)]
    (tmp_path / "late.txt").write_bytes(b"good\n" * 300_000 + b"\xff")
    with pytest.raises(PromptError, match=r"late.txt: this is not UTF-8"):
        read(tmp_path / "late.txt", whole=True)
    assert len(joined(read(tmp_path / "late.txt", is_found=True))) > 1_000_000


def test_corpora_that_cannot_be_used(run_here, tmp_path):
    build_corpus(tmp_path / "other.corpus", [[1, 2, 3]], vocab_size=2048, tokenizer_fingerprint="0" * 32)
    small = build_corpus(tmp_path / "small.corpus", [[1, 2, 3]], vocab_size=100)
    line = ("generate", "demo", "--prompt", "x", "--corpus")
    assert_one_line_error(run_here(*line, "docs=other.corpus"), "another tokenizer")
    assert_one_line_error(run_here(*line, "docs"), "NAME=FILE")
    assert_one_line_error(run_here(*line, "=other.corpus"), "NAME=FILE")
    assert_one_line_error(run_here(*line, "docs=missing.corpus"), "missing.corpus", "No such file")
    data = bytearray(small.path.read_bytes())
    data[-4096] ^= 1
    (tmp_path / "damaged.corpus").write_bytes(data)
    assert run_here("cache", "info", "damaged.corpus").returncode == 0
    assert_one_line_error(run_here("cache", "verify", "damaged.corpus"), "damaged", "checksum")


def test_an_existing_corpus_is_not_overwritten_without_force(run_here, texts_file, tmp_path):
    (tmp_path / "out.corpus").write_text("precious")
    line = ("cache", "build", "out.corpus", "--tokenizer", "demo", texts_file)
    assert_one_line_error(run_here(*line), "exists already", "--force")
    assert run_here(*line, "--force").returncode == 0
    assert Corpus.open(tmp_path / "out.corpus").num_sequences == len(TEXTS)


def test_verify_of_a_draft_cache(run_here, small_cache):
    assert "no damage" in run_here("cache", "verify", small_cache).stdout


@pytest.mark.parametrize("folder", ["nowhere/out.corpus", "/proc/out.corpus"])
def test_folders_that_cannot_be_written(run_here, texts_file, folder):
    assert_one_line_error(
        run_here("cache", "build", folder, "--tokenizer", "demo", texts_file), "can't save the corpus", folder
    )
