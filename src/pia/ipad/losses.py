"""The loss of distillation, with never more than a bounded number of logits alive.

Logits of a whole batch are by far its largest tensor. Here the head runs over a few tokens at a time, and the gradient
of a piece is taken as soon as its loss is known: nothing of vocabulary size waits for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from pia.ipad.divergences import DIVERGENCES
from pia.ipad.targets import Targets

MAX_LOGITS = 1 << 22
"""Elements of the logits of one piece."""


@dataclass(frozen=True)
class Objective:
    """What is minimised for each token: `(1 - lm_weight) divergence + lm_weight * negative log-likelihood`."""

    divergence: str = "forward_kl"
    jsd_beta: float = 0.5
    temperature: float = 1.0
    """Of both distributions. The divergence is multiplied by its square, so that gradients keep their size."""
    lm_weight: float = 0.0


class TokenLosses(NamedTuple):
    """Sums over tokens, each token by its weight."""

    total: torch.Tensor
    """What to minimise; gradients flow from here."""
    divergence: torch.Tensor
    lm: torch.Tensor


@dataclass(frozen=True)
class ChunkedLoss:
    """The loss of one batch.

    Args:
        logits: `[n, vocab]` of the student's hidden states `[n, hidden]`.
        targets: of the teacher; None where `lm_weight` is 1.
        ids: the tokens themselves, `[n]`.
        weights: of the tokens, `[n]`.
        objective: what to minimise.
        max_logits: elements of the logits of one piece; a piece has one token at least.
    """

    logits: Callable[[torch.Tensor], torch.Tensor]
    targets: Targets | None
    ids: torch.Tensor
    weights: torch.Tensor
    objective: Objective
    max_logits: int = MAX_LOGITS

    def __call__(self, hidden: torch.Tensor, parameters: Sequence[torch.Tensor], vocab_size: int) -> TokenLosses:
        """Sums over all tokens.

        Args:
            hidden: the student's `[n, hidden]`.
            parameters: of the head, as far as they are trained.
            vocab_size: width of the logits.
        """
        step = max(1, self.max_logits // vocab_size)
        sums = _GradientNow.apply(self, step, hidden, *parameters)  # type: ignore[no-untyped-call]
        return TokenLosses(*sums)

    def of_piece(self, hidden: torch.Tensor, start: int) -> TokenLosses:
        """Sums over the tokens from `start` on whose hidden states are given."""
        stop = start + len(hidden)
        ids, weights = self.ids[start:stop], self.weights[start:stop]
        logits = self.logits(hidden)
        plain = self.objective.temperature == 1
        student = torch.log_softmax(logits if plain else logits / self.objective.temperature, -1)
        lm = student.gather(-1, ids[:, None]).squeeze(-1).neg() if plain else _nll(logits, ids)
        lm_sum = (lm * weights).sum()
        divergence = (self._divergence(student, start, stop) * weights).sum()
        share = self.objective.lm_weight
        return TokenLosses((1 - share) * divergence + share * lm_sum, divergence.detach(), lm_sum.detach())

    def _divergence(self, student: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        if self.targets is None:
            assert self.objective.lm_weight == 1
            return torch.zeros_like(student[:, 0])
        temperature = self.objective.temperature
        pair = self.targets.compared(student, start, stop, temperature)
        return DIVERGENCES[self.objective.divergence](*pair, self.objective.jsd_beta) * temperature**2


class _GradientNow(torch.autograd.Function):
    """Takes the gradients of a sum over pieces while each piece is at hand; backward only hands them out."""

    @staticmethod
    def forward(ctx: Any, loss: ChunkedLoss, step: int, hidden: torch.Tensor, *parameters: torch.Tensor) -> Any:
        sums: list[torch.Tensor] = []
        hidden_gradient = torch.empty_like(hidden)
        gradients: list[torch.Tensor] = []
        for start in range(0, len(hidden), step):
            with torch.enable_grad():
                piece = hidden[start : start + step].detach().requires_grad_()
                found = loss.of_piece(piece, start)
                first, *others = torch.autograd.grad(found.total, [piece, *parameters])
            hidden_gradient[start : start + step] = first
            _add(gradients, others)
            _add(sums, [value.detach() for value in found])
            del found, first, others  # before the next piece is made
        ctx.save_for_backward(hidden_gradient, *gradients)
        ctx.mark_non_differentiable(*sums[1:])
        return tuple(sums)

    @staticmethod
    def backward(ctx: Any, total: torch.Tensor, *_: torch.Tensor) -> Any:
        return None, None, *(gradient * total for gradient in ctx.saved_tensors)


def hidden_loss(
    student: torch.Tensor, teacher: torch.Tensor, weights: torch.Tensor, channels: torch.Tensor | None
) -> torch.Tensor:
    """Sum over tokens of 1 - cosine between final hidden states, each token by its weight.

    A channel that stays means what it meant, so the teacher's states are taken at the channels that stayed and no
    projection has to be learned. Their length changes when channels go (the final norm divides by the mean square of
    those that are there), so only directions are compared.

    Args:
        student: `[n, hidden]`.
        teacher: `[n, hidden of the teacher]`.
        weights: `[n]`.
        channels: which of the teacher's the student has, ascending; None for all.
    """
    chosen = teacher if channels is None else teacher[:, channels]
    cosine = functional.cosine_similarity(student, chosen.to(student.dtype), dim=-1)
    return ((1 - cosine) * weights).sum()


def _nll(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits, ids, reduction="none")


def _add(sums: list[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    if not sums:
        sums.extend(values)
        return
    for total, value in zip(sums, values, strict=True):
        total += value
