"""Attention is chosen by measurement, among backends that give the model's own logits."""

from __future__ import annotations

import pytest
import torch

from pia.models.attention.choice import attention_backend_of
from pia.models.attention.reference import reference_attention


def timer(**seconds):
    def measure(layer, context, q, backends):
        assert backends["sdpa"] is None
        return {name: seconds[name] for name in backends}

    return measure


def never(*arguments):
    raise AssertionError("nothing to measure")


def broken(*states, **options):
    raise RuntimeError("ptxas failed")


def test_on_a_cpu_attention_runs_under_a_mask(llama):
    choice = attention_backend_of(llama, 8192, 16, timer=never)
    assert choice.name == "sdpa" and "CPU" in choice.reason


@pytest.mark.parametrize(("seconds", "name"), [(1e-5, "triton"), (0.98e-4, "sdpa"), (2e-4, "sdpa")])
def test_the_fastest_is_taken_where_it_is_worth_it(llama, seconds, name):
    backends = {"triton": reference_attention}
    choice = attention_backend_of(llama, 8192, 16, backends=backends, timer=timer(sdpa=1e-4, triton=seconds))
    assert choice.name == name
    assert "8192" in choice.reason and "sdpa 100 us" in choice.reason


def test_a_backend_that_does_not_compile_is_passed_over(llama):
    backends = {"triton": broken, "flex": reference_attention}
    choice = attention_backend_of(llama, 8192, 16, backends=backends, timer=timer(sdpa=2.0, flex=1.0))
    assert choice.name == "flex" and "ptxas failed" in choice.reason
    choice = attention_backend_of(llama, 8192, 16, backends={"triton": broken}, timer=never)
    assert choice.name == "sdpa" and "ptxas failed" in choice.reason


def test_no_memory_to_measure_in(llama):
    def measure(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    choice = attention_backend_of(llama, 8192, 16, backends={"triton": reference_attention}, timer=measure)
    assert choice.name == "sdpa" and "out of memory" in choice.reason
