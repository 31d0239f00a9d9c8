"""How far a student's distribution is from its teacher's, token by token."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

LogProbs = torch.Tensor
"""Logarithms of probabilities, `[n, categories]`."""


def forward_kl(teacher: LogProbs, student: LogProbs) -> torch.Tensor:
    """KL(teacher || student), `[n]`: the student covers all that the teacher may say."""
    probs = teacher.exp()
    finite = teacher.clamp(min=torch.finfo(teacher.dtype).min)  # what cannot come counts nothing, rather than 0 * inf
    return (probs * (finite - student)).sum(-1)


def reverse_kl(teacher: LogProbs, student: LogProbs) -> torch.Tensor:
    """KL(student || teacher), `[n]`: the student says nothing that the teacher would not.

    MiniLLM, arXiv 2306.08543.
    """
    return (student.exp() * (student - teacher)).sum(-1)


def generalised_jsd(teacher: LogProbs, student: LogProbs, beta: float) -> torch.Tensor:
    """Beta KL(teacher || m) + (1 - beta) KL(student || m) with m = beta teacher + (1 - beta) student, `[n]`.

    Generalised Jensen-Shannon divergence (GKD, arXiv 2306.13649, equation 1), 0 < beta < 1.
    """
    mean = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * (teacher.exp() * (teacher - mean)).sum(-1) + (1 - beta) * (student.exp() * (student - mean)).sum(-1)


DIVERGENCES: dict[str, Callable[[LogProbs, LogProbs, float], torch.Tensor]] = {
    "forward_kl": lambda teacher, student, _: forward_kl(teacher, student),
    "reverse_kl": lambda teacher, student, _: reverse_kl(teacher, student),
    "jsd": generalised_jsd,
}
