"""Recovery by adapters (LoRA, arXiv 2106.09685): far less to train and to keep, and somewhat less to win."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from pia.errors import ShrinkError
from pia.ipad.decoder import Decoder


@contextlib.contextmanager
def adapted(decoder: Decoder, rank: int, seed: int) -> Iterator[Any]:
    """Gives the linear maps of all layers adapters, of which alone the parameters are trained.

    Behind the block they are merged into the weights, if it ended well, and left out if not; either way the model is a
    stock one again. Experts, which are stacked in weights of three dimensions, and their routers get none: they stay as
    the cut left them.

    Args:
        decoder: its model is changed in place.
        rank: of the adapters.
        seed: of their first weights.

    Raises:
        ShrinkError: the package peft is missing.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ShrinkError(
            "recovery by LoRA needs the package peft: pip install 'pia[ipad]', or pip install peft"
        ) from None
    maps = _linear_maps(decoder)
    is_turned = any(isinstance(module, Conv1D) for module in maps.values())
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=list(maps), fan_in_fan_out=is_turned)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(decoder.model, config)
    try:
        yield model.eval()
    except BaseException:
        _take_out(model)
        raise
    model.merge_and_unload()
    _forget(decoder.model)


def _linear_maps(decoder: Decoder) -> dict[str, Any]:
    inside = {id(module) for layer in decoder.structure.layers(decoder.model) for module in layer.modules()}
    return {
        name: module
        for name, module in decoder.model.named_modules()
        if id(module) in inside and isinstance(module, (torch.nn.Linear, Conv1D))
    }


def _take_out(model: Any) -> None:
    stock = model.unload()
    _forget(stock)


def _forget(stock: Any) -> None:
    """Takes away what peft notes on a model, and lets its weights be trained again."""
    if hasattr(stock, "peft_config"):
        del stock.peft_config
    stock.requires_grad_(True)
