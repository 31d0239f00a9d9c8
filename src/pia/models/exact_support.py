"""Whether a model can be decoded exactly, as far as it can be told, and if so by forwards of which sizes."""

from __future__ import annotations

from typing import Any

import torch

from pia.errors import UnsupportedOptionError
from pia.models.attention.plug_in import own_implementation
from pia.models.capability import Capability
from pia.models.profile import exact_error_of, exact_sizes_of

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
_TOLERANCE_16_BIT = 3e-2
_NOISE_FACTOR = 4.0
"""As for the check of trees (`self_check`)."""
_NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def exact_sizes(model: Any, capability: Capability, plain_reason: str | None) -> tuple[int, ...]:
    """Sizes of forwards that exact decoding may use on this model, at the beginning of a text.

    Args:
        model: a causal language model.
        capability: what it can verify.
        plain_reason: why this call must be decoded one token at a time, or `None`.

    Raises:
        UnsupportedOptionError: the model, its weights or its device cannot be shown to round alike at every size.
    """
    reason = plain_reason or _reason(model, capability)
    if reason is not None:
        raise _refusal(reason)
    try:
        sizes, (error, noise) = exact_sizes_of(model, 0), exact_error_of(model)
    except Exception as failure:  # a model may refuse fixed shapes in any way it likes
        what = f"{type(failure).__name__}: {str(failure)[:120]}"
        raise _refusal(f"{type(model).__name__} takes no KV cache of fixed size ({what})") from failure
    if not error <= max(_TOLERANCE.get(model.dtype, _TOLERANCE_16_BIT), _NOISE_FACTOR * noise):  # NaN is wrong as well
        raise _refusal(f"with a KV cache of fixed size its logits are off by {error:.1e} (ordinarily: {noise:.1e})")
    if len(sizes) < 2:
        raise _refusal("on this machine the rows of a forward round differently by its size")
    return sizes


def _refusal(reason: str) -> UnsupportedOptionError:
    return UnsupportedOptionError(
        f"exact=True cannot be had: {reason}; leave exact out (drafted output then equals plain output up to rounding; "
        "in float32 that is the same text)"
    )


def _reason(model: Any, capability: Capability) -> str | None:
    """Why the rounding of this model's rows cannot be relied upon, or `None`."""
    if not capability.can_verify_chains:
        return capability.reason
    devices = {parameter.device.type for parameter in model.parameters()}
    if devices != {"cpu"}:
        return f"the model is on {', '.join(sorted(devices))}, and only CPU kernels have been shown to round alike"
    config = model.config.get_text_config(decoder=True)
    if (implementation := own_implementation(config)) not in ("sdpa", "eager"):
        return f"attention implementation {implementation!r} has not been shown to round alike (use 'sdpa' or 'eager')"
    if any((getattr(config, name, None) or 0) > 1 for name in _NUM_EXPERTS):
        return "with a mixture of experts, how many tokens an expert is given depends on the other tokens"
    if getattr(model, "is_quantized", False) or any(_is_packed(parameter) for parameter in model.parameters()):
        return "kernels for quantised weights choose their rounding by the number of tokens"
    if hasattr(model, "_orig_mod"):
        return "a compiled model has kernels of its own for every size"
    return None


def _is_packed(parameter: torch.Tensor) -> bool:
    """Whether a weight is something else than plain floating-point numbers."""
    return type(parameter) not in (torch.nn.Parameter, torch.Tensor) or not parameter.is_floating_point()
