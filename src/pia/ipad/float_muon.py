"""Muon in float32, for processors on which PyTorch's own, which calculates in bfloat16, is slow."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the Newton-Schulz step (Jordan 2024, "Muon: an optimizer for hidden layers")."""


class FloatMuon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, for matrices and stacks of them `[..., rows, columns]`.

    The same rule as ``torch.optim.Muon`` with Nesterov's momentum and ``adjust_lr_fn="match_rms_adamw"``.
    """

    def __init__(self, matrices: Iterable[torch.Tensor], *, lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._update(matrix, group)

    def _update(self, matrix: torch.Tensor, group: dict[str, float]) -> None:
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        assert matrix.grad is not None
        mean = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
        direction = orthogonal(matrix.grad.lerp(mean, group["momentum"]))
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.add_(direction, alpha=-group["lr"] * 0.2 * math.sqrt(max(matrix.shape[-2:])))


def orthogonal(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """About the nearest matrix ``[..., rows, columns]`` whose singular values are all 1, by Newton-Schulz steps."""
    is_tall = matrix.shape[-2] > matrix.shape[-1]
    x: torch.Tensor = matrix.mT if is_tall else matrix
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    a, b, c = QUINTIC
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if is_tall else x
