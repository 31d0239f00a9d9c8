"""Importance by activation: how large what a unit passes on is. Needs forwards alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pia.ipad.importance.batch import Batch, model_inputs, token_weights
from pia.ipad.importance.experts import Routed, sizes_of_parts, watching_experts
from pia.ipad.importance.points import HasPoints, Point, points_of, watching
from pia.ipad.importance.totals import Totals


def activation_totals(model: Any, structure: HasPoints, batches: Sequence[Batch]) -> tuple[Totals, float]:
    """Sums of magnitudes over all tokens, and the number of tokens (Minitron, arXiv 2407.14679, section 2.2).

    A neuron counts |activation| times the norm of its column in the output projection, as that is what reaches the
    stream; a KV group the norm of its heads' outputs; a channel |output| of every norm. An expert counts the norm of
    its output times the router's weight, and a neuron of experts is summed over those that its token meets.
    """
    points = points_of(structure, model)
    columns = {id(point): _column_norms(point) for point in points if point.kind == "ffn"}
    totals = Totals(structure.shape, model.device)
    num_tokens = 0.0
    weights = torch.empty(0)

    def see(point: Point, values: torch.Tensor) -> None:
        sizes = torch.linalg.vector_norm(
            point.by_unit(values.detach().double(), len(weights)), dim=-1
        )  # [rows, tokens, units]
        sums = torch.einsum("rtu,rt->u", sizes, weights.to(sizes.device))
        totals.add(point.kind, point.layer, sums * columns[id(point)] if id(point) in columns else sums)

    def see_experts(routed: Routed, _output: torch.Tensor) -> None:
        neurons, experts = sizes_of_parts(routed, weights.flatten().to(routed.hidden.device))
        totals.add("ffn", routed.layer, neurons)
        totals.add("experts", routed.layer, experts)

    with torch.no_grad(), watching(points, see), watching_experts(structure, model, see_experts):
        for batch in batches:
            weights = token_weights(batch, model.device)
            num_tokens += float(weights.sum())
            model(**model_inputs(batch, model.device), use_cache=False)
    return totals, num_tokens


def _column_norms(point: Point) -> torch.Tensor | float:
    """`[units]`: how far each unit reaches through the module that it enters; 1 where the weight has no such axis."""
    weight = getattr(point.module, "weight", None)
    if weight is None or weight.ndim != 2 or point.num_units not in weight.shape:
        return 1.0
    is_input_first = not isinstance(point.module, torch.nn.Linear)  # GPT-2's Conv1D holds [in, out]
    axis = 1 if is_input_first else 0
    if weight.shape[1 - axis] != point.num_units:
        return 1.0
    norms: torch.Tensor = torch.linalg.vector_norm(weight.detach().double(), dim=axis)
    return norms
