"""Masking leaves nothing behind, and comparing finds every kind of difference."""

from __future__ import annotations

import pytest
import torch
from shrink_models import KINDS, half, shrinkable, token_ids

from pia.errors import ShrinkError
from pia.ipad import equality
from pia.ipad.cut import cut
from pia.ipad.equality import check_cut
from pia.ipad.gates import masked
from pia.ipad.precision import widened


def logits(model):
    with torch.no_grad():
        return model(token_ids(2, 9), use_cache=False).logits


def hooks(model):
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


@pytest.mark.parametrize("name", KINDS)
def test_the_model_is_itself_again(name):
    model = shrinkable(name)
    before, num_hooks = logits(model), hooks(model)
    with masked(model, half(model)) as inside:
        assert inside is model and not torch.equal(logits(model), before)
    assert torch.equal(logits(model), before) and hooks(model) == num_hooks


def test_the_model_is_itself_again_after_an_error():
    model = shrinkable("llama")
    before, num_hooks = logits(model), hooks(model)
    with pytest.raises(RuntimeError, match="on the way"), masked(model, half(model)):
        raise RuntimeError("on the way")
    assert torch.equal(logits(model), before) and hooks(model) == num_hooks


def test_hooks_of_others_see_a_norm_once():
    """Importance counts activations by hooks; masking must not call them again."""
    model, calls = shrinkable("llama"), []
    handle = model.model.norm.register_forward_hook(lambda *args: calls.append(1))
    with masked(model, half(model)):
        logits(model)
    handle.remove()
    assert len(calls) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weight", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_a_wrong_weight_is_found(weight, dtype):
    model = shrinkable("llama", dtype)
    selection = half(model)
    small = cut(model, selection)
    assert check_cut(model, small, selection, token_ids(2, 9)) < 1e-5
    with torch.no_grad():
        small.get_parameter(weight)[token_ids(1).item() if "embed" in weight else 7] *= 1.02
    with pytest.raises(ShrinkError, match=r"differs from the masked one by .* rounding explains"):
        check_cut(model, small, selection, token_ids(2, 9, seed=1))


def test_no_number_is_a_difference():
    model = shrinkable("llama")
    selection = half(model)
    small = cut(model, selection)
    with torch.no_grad():
        small.model.norm.weight[3] = torch.nan
    with pytest.raises(ShrinkError, match="by nan"):
        check_cut(model, small, selection, token_ids(2, 9))


@pytest.mark.parametrize("name", ["llama (tied, biases)", "gemma2 (tied)", "gpt2"])
def test_float32_inside_of_half_precision(name):
    """The same as converting the whole model, and nothing of it remains."""
    model = shrinkable(name, torch.bfloat16)
    before = logits(model)
    with widened(model, torch.float32):
        inside = logits(model)
    assert torch.equal(logits(model), before) and model.dtype == torch.bfloat16
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(inside, logits(model.float()))


def test_float32_ends_with_an_error_inside_of_a_module():
    model = shrinkable("llama", torch.bfloat16)

    def fail(*args):
        raise RuntimeError("inside")

    handle = model.model.layers[1].mlp.up_proj.register_forward_hook(fail)
    with widened(model, torch.float32), pytest.raises(RuntimeError, match="inside"):
        logits(model)
    handle.remove()
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_float64_decides_where_float32_rounds_too_much(monkeypatch):
    """A bound below the rounding of float32 stands for a deep model."""
    model = shrinkable("llama", torch.float32)
    selection = half(model)
    small, ids = cut(model, selection), token_ids(2, 9)
    rounding = check_cut(model, small, selection, ids)
    assert rounding > 1e-8
    monkeypatch.setitem(equality._BOUNDS, torch.float32, 1e-8)
    assert check_cut(model, small, selection, ids) < 1e-8
    with torch.no_grad():
        small.model.layers[0].mlp.up_proj.weight[3] *= 1.001
    with pytest.raises(ShrinkError, match="differs from the masked one"):
        check_cut(model, small, selection, ids)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
