"""What a teacher says about some tokens: all of its logits, or the likeliest of them from a cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from pia.errors import ShrinkError


class Targets(Protocol):
    """A teacher's distributions after `n` tokens."""

    @property
    def hidden(self) -> torch.Tensor | None:
        """Its final hidden states `[n, hidden]`, if they are known."""

    def compared(
        self, student: torch.Tensor, start: int, stop: int, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of teacher and student for tokens `start` to `stop`, over the same categories.

        Args:
            student: log-probabilities `[stop - start, vocab]` at the temperature.
            start: first token.
            stop: behind the last one.
            temperature: of both distributions.

        Returns:
            both `[stop - start, categories]`; no gradient flows into the teacher's.
        """


@dataclass(frozen=True)
class DenseTargets:
    """Hidden states and the head that makes logits of them, a few at a time."""

    hidden: torch.Tensor | None
    logits: Callable[[torch.Tensor], torch.Tensor]
    """`[n, vocab]` of `[n, hidden]`."""

    def compared(
        self, student: torch.Tensor, start: int, stop: int, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Targets`; the categories are all tokens."""
        assert self.hidden is not None
        with torch.no_grad():
            logits = self.logits(self.hidden[start:stop])
            if temperature != 1:
                logits = logits / temperature
            return torch.log_softmax(logits, -1), student


@dataclass(frozen=True)
class SparseTargets:
    """The likeliest tokens and the probability of all others together."""

    ids: torch.Tensor
    """`[n, k]`."""
    log_probs: torch.Tensor
    """`[n, k]`, at `temperature`."""
    log_rest: torch.Tensor
    """`[n]`."""
    temperature: float
    hidden: torch.Tensor | None = None

    def compared(
        self, student: torch.Tensor, start: int, stop: int, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Targets`; the categories are the k tokens, and all others as one."""
        if temperature != self.temperature:
            raise ShrinkError(
                f"the teacher's cache is of temperature {self.temperature}, not {temperature}: make another one"
            )
        ids = self.ids[start:stop]
        rest = torch.logsumexp(student.scatter(-1, ids, -torch.inf), -1, keepdim=True)
        theirs = torch.cat([self.log_probs[start:stop], self.log_rest[start:stop, None]], -1)
        return theirs.to(student.dtype), torch.cat([student.gather(-1, ids), rest], -1)
