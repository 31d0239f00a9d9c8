"""The roofline of decoding: a step cannot take less time than reading its bytes does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pia.bench.bandwidth import Bandwidth
from pia.bench.step_bytes import KvBytes, WeightBytes


def roofline(
    weights: WeightBytes,
    kv: KvBytes | None,
    context: float,
    memory: Bandwidth,
    cached: Bandwidth | None = None,
) -> dict[str, Any]:
    """The floor of a plain step: bytes read over bandwidth measured.

    Args:
        weights: of the model.
        kv: its cache; `None` where unknown, and then left out, with a note.
        context: mean length of the text during the measured steps.
        memory: rate of passes through memory.
        cached: rate of passes over as many bytes as the step reads, where caches may hold them. The faster of the two
            is the roof, so that the floor is one indeed.
    """
    kv_read = kv.at(context) if kv else 0
    num_bytes = weights.read + kv_read
    roof = max((memory, cached or memory), key=lambda bandwidth: bandwidth.bytes_per_s)
    notes = [*weights.notes, *([] if kv else ["the bytes of the KV cache are unknown and left out"])]
    if roof is cached:
        notes.append("so few bytes stay in the caches: the roof is the rate at which the caches give as many")
    return {
        "weight_bytes": weights.read,
        "kv_bytes": kv_read if kv else None,
        "context": round(context, 1),
        "bytes": num_bytes,
        "memory_gb_s": round(memory.bytes_per_s / 1e9, 2),
        "bandwidth_gb_s": round(roof.bytes_per_s / 1e9, 2),
        "operation": roof.operation,
        "floor_ms": round(1e3 * num_bytes / roof.bytes_per_s, 4),
        "notes": notes,
    }


def reached(floor_ms: float, times_ms: Mapping[str, float | None]) -> dict[str, float | None]:
    """The share of the roofline that each time reaches: 1 is as fast as the bytes can be read."""
    return {name: round(floor_ms / time, 4) if time else None for name, time in times_ms.items()}
