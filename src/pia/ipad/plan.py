"""What a shrink would do, before anything is trained: shapes, costs and the units that would go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pia.ipad.cost import Cost, cost_of
from pia.ipad.counts import ParameterCounter
from pia.ipad.damage import Damage
from pia.ipad.latency_model import LatencyModel, probe_shapes
from pia.ipad.limits import Limits
from pia.ipad.scores import Scores
from pia.ipad.selection import Selection
from pia.ipad.shape import Shape
from pia.ipad.shape_schedule import STEP, schedule
from pia.ipad.speed import Speed, fit_latency, measure_shapes
from pia.ipad.target import Target, final_shape


@dataclass(frozen=True)
class PlannedRound:
    """A model along the way; number 0 is the original."""

    number: int
    shape: Shape
    cost: Cost
    selection: Selection
    """Units of the original that would stay by the scores of today; later rounds score anew, and may choose others."""
    damage: float
    """Estimated, see `pia.ipad.damage`: good for comparing shapes, no promise of a perplexity."""
    speed: Speed | None = None
    """Plain decoding, measured on this machine with random weights; none where it was not asked for."""


@dataclass(frozen=True)
class Plan:
    """A way from a model to what it shall become."""

    family: str
    target: Target
    original: PlannedRound
    rounds: list[PlannedRound]
    scores: Scores | None
    """Of the original's units; without them the first units of a kind stay."""
    context: int
    """Tokens in the cache for which arithmetic is counted."""
    latency: LatencyModel | None = None

    @property
    def final(self) -> PlannedRound:
        """What comes out."""
        return self.rounds[-1]

    def to_json(self) -> dict[str, Any]:
        """Figures alone."""

        def row(item: PlannedRound) -> dict[str, Any]:
            speed = None if item.speed is None else item.speed.tokens_per_second
            return {"shape": vars(item.shape), **item.cost.to_json(), "tokens_per_second": speed}

        return {
            "family": self.family,
            "target": str(self.target),
            "original": row(self.original),
            "rounds": [row(item) for item in self.rounds],
            "selection": self.final.selection.to_json(),
        }


def make_plan(
    model: Any,
    structure: Any,
    target: Target,
    *,
    scores: Scores | None = None,
    limits: Limits | None = None,
    step: float = STEP,
    context: int = 1024,
    measures_speed: bool = True,
    weights: Mapping[str, float] | None = None,
    speed_options: Mapping[str, Any] | None = None,
) -> Plan:
    """Plans a shrink; trains nothing, and leaves the model as it is.

    Args:
        model: the original.
        structure: its map.
        target: what is wanted.
        scores: importance of its units, see `pia.ipad.importance`; without them units of a kind count the same.
        limits: what shapes must keep to.
        step: share of the non-embedding parameters that a round removes.
        context: tokens in the cache for which arithmetic is counted.
        measures_speed: time the original and each round's shape on this machine.
        weights: of axes, see `pia.ipad.damage`.
        speed_options: as for `pia.ipad.speed.measure_speeds`.

    Raises:
        ShrinkError: no shape meets the target.
    """
    counter, options = ParameterCounter(structure), dict(speed_options or {})
    target.check()
    latency = fit_latency(structure, model, probe_shapes(structure), **options) if target.latency is not None else None
    final = final_shape(structure, scores, target, limits, latency=latency, counter=counter, weights=weights)
    shapes = [structure.shape, *schedule(structure, structure.shape, final, limits=limits, step=step, counter=counter)]
    speeds = _speeds(structure, shapes, model, options) if measures_speed else {}
    damage = Damage(scores, structure.shape, weights)
    planned = [
        PlannedRound(
            number,
            shape,
            cost_of(structure, shape, context=context, dtype=model.dtype, counter=counter),
            _selection(scores, structure.shape, shape),
            float(damage.of(shape)),
            speeds.get(shape),
        )
        for number, shape in enumerate(shapes)
    ]
    return Plan(structure.family, target, planned[0], planned[1:], scores, context, latency)


def _speeds(structure: Any, shapes: Sequence[Shape], model: Any, options: Mapping[str, Any]) -> dict[Shape, Speed]:
    """Each shape against the original, two in memory at a time; all are then scaled to one time of the original."""
    found: dict[Shape, Speed] = {}
    whole = shapes[0]
    for shape in shapes[1:]:
        pair = measure_shapes(structure, [whole, shape], model, **options)
        reference = found.setdefault(whole, pair[whole])
        factor = reference.tokens_per_second / pair[whole].tokens_per_second
        speed = pair[shape]
        found[shape] = Speed(speed.tokens_per_second * factor, speed.slowest * factor, speed.fastest * factor)
    return found


def _selection(scores: Scores | None, whole: Shape, shape: Shape) -> Selection:
    if scores is not None:
        return scores.select(shape)

    def first(num: int) -> tuple[int, ...]:
        return tuple(range(num))

    num = shape.num_layers
    experts = (first(shape.num_experts),) * num if whole.num_experts else ()
    groups, neurons = (first(shape.num_kv_heads),) * num, (first(shape.ffn_size),) * num
    return Selection(first(num), groups, neurons, first(shape.hidden_size), experts)
