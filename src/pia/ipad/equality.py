"""Asserts that a cut model and the big one, masked, are one function."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from pia.errors import ShrinkError
from pia.ipad.gates import masked
from pia.ipad.precision import in_float32
from pia.ipad.selection import Selection
from pia.ipad.structure import structure_of

_BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}
_RESCALED = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}
"""Where weights took up a factor, which rounds them: the norms of float64 models compute in float32."""


@torch.no_grad()
def check_cut(model: Any, cut_model: Any, selection: Selection, input_ids: torch.Tensor) -> float:
    """Compares the logits of the cut model with those of the model that it came from, masked.

    Models of half precision are compared in float32, widened module by module, as their own rounding would hide
    mistakes; only where their attention knows nothing but half precision, in that.

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
    with masked(model, selection), _precise(model):
        expected = model(input_ids.to(model.device), use_cache=False).logits
    with _precise(cut_model):
        found = cut_model(input_ids.to(cut_model.device), use_cache=False).logits
    scale = max(1.0, float(expected.abs().max()))
    difference = float((found.to(expected.device) - expected).abs().max()) / scale
    bound = _bound(model, selection)
    if not difference <= bound:  # also where it is no number
        raise ShrinkError(
            f"the cut model differs from the masked one by {difference:.2g} of the largest logit, more than the "
            f"{bound:g} that rounding explains, so it cannot be trusted. Please report this as a defect of PIA"
        )
    return difference


def _precise(model: Any) -> AbstractContextManager[Any]:
    return in_float32(model) if _is_widened(model) else nullcontext()


def _is_widened(model: Any) -> bool:
    is_half = model.dtype in (torch.bfloat16, torch.float16)
    return is_half and "flash" not in (model.config._attn_implementation or "")


def _bound(model: Any, selection: Selection) -> float:
    if structure_of(model).rescales(selection.shape):
        return _RESCALED[model.dtype]
    return _BOUNDS[torch.float32 if _is_widened(model) else model.dtype]
