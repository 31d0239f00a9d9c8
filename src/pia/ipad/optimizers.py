"""Optimizers of a stage."""

from __future__ import annotations

from typing import Any

import torch

from pia.ipad.arithmetic import has_fast_bfloat16
from pia.ipad.distil_config import DistillConfig
from pia.ipad.float_muon import FloatMuon

_BETAS = (0.9, 0.95)


def build_optimizers(model: Any, config: DistillConfig) -> list[torch.optim.Optimizer]:
    """The optimizers of all parameters that are trained.

    Muon takes the matrices inside the network, routers and each matrix of a stack of experts included, and AdamW
    embeddings, head, norms and biases. Muon's updates are scaled to the size of AdamW's ("match_rms_adamw"), so one
    learning rate goes for both.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer == "adamw":
        return [_adamw(trained, config)]
    outer = _outer_parameters(model)
    inner = [p for p in trained if p.ndim >= 2 and id(p) not in outer]
    known = {id(p) for p in inner}
    others = [p for p in trained if id(p) not in known]
    return [*_muons(inner, config), *([_adamw(others, config)] if others else [])]


def set_learning_rate(optimizers: list[torch.optim.Optimizer], learning_rate: float) -> None:
    """For the next step."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate


def _outer_parameters(model: Any) -> set[int]:
    """Those of embeddings (of tokens or places) and of the head: rows of a table rather than linear maps."""
    tables = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    head = model.get_output_embeddings()
    return {id(p) for module in [*tables, *([head] if head is not None else [])] for p in module.parameters()}


def _adamw(parameters: list[torch.Tensor], config: DistillConfig) -> torch.optim.Optimizer:
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]  # norms and biases are not decayed
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate, betas=_BETAS, weight_decay=config.weight_decay, fused=_can_fuse(parameters),
    )  # fmt: skip


def _can_fuse(parameters: list[torch.Tensor]) -> bool:
    return all(p.device.type in ("cpu", "cuda") for p in parameters)


def _muons(matrices: list[torch.Tensor], config: DistillConfig) -> list[torch.optim.Optimizer]:
    """PyTorch's own for matrices where it is fast; it takes no stacks of them."""
    if not (matrices and hasattr(torch.optim, "Muon") and has_fast_bfloat16(matrices[0].device)):
        return [_float_muon(matrices, config)] if matrices else []
    plain = [p for p in matrices if p.ndim == 2]
    stacked = [p for p in matrices if p.ndim > 2]
    found: list[torch.optim.Optimizer] = []
    if plain:
        rate, decay = config.learning_rate, config.weight_decay
        found = [torch.optim.Muon(plain, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw", nesterov=True)]
    return [*found, *([_float_muon(stacked, config)] if stacked else [])]


def _float_muon(matrices: list[torch.Tensor], config: DistillConfig) -> torch.optim.Optimizer:
    return FloatMuon(matrices, lr=config.learning_rate, weight_decay=config.weight_decay)
