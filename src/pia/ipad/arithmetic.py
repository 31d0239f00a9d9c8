"""Which arithmetic a device is fast in."""

from __future__ import annotations

import torch

from pia.errors import ShrinkError


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices in bfloat16 faster than in float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(probe() for probe in probes if probe is not None)
    return False


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The type of matrix products, None for that of the weights.

    Args:
        precision: "auto" (bfloat16 where it is fast), "float32" or "bfloat16".
        device: where they happen.

    Raises:
        ShrinkError: bfloat16 is asked for where the device has no instructions for it.
    """
    is_fast = has_fast_bfloat16(device)
    if precision == "bfloat16" and not is_fast:
        raise ShrinkError(f"{device.type} has no fast bfloat16 here: leave precision at auto, or set it to float32")
    return torch.bfloat16 if is_fast and precision != "float32" else None
