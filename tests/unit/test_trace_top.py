"""The likeliest tokens of a recording: what is kept of a forward, how it is stored, and that it changes nothing."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch

from pia.bench.trace import Trace
from pia.bench.trace_top import checked
from pia.drafting.top_tokens import TopTokens
from pia.errors import TraceError, UnsupportedOptionError
from pia.lookahead import Lookahead
from pia.recording import TraceRecorder

PROMPT = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5]])


def some_top(num_places: int, k: int = 3) -> TopTokens:
    rng = np.random.default_rng(num_places)
    probs = np.sort(rng.random((num_places, k)) / k)[:, ::-1]
    return TopTokens(rng.integers(0, 90_000, (num_places, k)).astype(np.int32), probs.astype(np.float16))


def expected(model, text: list[int], num_prompt: int, k: int) -> TopTokens:
    """What the model finds likely along a text, by one plain forward over it."""
    with torch.no_grad():
        logits = model(torch.tensor([text])).logits[0, num_prompt - 1 : -1]
    probs, ids = logits.softmax(-1).topk(k)
    return TopTokens(ids.numpy().astype(np.int32), probs.numpy().astype(np.float16))


def same(left: TopTokens | None, right: TopTokens | None) -> bool:
    if left is None or right is None:
        return left is right
    return np.array_equal(left.ids, right.ids) and np.array_equal(left.probs, right.probs)


# --- Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.jsonl", "x.npz"])
def test_what_is_recorded_is_read_back(tmp_path, name):
    recorder = TraceRecorder(tmp_path / name, top_k=3)
    tops = [some_top(2), None, some_top(4, k=5)]
    for top, output in zip(tops, ([1, 2], [3], [4, 5, 6, 7]), strict=True):
        recorder.record([9], output, top=top)
    recorder.record([9], [], top=TopTokens(np.empty((0, 3), np.int32), np.empty((0, 3), np.float16)))
    loaded = Trace.load(tmp_path / name)
    assert all(same(*pair) for pair in zip(loaded.tops[:3], tops, strict=True))
    assert loaded.tops[0].ids.dtype == np.int32
    assert loaded.tops[0].probs.dtype == np.float16
    assert [same(*pair) for pair in zip(loaded.part(1, 3).tops, tops[1:], strict=True)] == [True, True]
    loaded.save(tmp_path / "again.npz")
    assert all(same(*pair) for pair in zip(Trace.load(tmp_path / "again.npz").tops[:3], tops, strict=True))


def test_a_trace_without_them_is_what_it_was(tmp_path):
    TraceRecorder(tmp_path / "x.jsonl").record([1], [2])
    assert (tmp_path / "x.jsonl").read_bytes() == b'{"prompt_ids":[1],"output_ids":[2]}\n'
    trace = Trace.load(tmp_path / "x.jsonl")
    trace.save(tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as arrays:
        assert not [name for name in arrays.files if name.startswith("top")]
    assert trace.tops == Trace.load(tmp_path / "x.npz").tops == []


@pytest.mark.parametrize(
    ("ids", "probs", "words"),
    [
        ([[1, 2]], [[0.5, 0.1]], "2 output tokens"),
        ([[1, 2], [3]], [[0.5, 0.1], [0.5]], "as many entries"),
        ([[1], [2]], [[0.5, 0.1], [0.5, 0.1]], "2 output tokens"),
        ([[1, 2], [1, 2]], [[0.1, 0.5], [0.5, 0.1]], "likeliest first"),
        ([[1], [2]], [[1.5], [0.5]], "between 0 and 1"),
        ([[1], [2]], [[float("nan")], [0.5]], "between 0 and 1"),
        ([[1], [-2]], [[0.5], [0.5]], "token id"),
        ([[1], [2]], None, "belong together"),
    ],
)
def test_bad_lines_are_named(tmp_path, ids, probs, words):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"prompt_ids": [1], "output_ids": [2, 3], "top_ids": ids, "top_probs": probs}) + "\n")
    with pytest.raises(TraceError, match=f"line 1.*{words}"):
        Trace.load(path)


@pytest.mark.parametrize(
    "changed",
    [
        {"top_widths": [3]},
        {"top_widths": [3, 2]},
        {"top_widths": [-3, 0]},
        {"top_tokens": [1, 2]},
        {"top_probs": [2.0] * 6},
    ],
)
def test_inconsistent_arrays_are_refused(tmp_path, changed):
    trace = Trace("x", [np.ones(1, np.int32)] * 2, [np.ones(2, np.int32)] * 2, tops=[some_top(2), None])
    trace.save(tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as arrays:
        members = {**arrays, **{name: np.array(values) for name, values in changed.items()}}
    np.savez(tmp_path / "x.npz", **members)
    with pytest.raises(TraceError, match="damaged"):
        Trace.load(tmp_path / "x.npz")


def test_what_does_not_fit_is_not_recorded(tmp_path):
    with pytest.raises(ValueError, match="2 output tokens"):
        TraceRecorder(tmp_path / "x.jsonl").record([1], [2, 3], top=some_top(3))
    for top_k in (-1, 1.5, True):
        with pytest.raises(UnsupportedOptionError, match="top_k"):
            TraceRecorder(tmp_path / "x.jsonl", top_k=top_k)
    assert checked([], [], 0).ids.shape == (0, 0)


# --- What is decoded -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"budget": 8}, {}),
        ({"budget": 8, "sources": "cache"}, {}),
        ({"budget": 24, "sources": (), "jacobi": True}, {}),  # a window is fed behind the draft
        ({"budget": 8, "shape": "branches"}, {}),
        ({"budget": 0}, {}),
        ({}, {"use_cache": False}),  # Transformers' own calls
        ({"budget": 8}, {"do_sample": True, "temperature": 0.3, "top_k": 4}),
    ],
)
def test_the_likeliest_tokens_are_those_of_the_model(llama, tmp_path, options, arguments):
    lookahead = Lookahead(recorder=TraceRecorder(tmp_path / "x.jsonl", top_k=5), **options)
    for _ in range(2):  # the second time from a cache that knows the text
        llama.generate(PROMPT, custom_generate=lookahead, max_new_tokens=24, **{"do_sample": False, **arguments})
    trace = Trace.load(tmp_path / "x.jsonl")
    assert len(trace.tops) == 2
    for prompt, output, top in zip(trace.prompts, trace.outputs, trace.tops, strict=True):
        wanted = expected(llama, [*prompt.tolist(), *output.tolist()], len(prompt), 5)
        assert top.ids.tolist() == wanted.ids.tolist()
        assert np.allclose(top.probs, wanted.probs, atol=2e-3)


@pytest.mark.parametrize("top_k", [2, 12])
def test_recording_changes_neither_text_nor_drafts(llama, tmp_path, top_k):
    seen = []
    for recorder in (None, TraceRecorder(tmp_path / "x.npz", top_k=top_k)):
        lookahead = Lookahead(budget=12, recorder=recorder)
        texts = [
            llama.generate(PROMPT, custom_generate=lookahead, max_new_tokens=30, do_sample=False) for _ in range(2)
        ]
        seen.append((texts[-1].tolist(), lookahead.last_stats.edls, lookahead.last_stats.dls))
    assert seen[0] == seen[1]
    assert {top.num_each for top in Trace.load(tmp_path / "x.npz").tops} == {top_k}


def test_rows_of_a_batch_keep_their_own(llama, tmp_path):
    lookahead = Lookahead(budget=8, recorder=TraceRecorder(tmp_path / "x.jsonl", top_k=4))
    prompts = torch.tensor([[0, 0, 5, 6], [5, 6, 7, 8]])
    mask = (prompts > 0).long()
    llama.generate(
        prompts, attention_mask=mask, custom_generate=lookahead, max_new_tokens=9, do_sample=False, pad_token_id=0
    )
    trace = Trace.load(tmp_path / "x.jsonl")
    assert len(trace.tops) == 2
    for prompt, output, top in zip(trace.prompts, trace.outputs, trace.tops, strict=True):
        assert top.ids[:, 0].tolist() == output.tolist()  # greedy: the likeliest
        wanted = expected(llama, [*prompt.tolist(), *output.tolist()], len(prompt), 4)
        assert top.ids.tolist() == wanted.ids.tolist()


def test_what_transformers_decodes_is_recorded_without(llama, tmp_path, caplog):
    lookahead = Lookahead(recorder=TraceRecorder(tmp_path / "x.jsonl", top_k=4))
    with caplog.at_level(logging.WARNING, "pia"):
        for _ in range(2):
            llama.generate(
                PROMPT, custom_generate=lookahead, max_new_tokens=4, do_sample=False,
                decoding_kwargs={"use_lookahead": False},
            )  # fmt: skip
    trace = Trace.load(tmp_path / "x.jsonl")
    assert (len(trace), trace.tops) == (2, [])
    assert sum("without likeliest tokens" in record.message for record in caplog.records) == 1


def test_drafts_are_counted_by_their_source(llama):
    lookahead = Lookahead(budget=12)
    for _ in range(2):
        llama.generate(PROMPT, custom_generate=lookahead, max_new_tokens=30, do_sample=False)
    stats = lookahead.last_stats
    assert sum(stats.drafted_by_source.values()) == stats.num_drafted > 0
    assert {"own", "shared", "recycled"} <= stats.drafted_by_source.keys()
    shares = stats.by_source()
    assert sum(part["accepted"] for part in shares.values()) * stats.num_steps == pytest.approx(stats.num_accepted)
    assert stats.as_dict()["drafted_by_source"] == dict(stats.drafted_by_source)
