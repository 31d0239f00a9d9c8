"""Times one layer's attention on a CUDA device as it runs in a captured graph, so without launches from Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface

from pia.models.attention.bits import pack
from pia.models.attention.probe import LayerShape
from pia.models.attention.reference import TreeAttention, reference_attention
from pia.models.static.graphs import CudaGraphs

_BEYOND_CACHE = 256 << 20
"""Bytes of KV that a round reads, so that none of it is still in the device's cache in the next."""
_MAX_LAYERS = 64
_ROUNDS = 7


@dataclass(frozen=True)
class Inputs:
    """What layers attend with: `query [rows, heads, q, dim]`, each layer's keys and values, and the trees."""

    query: torch.Tensor
    layers: Sequence[tuple[torch.Tensor, torch.Tensor]]
    starts: torch.Tensor
    bits: torch.Tensor
    depths: torch.Tensor
    mask: torch.Tensor


def layer_seconds(
    layer: LayerShape, context: int, q: int, backends: Mapping[str, TreeAttention | None]
) -> dict[str, float]:
    """Seconds that one layer's attention takes with each backend; they take turns, medians count.

    Args:
        layer: its shapes.
        context: committed slots.
        q: nodes of the tree, a chain (which changes no backend's time).
        backends: by name; `None` is the model's own attention under a mask.

    Raises:
        RuntimeError: no memory, or a kernel that does not compile.
    """
    inputs = made_up(layer, context, q, torch.device("cuda"))
    replays = {name: captured(_all_layers(layer, inputs, attend)) for name, attend in backends.items()}
    rounds = [{name: replay_seconds(replay) for name, replay in replays.items()} for _ in range(_ROUNDS)]
    return {name: median(each[name] for each in rounds) / len(inputs.layers) for name in replays}


def made_up(layer: LayerShape, context: int, q: int, device: torch.device) -> Inputs:
    """Random states of one row in so many layers that they do not fit into the device's cache."""
    options: Any = {"dtype": layer.dtype, "device": device}
    slots = context + q
    size = layer.kv_heads * slots * (layer.dim + layer.value_dim) * layer.dtype.itemsize
    num_layers = max(1, min(_MAX_LAYERS, -(-_BEYOND_CACHE // size)))
    layers = [
        (
            torch.randn(1, layer.kv_heads, slots, layer.dim, **options),
            torch.randn(1, layer.kv_heads, slots, layer.value_dim, **options),
        )
        for _ in range(num_layers)
    ]
    query = torch.randn(1, q, layer.heads, layer.dim, **options).transpose(1, 2)
    chain = np.tri(q, dtype=bool)[None]
    mask = torch.zeros(1, 1, q, slots, **options)
    mask[0, :, :, context:].masked_fill_(torch.from_numpy(~chain).to(device), torch.finfo(layer.dtype).min)
    starts = torch.tensor([context], dtype=torch.int32, device=device)
    return Inputs(
        query, layers, starts, torch.from_numpy(pack(chain)).to(device), torch.arange(q, device=device)[None], mask
    )


def captured(work: Callable[[], object]) -> Callable[[], None]:
    """The work as a CUDA graph's replay; it runs a few times first, so that everything is compiled and chosen."""
    replay, _ = CudaGraphs(torch.device("cuda", torch.cuda.current_device())).capture(work)
    return replay


def replay_seconds(replay: Callable[[], None]) -> float:
    """Seconds on the device."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def own_attention(layer: LayerShape, inputs: Inputs, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """One layer as Transformers computes it under a mask; step by step where scores are bound."""
    scale = layer.dim**-0.5
    if layer.softcap is not None:
        return reference_attention(
            inputs.query, keys, values, inputs.starts, inputs.bits, scale=scale, softcap=layer.softcap
        )
    module = SimpleNamespace(num_key_value_groups=layer.heads // layer.kv_heads, is_causal=True, training=False)
    attended: torch.Tensor = AttentionInterface()["sdpa"](
        module, inputs.query, keys, values, inputs.mask, scaling=scale, dropout=0.0
    )[0]
    return attended.transpose(1, 2)


def _all_layers(layer: LayerShape, inputs: Inputs, attend: TreeAttention | None) -> Callable[[], None]:
    def work() -> None:
        for keys, values in inputs.layers:
            if attend is None:
                own_attention(layer, inputs, keys, values)
            else:
                attend(
                    inputs.query, keys, values, inputs.starts, inputs.bits,
                    scale=layer.dim**-0.5, depths=inputs.depths, window=layer.window, softcap=layer.softcap,
                )  # fmt: skip

    return work
