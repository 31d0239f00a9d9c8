"""Recovery by adapters: few parameters are trained, and what is left is a stock model."""

from __future__ import annotations

import sys

import pytest
import torch

from ipad_support import flat_weights, random_rows, small_llama
from pia.errors import ShrinkError
from pia.ipad.distil_config import DistillConfig
from pia.ipad.distiller import Distiller
from pia.ipad.quality import measure
from pia.ipad.teacher import OnlineTeacher
from toys import tiny_model

pytest.importorskip("peft")
ROWS = random_rows(40)


def recovered(folder, student, *, teacher=None, num_steps=10, on_step=None, **changes):
    settings = dict(
        batch_tokens=200, warmup_steps=2, learning_rate=2e-2, recovery="lora", lora_rank=4, precision="float32",
        checkpoint_every=2,
    )  # fmt: skip
    teacher = OnlineTeacher(small_llama(seed=1)) if teacher is None else teacher
    config = DistillConfig(**{**settings, **changes})
    return Distiller(student, teacher, ROWS, config, seed=5, folder=folder, num_steps=num_steps, on_step=on_step).run()


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_adapters_are_merged_into_a_stock_model(tmp_path, family):
    student, teacher = tiny_model(family), tiny_model(family)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    before = {name: p.clone() for name, p in student.named_parameters()}
    kl = measure(student, ROWS, teacher).kl
    result = recovered(tmp_path, student, teacher=OnlineTeacher(teacher), num_steps=25)
    assert result is student and measure(student, ROWS, teacher).kl < 0.9 * kl
    after = dict(student.named_parameters())
    assert after.keys() == before.keys() and not hasattr(student, "peft_config")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(after[name].ndim == 2 and ".embed" not in name and "head" not in name for name in changed)
    assert all(p.requires_grad for p in after.values())
    for name in changed:
        assert torch.linalg.matrix_rank((after[name] - before[name]).double(), rtol=1e-4) <= 4
    student.save_pretrained(tmp_path / "stock")
    again = type(student).from_pretrained(tmp_path / "stock")
    assert torch.equal(again(torch.arange(9)[None]).logits, student(torch.arange(9)[None]).logits)


def test_a_stage_with_adapters_goes_on(tmp_path):
    expected = flat_weights(recovered(tmp_path / "whole", small_llama()))

    class StoppedError(Exception):
        pass

    def stop(info):
        if info.step == 5:
            raise StoppedError

    student = small_llama()
    before = flat_weights(student).clone()
    with pytest.raises(StoppedError):
        recovered(tmp_path / "parts", student, on_step=stop)
    assert torch.equal(flat_weights(student), before)  # adapters that were not finished are left out
    assert torch.equal(flat_weights(recovered(tmp_path / "parts", small_llama())), expected)


def test_what_adapters_need_is_named(tmp_path, monkeypatch):
    with pytest.raises(ShrinkError, match="set optimizer to adamw"):
        DistillConfig(recovery="lora", optimizer="muon")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ShrinkError, match="pip install peft"):
        recovered(tmp_path, small_llama())
