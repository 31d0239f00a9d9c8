"""Attention is chosen by measurement, among backends that give the model's own logits."""

from __future__ import annotations

import pytest
import torch

from pia.models.attention.choice import attention_backend_of
from pia.models.attention.reference import reference_attention


def timer(*, sdpa, other):
    def measure(layer, context, q, backends):
        assert backends["sdpa"] is None
        return {name: other if attend else sdpa for name, attend in backends.items()}

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
    choice = attention_backend_of(llama, 8192, 16, backends=backends, timer=timer(sdpa=1e-4, other=seconds))
    assert choice.name == name
    assert "8192" in choice.reason and "100 us with sdpa" in choice.reason


def test_a_backend_that_does_not_compile_is_passed_over(llama):
    backends = {"triton": broken, "flex": reference_attention}
    choice = attention_backend_of(llama, 8192, 16, backends=backends, timer=timer(sdpa=2.0, other=1.0))
    assert choice.name == "flex" and "ptxas failed" in choice.reason
    choice = attention_backend_of(llama, 8192, 16, backends={"triton": broken}, timer=never)
    assert choice.name == "sdpa" and "ptxas failed" in choice.reason


def test_no_memory_to_measure_in(llama):
    def measure(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    choice = attention_backend_of(llama, 8192, 16, backends={"triton": reference_attention}, timer=measure)
    assert choice.name == "sdpa" and "out of memory" in choice.reason


def test_a_backend_that_is_wrong_for_large_trees_is_passed_over(llama):
    """The probe of the model has few tokens; kernels take other tiles for many."""

    def wrong_beyond_32(query, keys, values, starts, bits, **options):
        wrong = torch.full_like(bits, -1) if bits.shape[1] > 32 else bits
        return reference_attention(query, keys, values, starts, wrong, **options)

    backends = {"triton": wrong_beyond_32}
    fast = timer(sdpa=2.0, other=1.0)
    assert attention_backend_of(llama, 1024, 16, backends=backends, timer=fast).name == "triton"
    choice = attention_backend_of(llama, 1024, 64, backends=backends, timer=fast)
    assert choice.name == "sdpa" and "64 tokens" in choice.reason


def test_a_backend_that_reads_behind_the_end_is_passed_over(llama):
    def careless(query, keys, values, starts, bits, **options):
        beyond = torch.zeros_like(starts) + keys.shape[2] - query.shape[2]
        return reference_attention(query, keys, values, beyond, bits, **options)

    attend = {"triton": lambda *states, **options: careless(*states, **options) if states[0].shape[2] == 64
              else reference_attention(*states, **options)}  # fmt: skip
    choice = attention_backend_of(llama, 1024, 64, backends=attend, timer=never)
    assert choice.name == "sdpa" and "reference" in choice.reason
