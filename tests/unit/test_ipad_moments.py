from __future__ import annotations

import copy

import pytest
import torch

from ipad_support import flat_weights, random_rows, small_llama
from pia.ipad.cut import cut
from pia.ipad.distil_config import DistillConfig
from pia.ipad.distiller import Distiller
from pia.ipad.moments import cut_moments, load_moments, moments_of, read_moments, save_moments
from pia.ipad.optimizers import build_optimizers
from pia.ipad.selection import Selection
from pia.ipad.structure import structure_of
from pia.ipad.teacher import OnlineTeacher

SOME = Selection(
    layers=(1,), kv_groups=((1,),), ffn=(tuple(range(3, 40)),), hidden=tuple(range(0, 32, 2))
)  # fmt: skip


def trained(student, folder, *, optimizer, first_step=0, num_steps=6, lr_from=1.0, lr_to=0.0, moments=None):
    config = DistillConfig(
        optimizer=optimizer, batch_tokens=160, warmup_steps=0, learning_rate=3e-3, precision="float32"
    )
    distiller = Distiller(
        student, OnlineTeacher(small_llama(seed=1)), random_rows(40), config, seed=0, folder=folder,
        first_step=first_step, num_steps=num_steps, lr_from=lr_from, lr_to=lr_to, moments=moments,
    )  # fmt: skip
    distiller.run()
    return distiller


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_stages_with_moments_are_one_long_stage(tmp_path, optimizer):
    whole = trained(small_llama(), tmp_path / "whole", optimizer=optimizer)
    first = trained(small_llama(), tmp_path / "first", optimizer=optimizer, num_steps=3, lr_to=0.5)
    save_moments(first.moments, tmp_path / "moments.safetensors")
    second = trained(
        first.student, tmp_path / "second", optimizer=optimizer, first_step=3, num_steps=3, lr_from=0.5,
        moments=read_moments(tmp_path / "moments.safetensors"),
    )  # fmt: skip
    assert torch.equal(flat_weights(second.student), flat_weights(whole.student))


def test_without_moments_the_second_stage_is_another_one(tmp_path):
    whole = trained(small_llama(), tmp_path / "whole", optimizer="adamw")
    first = trained(small_llama(), tmp_path / "first", optimizer="adamw", num_steps=3, lr_to=0.5)
    second = trained(first.student, tmp_path / "second", optimizer="adamw", first_step=3, num_steps=3, lr_from=0.5)
    assert not torch.equal(flat_weights(second.student), flat_weights(whole.student))


@pytest.mark.parametrize("tied", [False, True])
def test_moments_are_cut_as_the_weights_are(tied):
    model = small_llama(tied=tied)
    moments = {
        "exp_avg": {name: p.detach().clone() for name, p in model.named_parameters()},
        "step": {name: torch.tensor(7.0) for name, _ in model.named_parameters()},
    }
    found = cut_moments(moments, model, structure_of(model), SOME)
    small = cut(model, SOME)
    assert found["exp_avg"].keys() == dict(small.named_parameters()).keys()
    for name, parameter in small.named_parameters():
        assert torch.equal(found["exp_avg"][name], parameter)
        assert found["step"][name].shape == () and float(found["step"][name]) == 7.0


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_optimizers_that_take_them_over_step_alike(optimizer):
    model = small_llama()
    config = DistillConfig(optimizer=optimizer, precision="float32")
    one = build_optimizers(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    for part in one:
        part.step()
    twin = copy.deepcopy(model)
    other = build_optimizers(twin, config)
    load_moments(twin, other, copy.deepcopy(moments_of(model, one)))
    for mine, its in zip(twin.parameters(), model.parameters(), strict=True):
        mine.grad = its.grad.clone()
    for part in (*one, *other):
        part.step()
    assert torch.equal(flat_weights(twin), flat_weights(model))


def test_where_there_is_no_file_there_are_no_moments(tmp_path):
    assert read_moments(tmp_path / "none.safetensors") is None
