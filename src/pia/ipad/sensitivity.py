"""How much each axis of a model minds being cut, measured: weights for the estimate of damage."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional

from pia.ipad.counts import HasConfig
from pia.ipad.damage import Damage
from pia.ipad.gates import masked
from pia.ipad.importance.batch import Batch, model_inputs, predicted_positions
from pia.ipad.limits import AXES, Limits, axes_of, is_legal, sizes_of
from pia.ipad.scores import Scores
from pia.ipad.selection import Selection
from pia.ipad.shape import Shape

_PROBED = 0.75
"""Share of an axis' units that its probe keeps, about."""


def measure_weights(
    model: Any, structure: HasConfig, scores: Scores, batches: Sequence[Batch], limits: Limits | None = None
) -> dict[str, float]:
    """Cuts a quarter off each axis alone, by masks, and compares with the whole model.

    Takes a forward over the batches for each axis, and one more; a batch's logits are in memory twice.

    Args:
        model: the original; left as it is.
        structure: its map.
        scores: importance of its units.
        batches: as for `pia.ipad.importance.measure_importance`.
        limits: what shapes must keep to; says which axes may shrink.

    Returns:
        for `pia.ipad.damage`, by axis: KL a token for each unit of loss. An axis that no legal probe cuts alone is
        left out.
    """
    limits = limits or Limits()
    sizes = sizes_of(structure, limits)
    probes = {axis: _probe(structure, axis, sizes[axis]) for axis in axes_of(structure, limits)}
    damage = Damage(scores, structure.shape)
    selections = {axis: scores.select(shape) for axis, shape in probes.items() if shape is not None}
    costs = _mean_kl(model, selections, batches)
    losses = {axis: float(damage.loss(axis, getattr(selections[axis].shape, AXES[axis]))) for axis in selections}
    return {axis: costs[axis] / losses[axis] for axis in selections if losses[axis] > 0}


def _probe(structure: HasConfig, axis: str, sizes: Sequence[int]) -> Shape | None:
    """The legal shape that cuts one axis to about three quarters."""
    whole = sizes[0]
    for size in sorted(sizes[1:], key=lambda size: (abs(size - _PROBED * whole), size)):
        shape = replace(structure.shape, **{AXES[axis]: size})
        if is_legal(structure, shape):
            return shape
    return None


@torch.no_grad()
def _mean_kl(model: Any, selections: dict[str, Selection], batches: Sequence[Batch]) -> dict[str, float]:
    """KL(whole model || masked model) a token, by axis."""
    sums, num_tokens = dict.fromkeys(selections, 0.0), 0
    for batch in batches:
        known = _log_probs(model, None, batch)
        num_tokens += len(known)
        for axis, selection in selections.items():
            ours = _log_probs(model, selection, batch)
            sums[axis] += float(functional.kl_div(ours, known, reduction="sum", log_target=True))
    return {axis: total / max(1, num_tokens) for axis, total in sums.items()}


def _log_probs(model: Any, selection: Selection | None, batch: Batch) -> torch.Tensor:
    """`[positions, vocabulary]`."""
    with masked(model, selection) if selection is not None else nullcontext():
        logits = model(**model_inputs(batch, model.device), use_cache=False).logits[:, :-1]
    return functional.log_softmax(logits[predicted_positions(batch, model.device)].float(), dim=-1)
