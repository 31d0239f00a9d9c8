"""Training rows: what is read, what is learnt of it, what is held out, and in which order it comes."""

from __future__ import annotations

import gzip
import json
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipad_support import random_rows
from pia.errors import ShrinkError
from pia.ipad.data import Batches, RowEncoder, Rows, make_batch, read_rows, split
from pia.ipad.data.records import Chat, Pair, Question, record_of
from pia.ipad.data.text_pieces import packed, paragraphs


@pytest.fixture(scope="module")
def tokenizer(demo):
    return demo[1]


def write(folder, name, *lines):
    path = folder / name
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def learnt(tokenizer, row):
    """The text of the tokens of weight 1."""
    return tokenizer.decode(row.ids[row.weights == 1])


def test_a_chat_teaches_what_the_assistant_says(tmp_path, tokenizer):
    turns = [("user", "How many?"), ("assistant", "Five apples."), ("user", "Sure?"), ("assistant", "Yes, five.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    (row,) = read_rows(write(tmp_path, "a.jsonl", {"messages": messages}), tokenizer, max_length=64, prompt_weight=0.5)
    assert tokenizer.decode(row.ids) == tokenizer.apply_chat_template(messages, tokenize=False)
    assert learnt(tokenizer, row) == "Five apples.<|end|>Yes, five.<|end|>"
    assert row.weights[0] == 0 and set(row.weights[1:]) == {0.5, 1}


def test_questions_are_chats_where_the_tokenizer_has_a_template(tmp_path, tokenizer):
    path = write(tmp_path, "a.jsonl", {"question": "How many?", "answer": "Five."})
    (row,) = read_rows(path, tokenizer, max_length=64)
    assert tokenizer.decode(row.ids) == "<|user|>How many?<|assistant|>Five.<|end|>"
    assert learnt(tokenizer, row) == "Five.<|end|>"


def test_questions_are_text_where_it_has_none(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    encoder = RowEncoder(tokenizer, 64)
    (row,) = encoder.rows([("", Question("How many?", "Five."))])
    assert tokenizer.decode(row.ids) == "How many?\nFive.<|end|>" and learnt(tokenizer, row) == "Five.<|end|>"
    with pytest.raises(ShrinkError, match="line 1: a chat needs a tokenizer with a chat template"):
        encoder.encode(Chat(({"role": "assistant", "content": "x"},)), "line 1")


@pytest.mark.parametrize("name", ["response", "completion", "answer"])
def test_prompts_stand_as_they_are(tmp_path, tokenizer, name):
    (row,) = read_rows(write(tmp_path, "a.jsonl", {"prompt": "def f(", name: "x):"}), tokenizer, max_length=64)
    assert tokenizer.decode(row.ids) == "def f(x):<|end|>" and learnt(tokenizer, row) == "x):<|end|>"


def test_a_token_across_prompt_and_response_is_learnt(tokenizer):
    ids, [(start, _)] = RowEncoder(tokenizer, 64).encode(Pair("There are app", "les and more"))
    whole = tokenizer("There are apples and more", add_special_tokens=False)["input_ids"]
    assert ids == [*whole, tokenizer.eos_token_id]
    assert "There are apples".startswith(tokenizer.decode(ids[:start]))


def test_long_rows_are_cut_and_counted(tmp_path, tokenizer):
    path = write(tmp_path, "a.jsonl", {"text": "one two three four five six seven"}, {"text": "one two"})
    rows = read_rows(path, tokenizer, max_length=5)
    assert [len(row) for row in rows] == [5, len(tokenizer("one two")["input_ids"])] and rows.num_cut == 1


def test_rows_that_lose_all_they_teach_are_left_out(tokenizer):
    rows = RowEncoder(tokenizer, 4, prompt_weight=0).rows([("", Pair("one two three four five six", "seven"))] * 2)
    assert len(rows) == 0 and rows.num_cut == 2


def test_plain_text_is_packed_without_loss(tmp_path, tokenizer):
    text = "\n\n".join(f"Paragraph {n} has a few words.\nAnd a line more." for n in range(40)) + "\n"
    rows = read_rows(write(tmp_path, "a.txt", text), tokenizer, max_length=32)
    assert tokenizer.decode(np.concatenate([row.ids for row in rows])) == text
    assert max(map(len, rows)) <= 32 and rows.num_cut == 0
    assert np.mean([len(row) for row in rows]) > 16


@settings(deadline=None, max_examples=60)
@given(st.text("ab \n", max_size=60), st.lists(st.lists(st.integers(0, 9), max_size=9), max_size=9), st.integers(2, 6))
def test_packing_loses_nothing(text, pieces, size):
    assert "".join(paragraphs(text)).split() == text.split()
    rows = list(packed(pieces, size))
    assert list(chain(*rows)) == list(chain(*pieces)) and all(0 < len(row) <= size for row in rows)


@pytest.mark.parametrize("pack", [False, True])
def test_a_json_list_is_read_as_lines_are(tmp_path, tokenizer, pack):
    records = [{"text": "one two"}, {"text": "three four"}]
    lines = read_rows(write(tmp_path, "a.jsonl", *records), tokenizer, max_length=16)
    path = tmp_path / ("a.json.gz" if pack else "a.json")
    content = json.dumps(records, indent=1).encode()
    path.write_bytes(gzip.compress(content) if pack else content)
    assert read_rows(path, tokenizer, max_length=16).fingerprint == lines.fingerprint


BAD = {
    "empty": ("a.jsonl", "", "a.jsonl is empty"),
    "blank text": ("a.txt", " \n\n", "is empty"),
    "no JSON": ("a.jsonl", '{"text": "x y"}\n\n{"text": ', "line 3: this is not JSON"),
    "no object": ("a.jsonl", "[1, 2]", "record 1: a JSON object is needed, not int"),
    "unknown fields": ("a.jsonl", '{"body": "x", "title": "y"}', "line 1: only body, title is there"),
    "number": ("a.jsonl", '{"text": 5}', "line 1: text must be text, not 5"),
    "no roles": ("a.jsonl", '{"messages": [{"content": "x"}]}', "line 1: messages must be a list"),
    "no assistant": ("a.jsonl", '{"messages": [{"role": "user", "content": "x"}]}', "no message is the assistant's"),
    "unknown kind": ("a.csv", "a,b", "cannot be told from its name"),
    "zero bytes": ("a.txt", "a\0b", "holds zero bytes"),
    "one token": ("a.jsonl", '{"text": "a"}', "nothing to train on"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_with_their_line(tmp_path, tokenizer, case):
    name, content, message = BAD[case]
    with pytest.raises(ShrinkError, match=message):
        read_rows(write(tmp_path, name, content), tokenizer, max_length=16)


def test_missing_and_undecodable_files(tmp_path, tokenizer):
    with pytest.raises(ShrinkError, match="there is no file"):
        read_rows(tmp_path / "none.jsonl", tokenizer, max_length=16)
    with pytest.raises(ShrinkError, match="is a folder"):
        read_rows(tmp_path, tokenizer, max_length=16)
    (tmp_path / "a.txt").write_bytes(b"fine\nb\xffd")
    with pytest.raises(ShrinkError, match="line 2: this is not UTF-8"):
        read_rows(tmp_path / "a.txt", tokenizer, max_length=16)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a text" * 99)[:-9])
    with pytest.raises(ShrinkError, match="no whole gzip file"):
        read_rows(tmp_path / "a.txt.gz", tokenizer, max_length=16)


def test_datasets_are_read_where_the_package_is(tmp_path, tokenizer):
    datasets = pytest.importorskip("datasets")
    records = [{"question": "How many?", "answer": "Five."}, {"question": "And now?", "answer": "Six."}]
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_list(records).to_parquet(path)
    lines = read_rows(write(tmp_path, "a.jsonl", *records), tokenizer, max_length=64)
    assert read_rows(path, tokenizer, max_length=64).fingerprint == lines.fingerprint


def test_without_the_package_datasets_the_way_out_is_named(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ShrinkError, match="pip install datasets"):
        read_rows(tmp_path / "a.parquet", tokenizer, max_length=16)
    with pytest.raises(ShrinkError, match=r"no file openai/gsm8k.*pip install datasets"):
        read_rows("openai/gsm8k", tokenizer, max_length=16)


def test_a_template_that_refuses_is_quoted(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ShrinkError, match="line 7: the model's chat template refuses this chat: roles must alternate"):
        RowEncoder(tokenizer, 16).rows([("line 7", Question("a", "b"))])


def test_fields_of_records_are_preferred_in_order():
    assert record_of({"prompt": "a", "answer": "c", "response": "b"}, "") == Pair("a", "b")
    assert record_of({"question": "a", "answer": "b", "text": "c"}, "") == Question("a", "b")


def test_the_split_follows_content_and_never_shares_rows():
    rows = random_rows(100)
    doubled = Rows([*rows, *rows[10:60]])
    parts = split(doubled, min_targets=1)
    contents = [{row.content for row in part} for part in parts]
    assert not contents[0] & contents[1] and len(contents[0] | contents[1]) == 100 and len(contents[1]) == 8
    mixed = split(Rows([*reversed(doubled)]), min_targets=1)
    assert {row.content for row in mixed.held_out} == contents[1]
    assert len({row.content for row in split(rows, share=0.3, min_targets=1).held_out}) == 30


def test_rows_of_a_held_out_file_are_not_trained_on():
    rows = random_rows(60)
    own = Rows(rows[:5])
    parts = split(rows, own, min_targets=1)
    assert parts.held_out is own and [row.content for row in parts.training] == [row.content for row in rows[5:]]


def test_too_little_data_is_refused_with_figures():
    with pytest.raises(ShrinkError, match=r"has 20 different rows, and 32 are needed"):
        split(Rows([*random_rows(20), *random_rows(20)]))
    with pytest.raises(ShrinkError, match=r"has \d+ tokens to learn, and 100000 are needed"):
        split(random_rows(40), min_targets=100_000)
    with pytest.raises(ShrinkError, match="4 rows are left to train on, and 24 are needed"):
        split(random_rows(40), Rows(random_rows(40)[:36]))


def test_fingerprints_tell_ids_weights_and_order_apart():
    rows = random_rows(5)
    other = Rows(rows[:])
    assert other.fingerprint == rows.fingerprint
    assert Rows([*reversed(rows)]).fingerprint != rows.fingerprint
    changed = make_changed(rows)
    assert changed.fingerprint != rows.fingerprint and changed[0].content == rows[0].content


def make_changed(rows):
    weights = rows[0].weights.copy()
    weights[-1] = 0.5
    return Rows([type(rows[0])(rows[0].ids, weights), *rows[1:]])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(20, 200), st.integers(0, 3))
def test_every_epoch_deals_each_row_once(num, batch_tokens, seed):
    rows = random_rows(num, longest=20)
    batches = Batches(rows, batch_tokens, seed)
    first = batches.epoch(0)
    assert sorted(n for batch in first for n in batch) == list(range(num))
    for batch in first:
        assert len(batch) == 1 or len(batch) * max(len(rows[n]) for n in batch) <= batch_tokens
    steps = range(3 * len(first))
    dealt = [batches.numbers(step) for step in steps]
    for step in reversed(steps):
        assert Batches(rows, batch_tokens, seed).numbers(step) == dealt[step]


def test_batches_hold_rows_of_like_length():
    rows = random_rows(400, longest=100)
    chosen = [make_batch(rows, numbers) for numbers in Batches(rows, 1000, 0).epoch(0)]
    assert sum(batch.ids.numel() for batch in chosen) < 1.3 * rows.num_tokens


def test_a_batch_predicts_what_has_weight():
    rows = random_rows(3)
    batch = make_batch(rows, [2, 0])
    expected = [int(i) for row in (rows[2], rows[0]) for i, w in zip(row.ids[1:], row.weights[1:], strict=True) if w]
    assert batch.targets.tolist() == expected
    assert batch.target_weights.sum() == sum(float(row.weights[1:].sum()) for row in (rows[2], rows[0]))
    assert (batch.weights[0, len(rows[2]) :] == 0).all()
