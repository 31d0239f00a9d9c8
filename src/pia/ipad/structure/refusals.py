"""Weights that cannot be cut: quantised, adapted, elsewhere, of several dtypes, or shared in unusual ways."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from pia.errors import ShrinkError
from pia.ipad.structure.family import Family

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_weights(model: Any) -> None:
    """Refuses weights that are no plain floating-point numbers of one dtype.

    Raises:
        ShrinkError: they are quantised, wrapped by adapters, offloaded, or of several dtypes.
    """
    if hasattr(model, "peft_config") or any(".lora_" in name for name, _ in model.named_parameters()):
        raise ShrinkError("the model has LoRA adapters; merge them first with model = model.merge_and_unload()")
    config = getattr(model, "config", None)
    if getattr(config, "quantization_config", None) is not None or getattr(model, "is_quantized", False):
        raise ShrinkError("the weights are quantised; shrink the original model, and quantise what comes out of it")
    for name, weight in model.named_parameters():
        if weight.dtype not in _DTYPES or type(weight.data) is not torch.Tensor:
            kind = f"{type(weight.data).__name__} of {weight.dtype}"
            raise ShrinkError(
                f"the weight {name} is no plain floating-point tensor but a {kind}, as after quantising; "
                "shrink the original model, and quantise what comes out of it"
            )
        if weight.is_meta:
            raise ShrinkError(f"the weight {name} is offloaded; load the model whole, without device_map='auto'")
    dtypes = {str(weight.dtype) for weight in model.parameters()}
    if len(dtypes) > 1:
        raise ShrinkError(
            f"the weights are of several dtypes, {', '.join(sorted(dtypes))}; convert with model.to(dtype)"
        )


def check_ties(model: Any, family: Family) -> bool:
    """Whether head and embedding are one weight.

    Raises:
        ShrinkError: any other weights are shared.
    """
    names: dict[int, list[str]] = defaultdict(list)
    for name, weight in model.named_parameters(remove_duplicate=False):
        names[weight.data_ptr()].append(name)
    usual = {f"{family.embedding}.weight", f"{family.head}.weight"}
    shared = [group for group in names.values() if len(group) > 1]
    for group in shared:
        if set(group) != usual:
            raise ShrinkError(
                f"the weights {', '.join(group)} are one and the same; only head and embedding can be. "
                "Give each its own copy first"
            )
    return bool(shared)
