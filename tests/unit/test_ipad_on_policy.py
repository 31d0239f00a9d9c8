"""The student writes, the teacher corrects: through TRL where it is installed."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from ipad_support import flat_weights, random_rows, small_llama
from pia.errors import ShrinkError
from pia.ipad.data import Row, RowEncoder, Rows
from pia.ipad.data.records import Pair, Question
from pia.ipad.on_policy import OnPolicyConfig, prompts_of, train_on_policy


def test_prompts_are_what_stands_before_the_answer(demo):
    _, tokenizer = demo
    rows = RowEncoder(tokenizer, 64).rows([("", Question("How many?", "Five.")), ("", Pair("There are ", "two."))])
    assert prompts_of(rows, tokenizer) == ["<|user|>How many?<|assistant|>", "There are"]  # " two" is one token
    with pytest.raises(ShrinkError, match="no prompts for the student"):
        prompts_of(Rows([Row(np.array([5, 6], np.int32), np.array([1, 1], np.float32))]), tokenizer)


def test_without_trl_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ShrinkError, match=r"pip install 'trl>=1\.16'"):
        train_on_policy(small_llama(), small_llama(), None, random_rows(3), OnPolicyConfig(), seed=0, folder=tmp_path)


@pytest.mark.parametrize("change", [dict(num_steps=0), dict(beta=2), dict(temperature=-1.0)])
def test_settings_are_checked(change):
    with pytest.raises(ShrinkError, match="must be"):
        OnPolicyConfig(**change)


@pytest.mark.slow
def test_a_student_learns_from_what_it_writes(tmp_path, demo):
    pytest.importorskip("trl")
    teacher, tokenizer = demo
    questions = [Question(f"Tom has {n} apples and eats one. How many are left?", "x") for n in range(2, 14)]
    rows = RowEncoder(tokenizer, 64).rows([("", question) for question in questions])
    student = small_llama(vocab_size=2048, max_position_embeddings=256)
    before = flat_weights(student).clone()
    losses = []
    config = OnPolicyConfig(num_steps=6, prompts_per_step=4, max_new_tokens=12, learning_rate=3e-3)
    result = train_on_policy(
        student, teacher, tokenizer, rows, config, seed=0, folder=tmp_path, on_step=lambda *info: losses.append(info)
    )
    assert result is student and not torch.equal(flat_weights(student), before)
    assert [step for step, _ in losses] == list(range(1, 7)) and losses[-1][1] < losses[0][1]
