"""All that a user can choose about a shrink."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pia.errors import ShrinkError
from pia.ipad.checks import Bound, check_bounds, check_choices
from pia.ipad.distil_config import DistillConfig
from pia.ipad.importance import LAYER_METHODS, METHODS
from pia.ipad.limits import Limits
from pia.ipad.shape import Shape
from pia.ipad.shape_schedule import STEP

_CHOICES = {
    "importance": METHODS,
    "layer_importance": LAYER_METHODS,
    "dtype": ("auto", "float32", "bfloat16", "float16"),
}
_FROM_0: Bound = (lambda x: isinstance(x, int) and x >= 0, "give a whole number from 0")
_FROM_1: Bound = (lambda x: isinstance(x, int) and x >= 1, "give a whole number from 1")
_NUMBER: Bound = (lambda x: True, "give a number")
_SHARE: Bound = (lambda x: 0 < x < 1, "give a share between 0 and 1")
_BOUNDS: dict[str, Bound] = {
    "tensor_parallel": _FROM_1,
    "calibration_rows": _FROM_1,
    "on_policy_steps": _FROM_0,
    "seed": _FROM_0,
    "steps": _FROM_1,
    "ffn_multiple": _FROM_1,
    "hidden_multiple": _FROM_1,
    "target": _NUMBER,
    "target_latency": _NUMBER,
    "last_share": _SHARE,
    "held_out_share": _SHARE,
    "round_share": (lambda x: 0 < x <= 1, "give a share above 0, up to 1"),
    "max_perplexity": (lambda x: x > 0, "give a multiple, such as 1.2"),
}
_OPTIONAL = ("steps", "ffn_multiple", "hidden_multiple", "target", "target_latency", "max_perplexity")


@dataclass(frozen=True)
class ShrinkConfig:
    """Settings of a shrink.

    Raises:
        ShrinkError: a setting is out of its range.
    """

    target: float | None = None
    """Share of the non-embedding parameters that stays."""
    target_latency: float | None = None
    """Share of the time per token of plain decoding on this machine that stays; both targets may be given."""
    shape: str | None = None
    """Or the sizes to end at, such as `layers=4,ffn=512`."""
    axes: tuple[str, ...] | None = None
    """What may be cut; see `Limits`."""
    tensor_parallel: int = 1
    """Devices that the small model must be splittable over."""
    ffn_multiple: int | None = None
    """Of FFN sizes; by default a power of two up to a sixteenth of the FFN, at most 128; of experts, 8."""
    hidden_multiple: int | None = None
    """Of hidden sizes; the default is made likewise."""
    round_share: float = STEP
    """Share of the original's non-embedding parameters that a round removes, about; 1 cuts all in one round."""
    steps: int | None = None
    """Of distillation, over all rounds; as many as one pass over the data takes when None."""
    last_share: float = 0.75
    """Share of these steps that the last round gets, in which the learning rate falls to 0; the others share the rest
    evenly."""
    max_perplexity: float | None = None
    """The quality floor: the most that held-out perplexity may be, as a multiple of the original's. A round that goes
    beyond it is rolled back, and the shrink ends there."""
    importance: str = "taylor"
    """Of KV groups, neurons, experts and channels: "taylor" or "activation"."""
    layer_importance: str = "leave_one_out"
    """Of layers: "leave_one_out" or "influence"."""
    calibration_rows: int = 64
    """Rows of the training data that importance is measured on."""
    held_out_share: float = 0.05
    """Of the data, to measure quality on, where no file is given for it."""
    on_policy_steps: int = 0
    """Steps on the student's own texts at the end, through TRL."""
    dtype: str = "auto"
    """Of the checkpoints that are written: "auto" is the original's."""
    seed: int = 0
    distil: DistillConfig = field(default_factory=DistillConfig)

    def __post_init__(self) -> None:
        check_choices(self, _CHOICES)
        check_bounds(self, _BOUNDS, optional=_OPTIONAL)

    @classmethod
    def of(cls, **options: Any) -> ShrinkConfig:
        """From options of both kinds: those of a shrink, and those of its distillation.

        Raises:
            ShrinkError: an option is unknown or out of range.
        """
        own = {name: options.pop(name) for name in _names(cls) if name in options}
        of_distillation = {name: options.pop(name) for name in _names(DistillConfig) if name in options}
        if options:
            known = ", ".join(sorted({*_names(cls), *_names(DistillConfig)} - {"distil"}))
            raise ShrinkError(f"unknown option {next(iter(options))!r}; the options of a shrink are {known}")
        if of_distillation and "distil" in own:
            raise ShrinkError("give the options of distillation either by name or as `distil`, not both")
        return cls(**{"distil": DistillConfig(**of_distillation), **own})

    @property
    def limits(self) -> Limits:
        """What the shapes must keep to."""
        return Limits(self.axes, self.tensor_parallel, self.ffn_multiple, self.hidden_multiple)

    def wanted_shape(self, base: Shape) -> Shape | None:
        """The shape to end at, where one was given."""
        return None if self.shape is None else Shape.parse(self.shape, base)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        content = asdict(self)
        return {**content, "axes": None if self.axes is None else list(self.axes)}


def _names(kind: type) -> list[str]:
    return [f.name for f in fields(kind)]
