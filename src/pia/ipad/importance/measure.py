"""Measures the importance of all units of a model over a calibration set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pia.errors import ShrinkError
from pia.ipad.importance.activation import activation_totals
from pia.ipad.importance.batch import Batch
from pia.ipad.importance.default_loss import sampled_teacher_loss
from pia.ipad.importance.layers import block_influence, leave_one_out
from pia.ipad.importance.points import HasPoints
from pia.ipad.importance.taylor import taylor_totals
from pia.ipad.scores import Scores
from pia.models.evaluating import evaluating

METHODS = ("taylor", "activation")
LAYER_METHODS = ("leave_one_out", "influence")


def measure_importance(
    model: Any,
    structure: HasPoints,
    batches: Sequence[Batch],
    *,
    method: str = "taylor",
    layer_method: str = "leave_one_out",
    loss: Callable[[Batch], torch.Tensor] | None = None,
    teacher: Any = None,
    seed: int = 0,
) -> Scores:
    """Scores every unit, each over the whole set; in float64, so the order of the batches does not matter.

    Args:
        model: to be cut. Left as it was: no hook stays, and whether it trains and what is trained is put back.
        structure: its map.
        batches: of `pia.ipad.data`, or mappings with `input_ids` and, where rows are padded, `attention_mask`.
        method: for KV groups, neurons, experts and channels: `taylor` (first order, on `loss`) or `activation`
            (forward only).
        layer_method: for layers: `leave_one_out` (KL from the whole model when one is missing) or `influence` (how far
            a layer turns the stream; one forward for all layers).
        loss: for `taylor`: of a batch, as a scalar that has its graph; it must have a gradient. By default
            `sampled_teacher_loss(model, teacher, seed=seed)`.
        teacher: for the default loss; the model itself if there is none.
        seed: of the default loss' draws.

    Raises:
        ShrinkError: there is no batch, a method is unknown, the loss has no gradient, or a score is not finite.
    """
    _check(method, layer_method, batches)
    with evaluating(model):  # dropout would make scores a matter of chance
        if method == "taylor":
            loss = loss or sampled_teacher_loss(model, teacher, seed=seed)
            totals, count = taylor_totals(model, structure, batches, loss)
        else:
            totals, count = activation_totals(model, structure, batches)
        by_layer = block_influence if layer_method == "influence" else leave_one_out
        layers = by_layer(model, structure, batches)
    return _finite(Scores(layers=layers, **totals.divided(count)))


def _check(method: str, layer_method: str, batches: Sequence[Batch]) -> None:
    for name, known, what in ((method, METHODS, "units"), (layer_method, LAYER_METHODS, "layers")):
        if name not in known:
            raise ShrinkError(f"there is no way {name!r} to score {what}; there are {', '.join(known)}")
    if not len(batches):
        raise ShrinkError("importance is measured on text, and there is no batch of it: give some rows")


def _finite(scores: Scores) -> Scores:
    for name, values in vars(scores).items():
        if values is not None and not torch.from_numpy(values).isfinite().all():
            raise ShrinkError(
                f"scores of {name} are not finite: the model overflows on these texts; load it in bfloat16 or float32"
            )
    return scores
