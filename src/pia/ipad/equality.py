"""Asserts that a cut model and the big one, masked, are one function."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch

from pia.errors import ShrinkError
from pia.ipad.gates import masked
from pia.ipad.kernels import eager_experts
from pia.ipad.precision import widened
from pia.ipad.selection import Selection
from pia.ipad.structure import structure_of

_BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}
_RESCALED = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}
"""Where weights took up a factor, which rounds them: the norms of float64 models compute in float32."""


@torch.no_grad()
def check_cut(model: Any, cut_model: Any, selection: Selection, input_ids: torch.Tensor) -> float:
    """Compares the logits of the cut model with those of the model that it came from, masked.

    Models of half precision are compared in float32, widened module by module, as their own rounding would hide
    mistakes; only where their attention knows nothing but half precision, in that. Where float32 differs by more than
    it may, as it does by rounding alone in deep models or where a router is almost undecided, float64 decides.

    Args:
        model: the model before.
        cut_model: what `cut` made of it.
        selection: the units that stayed.
        input_ids: `[batch, length]`, on any device.

    Returns:
        The largest difference of a logit, relative to the largest logit (to 1 if that is smaller).

    Raises:
        ShrinkError: the difference is above what rounding explains.
    """
    bound = _bound(model, selection)
    difference = float("nan")
    for dtype in _dtypes(model):
        difference = _difference(model, cut_model, selection, input_ids, dtype)
        if difference <= bound:
            return difference
    raise ShrinkError(
        f"the cut model differs from the masked one by {difference:.2g} of the largest logit, more than the "
        f"{bound:g} that rounding explains, so it cannot be trusted. Please report this as a defect of PIA"
    )


def _difference(model: Any, cut_model: Any, selection: Selection, input_ids: torch.Tensor, dtype: torch.dtype) -> float:
    with ExitStack() as stack:
        stack.enter_context(masked(model, selection))
        if dtype != model.dtype:
            stack.enter_context(widened(model, dtype))
            stack.enter_context(widened(cut_model, dtype))
        if dtype == torch.float64:
            stack.enter_context(eager_experts(model))
            stack.enter_context(eager_experts(cut_model))
        expected = model(input_ids.to(model.device), use_cache=False).logits
        found = cut_model(input_ids.to(cut_model.device), use_cache=False).logits
    scale = max(1.0, float(expected.abs().max()))
    return float((found.to(expected.device) - expected).abs().max()) / scale


def _dtypes(model: Any) -> list[torch.dtype]:
    """In what to compare, until a difference is small enough."""
    if "flash" in (model.config._attn_implementation or ""):
        return [model.dtype]
    first = torch.promote_types(model.dtype, torch.float32)
    return [first, torch.float64] if first != torch.float64 and model.device.type != "mps" else [first]


def _bound(model: Any, selection: Selection) -> float:
    if structure_of(model).rescales(selection.shape):
        return _RESCALED[model.dtype]
    return _BOUNDS[_dtypes(model)[0]]
