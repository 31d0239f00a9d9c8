"""What a shrink leaves for the record: each round's figures, and all that led to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pia.ipad.scores import Scores
from pia.ipad.selection import Selection
from pia.ipad.shape import Shape


@dataclass(frozen=True)
class RoundRecord:
    """A model along the way; number 0 is the original."""

    number: int
    shape: Shape
    selection: Selection
    """Units of the ORIGINAL model that are still there."""
    parameters: int
    non_embedding: int
    perplexity: float | None = None
    """On held-out text, after distillation."""
    kl: float | None = None
    """Mean KL(original || this) a token on held-out text, nats."""
    agreement: float | None = None
    """Share of held-out tokens for which both models' likeliest next token is the same."""
    tokens_per_second: float | None = None
    """Of plain greedy decoding on this machine."""
    loss_curve: list[tuple[int, float]] = field(default_factory=list)
    """Step of the round, training loss."""
    seconds: float | None = None
    peak_bytes: int | None = None
    """Most memory that the round took beyond what was in use before."""

    def to_json(self) -> dict[str, Any]:
        """Plain lists, numbers and texts."""
        return {**asdict(self), "shape": asdict(self.shape), "selection": self.selection.to_json(),
                "loss_curve": [list(point) for point in self.loss_curve]}  # fmt: skip

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> RoundRecord:
        """What `to_json` made."""
        return cls(**{
            **content,
            "shape": Shape(**content["shape"]),
            "selection": Selection.from_json(content["selection"]),
            "loss_curve": [(int(step), float(loss)) for step, loss in content["loss_curve"]],
        })  # fmt: skip


@dataclass(frozen=True)
class ShrinkRecord:
    """A whole shrink."""

    model: str
    """Name or path of the original, as the user gave it."""
    family: str
    original: RoundRecord
    rounds: list[RoundRecord] = field(default_factory=list)
    """Those that were kept, in order."""
    scores: Scores | None = None
    """Of the original's units, as the first round measured them."""
    command: str = ""
    seed: int = 0
    data_fingerprint: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    """Options of the run."""
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What the reader should know: rounds rolled back, why it stopped."""

    @property
    def last(self) -> RoundRecord:
        """The model that came out; the original where no round was kept."""
        return self.rounds[-1] if self.rounds else self.original

    def to_json(self) -> dict[str, Any]:
        """Plain lists, numbers and texts."""
        content = {name: getattr(self, name) for name in ("model", "family", "command", "seed", "data_fingerprint")}
        return {
            **content,
            "config": self.config,
            "versions": self.versions,
            "notes": self.notes,
            "original": self.original.to_json(),
            "rounds": [round_.to_json() for round_ in self.rounds],
            "scores": None if self.scores is None else scores_to_json(self.scores),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> ShrinkRecord:
        """What `to_json` made."""
        scores = content["scores"]
        return cls(**{
            **content,
            "original": RoundRecord.from_json(content["original"]),
            "rounds": [RoundRecord.from_json(round_) for round_ in content["rounds"]],
            "scores": None if scores is None else scores_from_json(scores),
        })  # fmt: skip


def versions(packages: Sequence[str] = ("pia", "torch", "transformers", "numpy", "safetensors")) -> dict[str, str]:
    """Versions of what is installed."""
    from contextlib import suppress
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def scores_to_json(scores: Scores) -> dict[str, Any]:
    """Nested lists of the exact numbers."""
    return {name: None if values is None else values.tolist() for name, values in vars(scores).items()}


def scores_from_json(content: dict[str, Any]) -> Scores:
    """What `scores_to_json` made."""
    arrays: dict[str, Any] = {name: values and np.array(values, np.float64) for name, values in content.items()}
    return Scores(**arrays)
