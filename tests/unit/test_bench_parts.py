"""The parts of the benchmark suite: bandwidth, memory, roofline, the parts of a step, first tokens, assistants."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from pia.bench import memory
from pia.bench.assisted import NAME, assisted_by, demo_refusal
from pia.bench.bandwidth import Bandwidth, measure_bandwidth
from pia.bench.breakdown import PARTS, step_breakdown
from pia.bench.case_result import mean_context
from pia.bench.contenders import Run, Stock
from pia.bench.latency import first_token_times
from pia.bench.memory import PeakMemory
from pia.bench.report import Report, quartiles
from pia.bench.roofline import reached, roofline
from pia.bench.step_bytes import KvBytes, LayerBytes, WeightBytes
from pia.bench.workload import Workload
from pia.decoding.stats import Stats, Step
from toys import tiny_model

MEMORY, CACHES = Bandwidth(10e9, "copy", 1 << 29), Bandwidth(40e9, "sum", 1 << 20)


def test_bandwidth_counts_its_bytes():
    bandwidth = measure_bandwidth("cpu", 1 << 20)
    assert bandwidth.num_bytes == 1 << 20
    assert bandwidth.bytes_per_s > 1e6
    assert bandwidth.operation in ("sum", "maximum", "product with a vector", "copy")


def test_the_floor_is_bytes_over_bandwidth():
    kv = KvBytes((LayerBytes(per_token=1e4, fixed=0, window=None),))
    line = roofline(WeightBytes(30_000_000, 19_000_000), kv, 100, MEMORY)
    assert line["bytes"] == 20_000_000
    assert line["floor_ms"] == pytest.approx(2.0)
    assert reached(line["floor_ms"], {"plain": 4.0, "generate": None}) == {"plain": 0.5, "generate": None}


def test_the_faster_rate_is_the_roof():
    line = roofline(WeightBytes(20_000_000, 20_000_000), None, 100, MEMORY, CACHES)
    assert line["floor_ms"] == pytest.approx(0.5)
    assert line["memory_gb_s"] == 10 and line["bandwidth_gb_s"] == 40
    assert line["kv_bytes"] is None
    assert any("unknown" in note for note in line["notes"]) and any("caches" in note for note in line["notes"])
    slow_caches = Bandwidth(5e9, "sum", 1 << 20)
    assert roofline(WeightBytes(20_000_000, 20_000_000), None, 100, MEMORY, slow_caches)["floor_ms"] == 2.0


def test_peak_memory_sees_what_was_freed_again():
    with PeakMemory("cpu") as peak:
        block = torch.ones(16 << 20)
        del block
    if peak.num_bytes is None:
        pytest.skip(peak.method)
    assert 60e6 < peak.num_bytes < 200e6


def test_peak_memory_by_looking(monkeypatch):
    seen = iter([1000, *[5000] * 3])
    monkeypatch.setattr(memory, "_reset_high_water_mark", lambda: False)
    monkeypatch.setattr(memory, "resident_bytes", lambda: next(seen, 2000))
    with PeakMemory("cpu") as peak:
        pass
    assert (peak.num_bytes, peak.method) == (4000, "resident memory, sampled")


def test_peak_memory_that_nobody_tells(monkeypatch):
    monkeypatch.setattr(memory, "_status_bytes", lambda _name: None)
    with PeakMemory("cpu") as peak:
        pass
    assert peak.num_bytes is None
    assert "not measured" in peak.method


def _stats():
    stats = Stats()
    stats.add(Step([1], [None], forward_s=1.0, accept_s=0.01, keep_s=0.01, is_prefill=True))
    for _ in range(2):
        stats.add(Step([1], [None], draft_s=0.03, forward_s=0.1, accept_s=0.01, keep_s=0.01))
    return stats


def test_the_parts_of_a_step():
    steps = step_breakdown(_stats(), seconds=1.32 + 0.1)
    expected = {"draft": 30, "forward": 100, "accept": 10, "keep": 10, "other": 50}
    assert tuple(steps["ms"]) == PARTS
    assert steps["ms"] == pytest.approx(expected, rel=1e-3)
    assert steps["step_ms"] == pytest.approx(200, rel=1e-3)
    assert steps["host_ms"] == pytest.approx(50, rel=1e-3)
    assert sum(steps["share"].values()) == pytest.approx(1, abs=1e-3)


def test_answers_of_one_token_have_no_steps():
    stats = Stats()
    stats.add(Step([1], [None], forward_s=1.0, is_prefill=True))
    assert step_breakdown(stats, 1.1) is None


def test_spread_and_tokens_a_forward():
    fast, slow = [Run([1] * 5, 1.0, None, 3)], [Run([1] * 5, 2.0, None, 3)]
    report = Report({"generate": [fast, slow], "pia": [[Run([1], 1.0, _stats())]]}, "generate")
    assert report.spread("generate") == (2.5, 5.0)
    assert report.edl("generate") == 2.0  # four tokens behind the first, in two forwards
    assert report.edl("pia") == 1.0
    assert Report({"generate": [fast]}, "generate", batch_size=2).edl("generate") is None
    assert quartiles([1.0]) == (1.0, 1.0)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 4.0)


def test_contexts_count_by_their_steps():
    workload = Workload(None, [torch.zeros(1, 10), torch.zeros(1, 100)], [30, 10])
    report = Report({"generate": [[Run([1] * 30, 1, None), Run([1] * 10, 1, None)]]}, "generate")
    assert mean_context(workload, report) == (30 * 25 + 10 * 105) / 40
    assert workload.longest == 1


class _Recorder:
    """A contender that writes down what it is asked."""

    def __init__(self, name):
        self.name, self.calls = name, []

    def run(self, model, batch, options):
        self.calls.append((model, [prompt.tolist() for prompt in batch], options))
        return [Run([1], 0.5, None) for _ in batch]


def test_first_tokens_are_asked_of_all_in_turns():
    contenders = [_Recorder("generate"), _Recorder("pia")]
    workload = Workload(None, [torch.tensor([[number]]) for number in range(30)], [9] * 30, {"do_sample": False})
    times = first_token_times(workload, contenders)
    assert {name: len(seconds) for name, seconds in times.items()} == {"generate": 20, "pia": 20}
    assert all(call[2] == {"do_sample": False, "max_new_tokens": 1} for call in contenders[0].calls)


def test_a_replay_forces_its_text():
    """The prompt's own text is in force while it is answered, and its own length is asked for."""
    in_force = []

    @contextmanager
    def forcing(index):
        in_force.append(index)
        yield
        in_force.append("end")

    contender = _Recorder("generate")
    workload = Workload("model", [torch.tensor([[5]]), torch.tensor([[6]])], [3, 4], {}, forcing)
    workload.answer(contender, [1])
    assert in_force == [1, "end"]
    assert contender.calls == [("model", [[[6]]], {"max_new_tokens": 4})]
    assert workload.is_replay
    with pytest.raises(AssertionError):
        workload.answer(contender, [0, 1])


def test_forwards_of_a_stock_contender_are_counted():
    model = tiny_model("llama")
    (run,) = Stock("generate").run(model, [torch.tensor([[5, 6]])], {"max_new_tokens": 4, "min_new_tokens": 4})
    assert (len(run.token_ids), run.num_forwards) == (4, 4)
    assert not model._forward_pre_hooks


class _Tokenizer(dict):
    def get_vocab(self):
        return self


ONE, OTHER = _Tokenizer(a=0, b=1), _Tokenizer(a=0, c=1)


def test_who_may_assist():
    assert demo_refusal(ONE, ONE, is_demo=False) is None
    assert "another tokenizer" in demo_refusal(ONE, OTHER, is_demo=False)
    assert "its own draft model" in demo_refusal(ONE, ONE, is_demo=True)


def test_an_assistant_of_another_tokenizer_drafts_through_text():
    assert assisted_by("assistant", ONE, ONE)._extra == {"assistant_model": "assistant"}
    through_text = assisted_by("assistant", OTHER, ONE)
    assert through_text.name == NAME
    assert through_text._extra.keys() == {"assistant_model", "tokenizer", "assistant_tokenizer"}
    assert through_text._extra["assistant_tokenizer"] is OTHER


def test_assisted_generation_answers_as_the_model_does():
    model, assistant = tiny_model("llama"), tiny_model("llama")
    options = {"max_new_tokens": 12, "do_sample": False}
    prompt = torch.tensor([[5, 6, 7]])
    (alone,) = Stock("generate").run(model, [prompt], options)
    (assisted,) = assisted_by(assistant, ONE, ONE).run(model, [prompt], options)
    assert assisted.token_ids == alone.token_ids
    assert assisted.num_forwards < alone.num_forwards
