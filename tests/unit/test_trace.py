"""Trace files: .npz and JSON lines, and what can be wrong with them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from pia.assets import trace_paths
from pia.bench.drafters.native import PiaDrafter
from pia.bench.replay import fixed_budget, play
from pia.bench.trace import Trace
from pia.errors import TraceError

ARRAYS = {
    "prompt_tokens": [1, 2, 3],
    "prompt_offsets": [0, 2, 3],
    "output_tokens": [4, 5],
    "output_offsets": [0, 0, 2],
}


def write(path, **changed):
    arrays = {name: np.array(values) for name, values in {**ARRAYS, **changed}.items() if values is not None}
    np.savez(path, **arrays, meta='{"source": "toy"}')
    return path


def requests(trace):
    return [(prompt.tolist(), output.tolist()) for prompt, output in trace]


def test_traces_are_read_and_others_refused(tmp_path):
    loaded = Trace.load(write(tmp_path / "toy.npz"))
    assert requests(loaded) == [([1, 2], []), ([3], [4, 5])]
    assert (loaded.name, len(loaded), loaded.meta, len(loaded.part(1, 2))) == ("toy", 2, {"source": "toy"}, 1)
    np.savez(tmp_path / "other.npz", x=1)
    with pytest.raises(ValueError, match="is not a trace: it lacks prompt_tokens"):
        Trace.load(tmp_path / "other.npz")


@pytest.mark.parametrize("highest", [5, 70_000])
def test_what_is_saved_is_read_back(tmp_path, highest):
    trace = Trace("x", [np.array([1, highest], np.int32), np.empty(0, np.int32)], [np.arange(3, dtype=np.int32)] * 2)
    longer = trace.with_request([7], [8, 9])
    longer.save(tmp_path / "x.npz")
    loaded = Trace.load(tmp_path / "x.npz")
    assert requests(loaded) == requests(longer)
    assert loaded.prompts[0].dtype == np.int32
    assert loaded.num_output_tokens == 8
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_an_empty_trace_is_saved(tmp_path):
    Trace("x", [], []).save(tmp_path / "x.npz")
    assert len(Trace.load(tmp_path / "x.npz")) == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"prompt_offsets": [0, 3, 2]},
        {"prompt_offsets": [0, 2, 4]},
        {"prompt_offsets": [1, 2, 3]},
        {"prompt_offsets": []},
        {"prompt_offsets": [0, 1, 2, 3]},
        {"prompt_offsets": [0.0, 2.0, 3.0]},
        {"output_tokens": [-1, 5]},
        {"output_tokens": [4.5, 5.0]},
        {"output_tokens": [[4, 5]]},
    ],
)
def test_inconsistent_arrays_are_refused(tmp_path, changed):
    with pytest.raises(TraceError, match="damaged"):
        Trace.load(write(tmp_path / "toy.npz", **changed))


def test_damaged_files_are_refused(tmp_path):
    whole = write(tmp_path / "toy.npz").read_bytes()
    path = tmp_path / "bad.npz"
    for content in (b"", b"no zip at all", whole[: len(whole) // 2], whole[:200] + b"\xff" * 40 + whole[240:]):
        path.write_bytes(content)
        with pytest.raises(TraceError, match="damaged"):
            Trace.load(path)
    np.save(tmp_path / "array.npy", np.arange(3))
    with pytest.raises(TraceError, match="damaged"):
        Trace.load(tmp_path / "array.npy")
    with pytest.raises(FileNotFoundError):
        Trace.load(tmp_path / "missing.npz")


def test_json_lines_of_token_ids(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(
        '{"prompt_ids": [1, 2], "output_ids": [3], "model": "m", "tokenizer": "t"}\n\n'
        '{"prompt_ids": [], "output_ids": [4, 5], "model": "n", "tokenizer": "t"}\n'
        '{"prompt_ids": [9], "output_'
    )
    trace = Trace.load(path)
    assert requests(trace) == [([1, 2], [3]), ([], [4, 5])]  # the last one broke off
    assert trace.meta == {"model": "m, n", "tokenizer": "t"}


def test_json_lines_of_text(tmp_path, demo):
    _, tokenizer = demo
    path = tmp_path / "x.jsonl"
    path.write_text(
        '{"prompt": "Tom has 3", "output": " apples."}\n'
        '{"messages": [{"role": "user", "content": "Hi"}], "output": "x"}\n'
    )
    trace = Trace.load(path, tokenizer=tokenizer)
    assert trace.prompts[0].tolist() == tokenizer("Tom has 3")["input_ids"]
    assert tokenizer.decode(trace.outputs[0].tolist()) == " apples."
    assert len(trace.prompts[1]) > 2
    with pytest.raises(TraceError, match="line 1 holds text; name its tokenizer with --tokenizer"):
        Trace.load(path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ("[1]", "a JSON object is needed, not list"),
        ('{"prompt": "x"}', "here are only prompt"),
        ('{"prompt_ids": [1], "output_ids": "abc"}', "output_ids is not a list of token ids"),
        ('{"prompt_ids": [1.5], "output_ids": [1]}', "prompt_ids is not a list of token ids"),
        ('{"prompt_ids": [-1], "output_ids": [1]}', "prompt_ids"),
        ('{"prompt_ids": 3, "output_ids": [1]}', "prompt_ids"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, words):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt_ids": [1], "output_ids": [2]}\n' + line + "\n")
    with pytest.raises(TraceError, match=f"line 2.*{words}"):
        Trace.load(path)


def test_tokenizers_are_not_mixed(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(f'{{"prompt_ids": [1], "output_ids": [2], "tokenizer": "{name}"}}\n' for name in "ab"))
    with pytest.raises(TraceError, match="2 tokenizers"):
        Trace.load(path)


def test_two_traces_come_with_pia():
    traces = [Trace.load(path) for path in trace_paths()]
    assert [(trace.name, len(trace)) for trace in traces] == [("crux-mixtral-8x7b", 120), ("gsm-mixtral-8x7b", 120)]
    assert all("Apache-2.0" in trace.meta["licence"] for trace in traces)


def test_predictions_are_read_saved_and_replayed(tmp_path, demo):
    text = list(range(3, 90))
    lines = [
        {"prompt_ids": [1, 2], "output_ids": text, "predicted_ids": text},
        {"prompt_ids": [1, 2], "output_ids": [5, 6]},
        {"prompt": "Tom", "output": " has 3 apples.", "predicted": " has 4 apples."},
    ]
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    trace = Trace.load(path, tokenizer=demo[1])
    assert trace.predictions[0].tolist() == text and len(trace.predictions[1]) == 0
    assert demo[1].decode(trace.predictions[2]) == " has 4 apples."
    trace.save(tmp_path / "runs.npz")
    again = Trace.load(tmp_path / "runs.npz")
    assert [ids.tolist() for ids in again.predictions] == [ids.tolist() for ids in trace.predictions]
    assert len(again.part(1, 3).predictions) == 2
    assert len(again.with_request([1], [2]).predictions) == 4
    edl = [
        play(PiaDrafter(), trace.part(0, 1), fixed_budget(16)).edl for trace in (again, replace(again, predictions=[]))
    ]
    assert edl[0] > 10 > 3 > edl[1]


@pytest.mark.parametrize(
    "line", [{"predicted_ids": "x"}, {"predicted_ids": [-1]}, {"predicted": 3}, {"predicted": "x"}]
)
def test_bad_predictions_are_named(tmp_path, line):
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps({"prompt_ids": [1], "output_ids": [2], **line}))
    with pytest.raises(TraceError, match="line 1"):
        Trace.load(path)
