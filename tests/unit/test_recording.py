"""Recording of finished requests."""

from __future__ import annotations

import json
import logging
import os
import threading

import pytest
import torch

import pia
from pia.bench.trace import Trace
from pia.errors import TraceError
from pia.lookahead import Lookahead
from pia.recording import TraceRecorder, until_stop


def requests(path):
    return [(prompt.tolist(), output.tolist()) for prompt, output in Trace.load(path)]


@pytest.mark.parametrize("name", ["x.jsonl", "x.npz"])
def test_requests_are_appended_and_a_file_is_continued(tmp_path, name):
    recorder = TraceRecorder(tmp_path / name)
    recorder.record([1, 2], [3], model="m", tokenizer=None)
    recorder.record([], [4, 5])
    TraceRecorder(tmp_path / name).record(torch.tensor([6]), [7])
    assert requests(tmp_path / name) == [([1, 2], [3]), ([], [4, 5]), ([6], [7])]
    assert Trace.load(tmp_path / name).meta == {"model": "m"}
    assert recorder.num_recorded == 2
    assert len(list(tmp_path.iterdir())) == 1


def test_threads_and_recorders_share_a_file(tmp_path):
    recorders = [TraceRecorder(tmp_path / "x.jsonl") for _ in range(2)]

    def work(number):
        for i in range(50):
            recorders[number % 2].record([number] * 300, [i] * 300)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = requests(tmp_path / "x.jsonl")
    assert len(found) == 200
    assert all(len(set(prompt)) == len(set(output)) == 1 and len(output) == 300 for prompt, output in found)


@pytest.mark.parametrize("torn", [b'{"prompt_ids": [9', b"x" * 200_000])
def test_a_line_that_a_crash_broke_off_is_cut(tmp_path, torn):
    path = tmp_path / "x.jsonl"
    TraceRecorder(path).record([1], [2])
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    TraceRecorder(path).record([3], [4])
    assert requests(path) == [([1], [2]), ([3], [4])]
    assert path.read_bytes().startswith(whole)


def test_a_first_line_that_a_crash_broke_off_is_cut(tmp_path):
    path = tmp_path / "x.jsonl"
    TraceRecorder(path).record([1], [2])
    for length in (1, 20):
        path.write_bytes(path.read_bytes()[:length])
        TraceRecorder(path).record([3], [4])
        assert requests(path) == [([3], [4])]


def test_other_files_are_left_alone(tmp_path):
    other = tmp_path / "x.jsonl"
    for text in ("precious", "precious\n", '{"prompt": "x"}\n', "[]\n[]\n{"):
        other.write_text(text)
        with pytest.raises(TraceError, match="something else"):
            TraceRecorder(other)
        assert other.read_text() == text
    other.write_text("")
    TraceRecorder(other).record([1], [2])
    assert requests(other) == [([1], [2])]
    (tmp_path / "x.npz").write_text("precious")
    with pytest.raises(TraceError, match="damaged"):
        TraceRecorder(tmp_path / "x.npz")
    assert (tmp_path / "x.npz").read_text() == "precious"
    with pytest.raises(TraceError, match=r"end it with \.jsonl"):
        TraceRecorder(tmp_path / "x.txt")
    for name in ("x.jsonl", "x.npz"):
        with pytest.raises(TraceError, match="folder exists"):
            TraceRecorder(tmp_path / "nowhere" / name)


@pytest.mark.parametrize("written", [0, 5])
def test_a_full_disk_does_not_stop_the_answer(tmp_path, monkeypatch, caplog, written):
    recorder = TraceRecorder(tmp_path / "x.jsonl")
    recorder.record([1], [2])
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:written]))
    with caplog.at_level(logging.WARNING, logger="pia"):
        recorder.record([3], [4])
        recorder.record([3], [4])
    monkeypatch.undo()
    assert (recorder.num_recorded, recorder.num_failed) == (1, 2)
    assert len(caplog.records) == 1
    recorder.record([5], [6])
    assert requests(tmp_path / "x.jsonl") == [([1], [2]), ([5], [6])]


def test_what_lookahead_finishes_is_recorded(tmp_path, demo):
    model, tokenizer = demo
    path = tmp_path / "x.jsonl"
    lookahead = Lookahead(budget=8, recorder=TraceRecorder(path))
    messages = [{"role": "user", "content": "Tom has 3 apples and buys 4 more. How many apples does he have?"}]
    result = pia.generate(model, tokenizer, messages, lookahead=lookahead, max_new_tokens=200)
    assert result.finish_reason == "eos"
    for step in pia.stream(model, tokenizer, "Tom has 3", lookahead=lookahead, max_new_tokens=5):
        assert step.pieces
    broken_off = pia.decode(model, [5, 6, 7], lookahead=lookahead, max_new_tokens=9)
    next(broken_off)
    broken_off.close()
    prompt = torch.tensor([[5, 6, 7]])
    output = model.generate(prompt, custom_generate=lookahead, max_new_tokens=4, do_sample=False)
    found = requests(path)
    assert found[0] == (result.prompt_ids, result.token_ids[:-1])  # without the end-of-text token
    assert found[1][0] == tokenizer("Tom has 3")["input_ids"]
    assert len(found[1][1]) == 5
    assert found[2] == ([5, 6, 7], output[0, 3:].tolist())
    assert len(found) == 3
    fields = json.loads(path.read_text().splitlines()[0])
    assert fields["model"] == "demo_model"  # never where it lies
    assert fields["tokenizer"] == lookahead.cache.tokenizer_fingerprint


def test_a_batch_is_recorded_too(tmp_path, llama):
    lookahead = Lookahead(recorder=TraceRecorder(tmp_path / "x.jsonl"))
    prompts = torch.tensor([[0, 0, 5, 6], [5, 6, 7, 8]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    output = llama.generate(
        prompts, attention_mask=mask, custom_generate=lookahead, max_new_tokens=6, do_sample=False, pad_token_id=0
    )
    found = requests(tmp_path / "x.jsonl")
    assert len(found) == 2  # in the order in which they end
    for row, prompt in enumerate([[5, 6], [5, 6, 7, 8]]):
        answer = {tuple(asked): given for asked, given in found}[tuple(prompt)]
        assert answer == output[row, 4 : 4 + len(answer)].tolist()


def test_until_stop():
    assert until_stop([1, 2, 3, 2], {2}) == [1]
    assert until_stop([1, 3], {2}) == [1, 3]
    assert until_stop([], {2}) == []
