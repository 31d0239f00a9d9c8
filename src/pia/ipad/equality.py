"""Asserts that a cut model and the big one, masked, are one function."""

from __future__ import annotations

from typing import Any

import torch

from pia.errors import ShrinkError
from pia.ipad.gates import masked
from pia.ipad.selection import Selection
from pia.ipad.structure import structure_of

_BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}
_RESCALED = 1e-6
"""At least this where weights take up a factor: the norms of float64 models compute in float32."""


@torch.no_grad()
def check_cut(model: Any, cut_model: Any, selection: Selection, input_ids: torch.Tensor) -> float:
    """Compares the logits of the cut model with those of the model that it came from, masked.

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
    with masked(model, selection):
        expected = model(input_ids.to(model.device), use_cache=False).logits
    found = cut_model(input_ids.to(cut_model.device), use_cache=False).logits
    scale = max(1.0, float(expected.abs().max()))
    difference = float((found.to(expected.device) - expected).abs().max()) / scale
    bound = _bound(model, selection)
    if not difference <= bound:  # also where it is no number
        raise ShrinkError(
            f"the cut model differs from the masked one by {difference:.2g} of the largest logit, more than the "
            f"{bound:g} that rounding explains: it was not saved. Please report this as a defect of PIA"
        )
    return difference


def _bound(model: Any, selection: Selection) -> float:
    bound = _BOUNDS[model.dtype]
    return max(bound, _RESCALED) if structure_of(model).rescales(selection.shape) else bound
