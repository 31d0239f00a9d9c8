"""Reading prompts and texts; marking drafts; wrapping prose."""

from __future__ import annotations

import gzip
import io
import json

import pytest

from pia.cli.files import read_prompts, read_texts
from pia.cli.terminal import Painter, Prose, has_colour
from pia.errors import PromptError
from pia.text import TextPiece

OPEN, CLOSE = "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}", "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}"


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def test_prompts_of_text_and_json(write):
    assert read_prompts(write("a.txt", "\ufeffone\r\n\n  two \n")) == ["one", "  two "]
    messages = [{"role": "user", "content": "hi"}]
    lines = [{"prompt": "p"}, {"question": "q"}, {"messages": messages}]
    path = write("b.jsonl", "\n".join(map(json.dumps, lines)))
    assert read_prompts(path) == ["p", [{"role": "user", "content": "q"}], messages]
    assert read_prompts(path, 1) == ["p"]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("{", "not JSON"),
        ("[1]", "not list"),
        ('{"title": 1}', "title"),
        ('{"prompt": 5}', "must be text"),
        ('{"messages": [{"role": "user"}]}', "role"),
        ('{"messages": []}', "role"),
    ],
)
def test_bad_prompt_lines_are_named(write, line, part):
    with pytest.raises(PromptError, match="line 2") as caught:
        read_prompts(write("bad.jsonl", '{"prompt": "fine"}\n' + line))
    assert part in str(caught.value)


def test_packed_prompts_keep_their_line_ends(write):
    """HumanEval comes so: a prompt is code to go on with, and its last line end and indentation are part of it."""
    code = 'def one():\n    """Gives 1."""\n'
    record = {"task_id": "Tiny/0", "prompt": code, "entry_point": "one", "canonical_solution": "    return 1\n"}
    packed = gzip.compress(json.dumps(record).encode())
    assert read_prompts(write("a.jsonl.gz", packed)) == read_prompts(write("b.jsonl", packed)) == [code]
    assert read_prompts(write("c.txt.gz", gzip.compress(b"one\ntwo\n"))) == ["one", "two"]
    assert read_prompts(write("unpacked.jsonl.gz", json.dumps(record))) == [code]


def test_packed_files_that_are_wrong(write):
    with pytest.raises(PromptError, match=r"line 2.*only task"):
        read_prompts(write("a.jsonl.gz", gzip.compress(b'{"prompt": "one"}\n{"task": 2}\n')))
    packed = gzip.compress(b'{"prompt": "one"}\n')
    with pytest.raises(PromptError, match="no whole gzip file"):
        read_prompts(write("cut.jsonl.gz", packed[:-6]))
    with pytest.raises(PromptError, match="no whole gzip file"):
        read_prompts(write("broken.jsonl.gz", packed[:12] + b"???" + packed[15:]))
    with pytest.raises(PromptError, match="no prompts"):
        read_prompts(write("empty.jsonl.gz", gzip.compress(b"\n")))


def test_packed_texts_count_the_bytes_of_their_file(write):
    read: list[int] = []
    packed = gzip.compress(b'{"text": "one"}\n{"text": "two"}\n')
    assert list(read_texts(write("a.jsonl.gz", packed), on_bytes=read.append)) == ["one", "two"]
    assert sum(read) == len(packed)


def test_text_that_is_not_utf8(write):
    with pytest.raises(PromptError, match=r"line 2.*UTF-8"):
        read_prompts(write("latin.txt", b"fine\n\xff\xfe\n"))


def test_texts_of_json_fields(write):
    path = write("a.jsonl", '{"id": 1, "answer": "A", "note": "N"}\n')
    assert list(read_texts(path)) == ["A"]
    assert list(read_texts(path, field="note")) == ["N"]
    with pytest.raises(PromptError, match=r"line 1.*nothing"):
        list(read_texts(path, field="nothing"))
    talk = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    assert list(read_texts(write("b.jsonl", json.dumps({"messages": talk})))) == ["a", "b"]


def test_texts_come_as_they_are_read(write):
    """The line that is wrong is only met when it is reached, and progress counts the bytes of what was read."""
    read: list[int] = []
    texts = read_texts(write("a.jsonl", '{"text": "one"}\nbroken\n'), on_bytes=read.append)
    assert next(texts) == "one"
    assert sum(read) == len('{"text": "one"}\n')
    with pytest.raises(PromptError, match="line 2"):
        next(texts)


def test_a_whole_text_comes_in_pieces_that_end_with_a_line(write):
    content = "some line\n" * 100_000
    pieces = list(read_texts(write("book.txt", content), whole=True))
    assert 1 < len(pieces) < 10
    assert "".join(pieces) == content
    assert all(piece.endswith("\n") for piece in pieces)


def painted(painter, *pieces):
    return "".join(painter.paint(text, is_drafted) for text, is_drafted in pieces) + painter.end()


def test_marks_without_colour():
    pieces = [("She", False), (" sells", True), (" 16", True), (" -", False), ("", True), (" 4", True)]
    assert painted(Painter(colour=False), *pieces) == f"She {OPEN}sells 16{CLOSE} - {OPEN}4{CLOSE}"
    assert painted(Painter(colour=False, encoding="ascii"), *pieces) == "She [sells 16] - [4]"
    assert painted(Painter(colour=False), (" ", True), ("x", False)) == " x"
    assert painted(Painter(colour=False), ("4 = ", True), ("2", False)) == f"{OPEN}4 ={CLOSE} 2"
    assert painted(Painter(colour=False), ("4 ", True), (" ", True), ("= \n", True)) == f"{OPEN}4  ={CLOSE} \n"


def test_marks_in_colour():
    assert painted(Painter(colour=True), ("a", False), (" b", True)) == "a\x1b[1;32m b\x1b[0m"


def test_who_gets_colour(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert has_colour(Terminal())
    assert not has_colour(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not has_colour(Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not has_colour(Terminal())


def test_prose_wraps_words_however_tokens_cut_them():
    out = io.StringIO()
    prose = Prose(out, Painter(colour=False), indent=2, width=24)
    for text, is_drafted in [
        ("The quick br", False),
        ("own", True),
        (" fox jumps over", False),
        ("\nIt", False),
        (" rests", True),
    ]:
        prose.write([TextPiece(text, 0, "shared" if is_drafted else None)])
    prose.end()
    assert out.getvalue() == f"The quick br{OPEN}own{CLOSE} fox\n  jumps over\n  It {OPEN}rests{CLOSE}\n"


def test_prose_does_not_hold_back_what_never_ends():
    out = io.StringIO()
    prose = Prose(out, None, indent=2, width=24)
    prose.write([TextPiece("0" * 50, 0, None)])
    assert "0" * 50 in out.getvalue()
