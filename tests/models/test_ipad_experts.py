"""Models with experts: what experts and their neurons are worth, what they cost, and that all of them train."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from shrink_models import half, shrinkable, token_ids

from ipad_support import flat_weights, random_rows
from pia.errors import ShrinkError
from pia.ipad import equality
from pia.ipad.cost import cost_of
from pia.ipad.counts import ParameterCounter
from pia.ipad.cut import cut
from pia.ipad.distil_config import DistillConfig
from pia.ipad.distiller import Distiller
from pia.ipad.equality import check_cut
from pia.ipad.float_muon import orthogonal
from pia.ipad.importance import METHODS, measure_importance
from pia.ipad.importance.experts import watching_experts
from pia.ipad.latency_model import probe_shapes
from pia.ipad.limits import Limits, sizes_of
from pia.ipad.plan import make_plan
from pia.ipad.quality import measure as quality_of
from pia.ipad.selection import Selection
from pia.ipad.sensitivity import measure_weights
from pia.ipad.shape import Shape
from pia.ipad.speed import random_model
from pia.ipad.structure import structure_of
from pia.ipad.target import Target
from pia.ipad.teacher import OnlineTeacher

FAMILIES = ("mixtral", "qwen3_moe")
families = pytest.mark.parametrize("family", FAMILIES)


def batches(num=3, *, rows=2, length=11):
    made = []
    for number in range(num):
        mask = torch.ones(rows, length, dtype=torch.int64)
        mask[-1, length - 4 :] = 0
        made.append({"input_ids": token_ids(rows, length, seed=number), "attention_mask": mask})
    return made


def scores_of(model, given, **options):
    return measure_importance(model, structure_of(model), given, **{"layer_method": "influence", **options})


def next_token_loss(model):
    """A sum over predicted positions."""

    def loss(batch):
        logits = model(**batch).logits[:, :-1]
        mask = batch["attention_mask"]
        wanted = (mask[:, :-1] * mask[:, 1:]).bool()
        return torch.nn.functional.cross_entropy(logits[wanted], batch["input_ids"][:, 1:][wanted], reduction="sum")

    return loss


@families
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
def test_parts_add_up_to_what_the_experts_give(family, dtype, most):
    model = shrinkable(family, dtype)
    seen = []

    def see(routed, output):
        parts = list(routed.parts())
        total = torch.zeros_like(output, dtype=torch.float64)
        for part in parts:
            total.index_add_(0, part.tokens, part.activations @ part.down.T)
        assert sum(len(part.tokens) for part in parts) == 2 * 9 * model.config.num_experts_per_tok
        seen.append(float((total - output).abs().max() / output.abs().max()))

    with torch.no_grad(), watching_experts(structure_of(model), model, see):
        model(token_ids(2, 9))
    assert len(seen) == 3 and max(seen) < most
    assert not any(module._forward_hooks for module in model.modules())


@families
@pytest.mark.parametrize("method", METHODS)
def test_the_whole_set_counts_and_its_order_does_not(family, method):
    model, given = shrinkable(family), batches(3)
    scores = scores_of(model, given, method=method)
    shape = structure_of(model).shape
    assert scores.experts.shape == (3, 4) and scores.ffn.shape == (3, shape.ffn_size)
    assert scores.experts.dtype == scores.ffn.dtype == np.float64
    other_way = scores_of(model, given[::-1], method=method)
    for kind in ("experts", "ffn"):
        np.testing.assert_allclose(getattr(scores, kind), getattr(other_way, kind), rtol=1e-12)
        for left_out in range(3):
            fewer = scores_of(model, given[:left_out] + given[left_out + 1 :], method=method)
            assert not np.allclose(getattr(fewer, kind), getattr(scores, kind), rtol=1e-6)


@families
def test_rows_count_the_same_alone_and_together(family):
    model, given = shrinkable(family), batches(2)
    alone = [{name: values[i : i + 1] for name, values in batch.items()} for batch in given for i in range(2)]
    together = scores_of(model, given, loss=next_token_loss(model))
    apart = scores_of(model, alone, loss=next_token_loss(model))
    for kind in ("experts", "ffn"):  # attention kernels round rows differently, and norms are of float32 inside
        np.testing.assert_allclose(getattr(together, kind), getattr(apart, kind), rtol=1e-4)


@families
@pytest.mark.parametrize("method", METHODS)
def test_an_expert_that_is_never_chosen_goes_first(family, method):
    model = shrinkable(family, num_experts_per_tok=1)
    gate = structure_of(model).router(model.model.layers[1]).weight
    with torch.no_grad():
        gate[1] = -gate[0]  # one of the two is above zero
        gate[2] = 0
    scores = scores_of(model, batches(), method=method)
    assert scores.experts[1, 2] == 0
    assert 2 not in scores.select(Shape(3, 2, 16, 32, 3)).experts[1]
    others = np.delete(scores.experts[1], 2)
    assert (others[:2] > 0).all()


@families
@pytest.mark.parametrize("method", METHODS)
def test_units_that_write_nothing_go_first(family, method):
    model = shrinkable(family)
    structure = structure_of(model)
    with torch.no_grad():
        structure.experts(model.model.layers[1]).down_proj[:, :, 7] = 0
        structure.experts(model.model.layers[2]).down_proj[3] = 0
    scores = scores_of(model, batches(), method=method)
    assert scores.ffn[1, 7] == scores.experts[2, 3] == 0
    assert (scores.ffn == 0).sum() == (scores.experts == 0).sum() == 1
    kept = scores.select(Shape(3, 2, structure.shape.ffn_size - 1, 32, 3))
    assert 7 not in kept.ffn[1] and kept.experts[2] == (0, 1, 2)


@families
def test_taylor_is_the_derivative_by_a_gate(family):
    """And so it is |sum of weight x gradient| over the outgoing weights of a unit."""
    model = shrinkable(family)
    batch = {"input_ids": token_ids(1, 10)}

    def loss(given):
        return model(**given).logits[..., 3].exp().mean()

    scores = scores_of(model, [batch], loss=loss)
    loss(batch).backward()
    for number, layer in enumerate(model.model.layers):
        weight = structure_of(model).experts(layer).down_proj
        products = weight.detach() * weight.grad  # [experts, hidden, neurons]
        np.testing.assert_allclose(scores.ffn[number], products.sum((0, 1)).abs().numpy(), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(scores.experts[number], products.sum((1, 2)).abs().numpy(), rtol=1e-6, atol=1e-9)


@families
@pytest.mark.parametrize("method", METHODS)
def test_scores_do_not_depend_on_the_kernel_of_experts(family, method):
    model, given = shrinkable(family, torch.float32), batches()
    loss = next_token_loss(model)
    grouped = scores_of(model, given, method=method, loss=loss)
    assert model.config._experts_implementation == "grouped_mm"
    model.set_experts_implementation("eager")
    eager = scores_of(model, given, method=method, loss=loss)
    for kind in ("experts", "ffn"):
        np.testing.assert_allclose(getattr(grouped, kind), getattr(eager, kind), rtol=2e-3, atol=1e-5)


def test_overflowing_experts_are_named():
    model = shrinkable("mixtral", torch.float32)
    with torch.no_grad():
        structure_of(model).experts(model.model.layers[0]).gate_up_proj.fill_(float("inf"))
    with pytest.raises(ShrinkError, match="not finite"):
        scores_of(model, batches(1), method="activation")


@families
def test_counts_and_arithmetic(family):
    model = shrinkable(family, torch.float32)
    structure = structure_of(model)
    small = cut(model, half(model))
    shape = structure_of(small).shape
    cost = cost_of(structure, shape, context=0)
    tables = 2 * 97 * shape.hidden_size
    assert cost.parameters == sum(p.numel() for p in small.parameters())
    assert cost.non_embedding == cost.parameters - tables
    assert ParameterCounter(structure).non_embedding(shape) == cost.non_embedding
    layer = small.model.layers[0]
    num_chosen = model.config.num_experts_per_tok
    experts = sum(p.numel() for p in layer.mlp.experts.parameters()) * num_chosen / shape.num_experts
    others = sum(p.numel() for name, p in layer.named_parameters() if p.ndim == 2)
    assert cost.flops_per_token == 2 * shape.num_layers * (experts + others) + tables


@families
def test_a_plan_cuts_experts_too(family):
    model = shrinkable(family, torch.float32)
    structure = structure_of(model)
    scores = scores_of(model, batches())
    plan = make_plan(model, structure, Target(0.5), scores=scores, limits=Limits(ffn_multiple=8),
                     speed_options=dict(rounds=1, new_tokens=2, prompt_tokens=4))  # fmt: skip
    final = plan.final
    assert final.cost.non_embedding <= 0.5 * plan.original.cost.non_embedding
    assert model.config.num_experts_per_tok <= final.shape.num_experts <= 4
    assert final.speed.tokens_per_second > 0
    assert structure_of(cut(model, final.selection)).shape == final.shape
    alone = make_plan(model, structure, Target(0.7), scores=scores, limits=Limits(axes=("experts",)),
                      measures_speed=False)  # fmt: skip
    assert alone.final.shape.num_experts < 4 and alone.final.shape.ffn_size == structure.shape.ffn_size


@families
def test_sizes_that_kernels_of_experts_cannot_run_are_left_out(family):
    """torch's refuse rows that are no multiple of 16 bytes."""
    model = shrinkable(family, torch.float32)
    structure = structure_of(model)
    sizes = sizes_of(structure, Limits(axes=("ffn", "hidden"), ffn_multiple=2))
    assert sizes["ffn"] == list(range(structure.shape.ffn_size, 0, -8))
    assert sizes["hidden"] == [32, 24, 16, 8]
    for shape in probe_shapes(structure):
        random_model(structure, shape, model.bfloat16())(token_ids(1, 5))
    with pytest.raises(ShrinkError, match=r"13 FFN neurons are not a multiple of 8.*take 8"):
        make_plan(model, structure, Target(shape=replace(structure.shape, ffn_size=13)), measures_speed=False)


def test_a_model_that_is_timed_runs_the_same_kernels():
    model = shrinkable("mixtral", torch.float32)
    model.set_experts_implementation("eager")
    structure = structure_of(model)
    assert random_model(structure, half(model).shape, model).config._experts_implementation == "eager"


@families
def test_the_check_of_a_cut_works_in_half_precision_and_sees_a_wrong_expert(family):
    model = shrinkable(family, torch.bfloat16)
    small = cut(model, half(model))
    assert check_cut(model, small, half(model), token_ids(2, 9)) < 1e-5
    with torch.no_grad():
        gate = small.model.layers[1].mlp.gate.weight
        gate.copy_(gate.flip(0))
    with pytest.raises(ShrinkError, match="differs from the masked one"):
        check_cut(model, small, half(model), token_ids(2, 9))


@families
def test_float64_decides_where_routers_are_undecided(family, monkeypatch):
    """Rounding in float32 may send a token elsewhere; kernels of experts lack float64, their classes do not."""
    model = shrinkable(family, torch.float32)
    small = cut(model, half(model))
    exact, found = equality._difference, []

    def undecided(*args):
        found.append((args[-1], exact(*args)))
        return 0.1 if args[-1] == torch.float32 else found[-1][1]

    monkeypatch.setattr(equality, "_difference", undecided)
    assert check_cut(model, small, half(model), token_ids(2, 9)) < 1e-7
    assert [dtype for dtype, _ in found] == [torch.float32, torch.float64]
    assert {m.config._experts_implementation for m in (model, small)} == {"grouped_mm"}


@families
def test_how_much_the_axis_of_experts_minds(family):
    model, given = shrinkable(family, torch.float32), batches(2)
    weights = measure_weights(model, structure_of(model), scores_of(model, given), given, Limits(ffn_multiple=4))
    assert set(weights) == {"layers", "kv_heads", "ffn", "experts"} and weights["experts"] > 0


def distilled(folder, student, teacher, *, num_steps=12, **changes):
    settings = dict(batch_tokens=200, warmup_steps=2, learning_rate=1e-2, precision="float32", checkpoint_every=2)
    config = DistillConfig(**{**settings, **changes})
    return Distiller(
        student, OnlineTeacher(teacher), random_rows(40), config, seed=5, folder=folder, num_steps=num_steps
    ).run()


@families
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_experts_and_routers_train(tmp_path, family, optimizer):
    teacher = shrinkable(family, torch.float32)
    student = cut(teacher, half(teacher))
    before = {name: p.clone() for name, p in student.named_parameters()}
    kl = quality_of(student, random_rows(40), teacher).kl
    result = distilled(tmp_path, student, teacher, optimizer=optimizer)
    assert quality_of(result, random_rows(40), teacher).kl < 0.9 * kl
    for name, parameter in result.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_a_stage_with_experts_goes_on(tmp_path):
    teacher = shrinkable("mixtral", torch.float32)
    whole = distilled(tmp_path / "whole", cut(teacher, half(teacher)), teacher, num_steps=4, optimizer="muon")

    class StoppedError(Exception):
        pass

    def stop(info):
        if info.step == 2:
            raise StoppedError

    settings = DistillConfig(batch_tokens=200, warmup_steps=2, learning_rate=1e-2, precision="float32",
                             checkpoint_every=2, optimizer="muon")  # fmt: skip
    with pytest.raises(StoppedError):
        Distiller(cut(teacher, half(teacher)), OnlineTeacher(teacher), random_rows(40), settings, seed=5,
                  folder=tmp_path / "cut", num_steps=4, on_step=stop).run()  # fmt: skip
    again = distilled(tmp_path / "cut", cut(teacher, half(teacher)), teacher, num_steps=4, optimizer="muon")
    assert torch.equal(flat_weights(again), flat_weights(whole))


@families
def test_adapters_leave_experts_and_routers_as_they_are(tmp_path, family):
    pytest.importorskip("peft")
    teacher = shrinkable(family, torch.float32)
    selection = Selection.everything(structure_of(teacher).shape)
    student = cut(teacher, selection)
    distilled(tmp_path, student, shrinkable(family, torch.float32, rms_norm_eps=0.5), num_steps=2, recovery="lora",
              lora_rank=2)  # fmt: skip
    moved = {
        name.split(".")[-2]
        for (name, p), q in zip(student.named_parameters(), teacher.parameters(), strict=True)
        if not torch.equal(p, q)
    }
    assert moved == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_each_matrix_of_a_stack_is_made_orthogonal_alone():
    stack = torch.randn(3, 16, 24, generator=torch.Generator().manual_seed(0))
    alone = torch.stack([orthogonal(matrix) for matrix in stack])
    torch.testing.assert_close(orthogonal(stack), alone, rtol=1e-4, atol=1e-5)
