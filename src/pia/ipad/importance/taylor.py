"""Importance by first-order Taylor expansion: how much a loss would change if a unit fell silent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from pia.errors import ShrinkError
from pia.ipad.importance.batch import Batch, token_ids, token_weights
from pia.ipad.importance.experts import Routed, effects_of_parts, watching_experts
from pia.ipad.importance.points import HasPoints, Point, points_of, watching
from pia.ipad.importance.totals import Totals

Loss = Callable[[Batch], torch.Tensor]
_ROUNDING = 1e-6
"""A loss up to this is zero: float32 gives the KL of a model to itself some 1e-8."""


def taylor_totals(model: Any, structure: HasPoints, batches: Sequence[Batch], loss: Loss) -> tuple[Totals, float]:
    """Sums over all rows of |sum over the row's tokens of activation x gradient|, and the number of rows.

    What is summed inside the bars is the first-order change of the loss when the unit is masked: over all dims of a
    KV group, for a channel over all norms, and for a neuron over all experts, since it leaves them together (Molchanov
    et al., arXiv 1906.10771). An expert falls silent behind the router: that tokens then go to others is not foreseen.
    Only activations get gradients: the weights are held fixed meanwhile, which saves as much memory again as they take.

    Raises:
        ShrinkError: the loss is zero all over, up to rounding.
    """
    points = points_of(structure, model)
    totals = Totals(structure.shape, model.device)
    num_rows = 0
    is_loss = False
    with _weights_held(model):
        for batch in batches:
            value, effects = _effects(model, structure, points, loss, batch)
            is_loss = is_loss or abs(value) > _ROUNDING
            for (kind, layer), effect in effects.items():
                totals.add(kind, layer, effect.abs().sum(dim=0))
            num_rows += len(token_ids(batch))
    if not is_loss:
        raise ShrinkError(
            "the loss is zero on every batch, as the KL of a model to itself is, so it has no gradient: "
            "add the loss on labels, or draw labels from the teacher as the default does"
        )
    return totals, float(num_rows)


def _effects(
    model: Any, structure: HasPoints, points: Sequence[Point], loss: Loss, batch: Batch
) -> tuple[float, dict[tuple[str, int], torch.Tensor]]:
    """The loss of a batch, and for each kind and layer the signed effects, `[rows, units]`."""
    sums: dict[tuple[str, int], torch.Tensor] = {}

    def see(point: Point, values: torch.Tensor) -> None:
        if values.requires_grad:
            values.register_hook(lambda gradient: take(point, values.detach(), gradient))  # type: ignore[no-untyped-call]

    def take(point: Point, values: torch.Tensor, gradient: torch.Tensor) -> None:
        weights = token_weights(batch, values.device)
        products = point.by_unit(values.double() * gradient.double(), len(weights)).sum(dim=-1)
        add(point.kind, point.layer, torch.einsum("rtu,rt->ru", products, weights))

    def see_experts(routed: Routed, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: take_experts(routed, gradient))  # type: ignore[no-untyped-call]

    def take_experts(routed: Routed, gradient: torch.Tensor) -> None:
        neurons, experts = effects_of_parts(routed, gradient, token_weights(batch, gradient.device))
        add("ffn", routed.layer, neurons)
        add("experts", routed.layer, experts)

    def add(kind: str, layer: int, effect: torch.Tensor) -> None:
        sums[kind, layer] = sums[kind, layer] + effect if (kind, layer) in sums else effect

    with torch.enable_grad(), watching(points, see), watching_experts(structure, model, see_experts):
        value = loss(batch)
        value.backward()  # type: ignore[no-untyped-call]
    return float(value.detach()), sums


@contextmanager
def _weights_held(model: Any) -> Iterator[None]:
    """Takes gradients with respect to activations alone, from the embeddings on."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    handle = model.get_input_embeddings().register_forward_hook(_start_graph)
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        handle.remove()
        for parameter in wanted:
            parameter.requires_grad_(True)


def _start_graph(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
    if torch.is_grad_enabled():
        output.requires_grad_(True)
