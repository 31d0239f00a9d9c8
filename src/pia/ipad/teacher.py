"""The original model as a teacher."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

import torch

from pia.ipad.data import Batch
from pia.ipad.decoder import Decoder, weights_fingerprint
from pia.ipad.targets import DenseTargets, Targets


class Teacher(Protocol):
    """Says for each token what should come next."""

    @property
    def fingerprint(self) -> str:
        """Names the weights."""

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""

    @property
    def models(self) -> tuple[Any, ...]:
        """Those that run while training; none if all is known already."""

    def to(self, device: torch.device) -> None:
        """Moves to where batches are."""

    def targets(self, batch: Batch) -> Targets:
        """Its distributions at the places of a batch."""


class OnlineTeacher:
    """Runs the model on every batch.

    Args:
        model: a causal language model; it is not changed.
    """

    def __init__(self, model: Any) -> None:
        self.decoder = Decoder(model.eval())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights."""
        return weights_fingerprint(self.decoder.model)

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self.decoder.vocab_size

    @property
    def models(self) -> tuple[Any, ...]:
        """The one model."""
        return (self.decoder.model,)

    def to(self, device: torch.device) -> None:
        """Moves the model."""
        self.decoder.model.to(device)

    def targets(self, batch: Batch) -> Targets:
        """Hidden states, and the head; logits are made by whoever compares."""
        # not inference_mode: what is made in it could not be kept for the student's backward pass
        with torch.no_grad():
            return DenseTargets(self.decoder.hidden(batch), self.decoder.logits)
