"""What a model of a shape costs: parameters, arithmetic and memory for each generated token."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from pia.ipad.counts import HasConfig, ParameterCounter, meta_model
from pia.ipad.shape import Shape


@dataclass(frozen=True)
class Cost:
    """Of one model."""

    parameters: int
    """What the checkpoint holds; a tied head once."""
    non_embedding: int
    embedding: int
    """Token and position embeddings, and a head that is not tied."""
    flops_per_token: float
    """Multiplications and additions of one decode step, at the context length that was asked for."""
    weight_bytes: int
    kv_bytes_per_token: int
    """Keys and values of all layers for one token."""

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self)


def cost_of(
    structure: HasConfig,
    shape: Shape,
    *,
    context: int = 1024,
    dtype: torch.dtype = torch.bfloat16,
    counter: ParameterCounter | None = None,
) -> Cost:
    """Counts a model of a shape on the meta device, which takes no memory.

    Args:
        structure: the model's map.
        shape: legal for it.
        context: tokens in the KV cache for the arithmetic of attention; windows are not looked at.
        dtype: of weights and cache.
        counter: of the same structure, if there is one already.
    """
    model = meta_model(structure, shape)
    total = sum(parameter.numel() for parameter in model.parameters())  # a tied one comes once
    embedding = _num_embedding(model)
    counter = counter or ParameterCounter(structure)
    heads = shape.num_kv_heads * structure.head_dim
    return Cost(
        parameters=total,
        non_embedding=total - embedding,
        embedding=embedding,
        flops_per_token=_flops(structure, shape, context, counter, model),
        weight_bytes=total * dtype.itemsize,
        kv_bytes_per_token=2 * shape.num_layers * heads * dtype.itemsize,
    )


def _num_embedding(model: Any) -> int:
    weights = {id(module.weight): module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    head = model.get_output_embeddings()
    if head is not None:
        weights |= {id(parameter): parameter for parameter in head.parameters()}
    return sum(weight.numel() for weight in weights.values())


def _flops(structure: HasConfig, shape: Shape, context: int, counter: ParameterCounter, model: Any) -> float:
    """Two for each weight that a token meets, and four for each dim of each query head and token of the context."""
    ffn, rest = counter.layer_matrices(shape, active_share(model.config, shape))
    heads = shape.num_kv_heads * structure.queries_per_group * structure.head_dim
    head = model.get_output_embeddings()
    return float(2 * shape.num_layers * (ffn + rest) + 4 * shape.num_layers * heads * context
                 + (2 * head.weight.numel() if head is not None else 0))  # fmt: skip


def active_share(config: Any, shape: Shape) -> float:
    """Experts that a token meets, of those that there are; 1 for dense models."""
    if not shape.num_experts:
        return 1.0
    text = config.get_text_config(decoder=True)
    chosen = getattr(text, "num_experts_per_tok", None) or getattr(text, "moe_topk", None) or shape.num_experts
    return min(1.0, float(chosen) / shape.num_experts)
