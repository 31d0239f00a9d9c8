"""Whether a model's own way of preparing its inputs feeds its forward anything else than PIA does.

PIA calls `model.forward` directly, so an override of `prepare_inputs_for_generation` is skipped. Many overrides only
add what the forward does not read (Gemma 3, CTRL); others feed a virtual prompt or run the model (prompt tuning). The
source of an override proves nothing about remote code, so we call it, and Transformers' own beside it, and compare.

What depends on the length of the text cannot be seen here: that is declared by the type of rotary embedding.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import GenerationMixin
from transformers.cache_utils import DynamicCache

_TEXT_LENGTH = 5
_PAST_LENGTHS = (0, 4, 2)
"""A prefill, a decode step, and a prefill behind text that is cached already."""
_PEFT_HOOKS = {
    "_alora_offsets_pre_forward_hook": "PEFT counts an activated LoRA's tokens from the end of each forward",
    "_adapter_names_pre_forward_hook": "PEFT gives every row an adapter of its own (adapter_names)",
}


def skipped_inputs(model: Any) -> str | None:
    """Why a direct call of the model's forward would not feed it what `generate` feeds it, or `None` if it would."""
    own = _own_method(model)
    if own is None:
        return None
    for past_length in _PAST_LENGTHS:
        for has_mask in (False, True):
            difference = _difference(model, own, past_length, has_mask)
            if difference is not None:
                return f"it prepares its inputs in a way of its own, which calling its forward would skip: {difference}"
    return None


def passing_reason(model: Any) -> str | None:
    """Why the model is to be decoded plainly as long as a wrapper has it changed, or `None`.

    PEFT changes the model it wraps for the time of one `generate`, so none of this may be remembered of the model.
    """
    if "prepare_inputs_for_generation" in vars(model):
        reason = skipped_inputs(model)
        if reason is not None:
            return reason
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            name = getattr(getattr(hook, "func", hook), "__name__", "")
            if name in _PEFT_HOOKS:
                return _PEFT_HOOKS[name]
    return None


def _own_method(model: Any) -> Any:
    """The model's own bound `prepare_inputs_for_generation`, or `None` where it is Transformers'."""
    method = model.prepare_inputs_for_generation
    is_stock = getattr(method, "__func__", None) is GenerationMixin.prepare_inputs_for_generation
    return None if is_stock and method.__self__ is model else method


@dataclass
class _Offer:
    """What a method is given, made anew for each call, so that neither sees what the other did to it."""

    input_ids: torch.Tensor
    cache: DynamicCache
    inputs: dict[str, Any]
    past_length: int

    @classmethod
    def of(cls, model: Any, past_length: int, has_mask: bool) -> _Offer:
        ids = torch.arange(1, _TEXT_LENGTH + 1)[None] % model.get_input_embeddings().weight.shape[0]
        cache = filled_cache(model, past_length)
        inputs = {
            "attention_mask": torch.ones_like(ids) if has_mask else None,
            "position_ids": torch.arange(_TEXT_LENGTH)[None],
            "past_key_values": cache,
            "use_cache": True,
            "next_sequence_length": _TEXT_LENGTH - past_length,
            "is_first_iteration": past_length != _TEXT_LENGTH - 1,
        }
        return cls(ids, cache, inputs, past_length)

    def was_touched(self, before: _Offer) -> bool:
        """Whether the tensors or the cache are no longer as they were made."""
        tensors = [(self.input_ids, before.input_ids)]
        tensors += [(self.inputs[name], before.inputs[name]) for name in ("attention_mask", "position_ids")]
        is_filled = self.cache.get_seq_length() != self.past_length
        return is_filled or not all(_are_equal(mine, theirs) for mine, theirs in tensors)


def _difference(model: Any, own: Any, past_length: int, has_mask: bool) -> str | None:
    """What the model's own method does otherwise than Transformers' in one situation, or `None`."""
    offers = [_Offer.of(model, past_length, has_mask) for _ in range(3)]
    notes = _notes(model)
    try:
        with torch.no_grad():
            fed = own(offers[0].input_ids, **offers[0].inputs)
            stock = GenerationMixin.prepare_inputs_for_generation(model, offers[1].input_ids, **offers[1].inputs)
    except Exception as error:  # it may refuse in any way it likes; that is an answer too
        return f"asked for them, it raises {type(error).__name__}: {str(error)[:120]}"
    if offers[0].was_touched(offers[2]):
        return "it changes the cache or the text while it prepares"
    if _notes(model) != notes:
        return "it changes the model while it prepares"
    if fed.get("past_key_values") is not offers[0].cache:
        return "it feeds another cache"
    return _first_difference(model, fed, stock, past_length)


def _first_difference(model: Any, fed: dict[str, Any], stock: dict[str, Any], past_length: int) -> str | None:
    parameters = inspect.signature(model.forward).parameters
    for name in sorted({*fed, *stock} - {"past_key_values", "logits_to_keep"}):
        mine, theirs = fed.get(name, _default(parameters, name)), stock.get(name, _default(parameters, name))
        is_same = _see_the_same(mine, theirs, past_length) if name == "attention_mask" else _are_equal(mine, theirs)
        if not is_same:
            return f"{name} differs {'in prefill' if past_length == 0 else f'behind {past_length} tokens'}"
    return None


def _default(parameters: Any, name: str) -> Any:
    """What the forward takes an input for that it is not given."""
    parameter = parameters.get(name)
    return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default


def is_default(model: Any, name: str, value: Any) -> bool:
    """Whether an input is what the model's forward takes it for anyway."""
    return _are_equal(value, _default(inspect.signature(model.forward).parameters, name))


def _are_equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and torch.equal(a.cpu(), b.cpu())
    is_plain = all(value is None or isinstance(value, (bool, int, float, str)) for value in (a, b))
    return is_plain and type(a) is type(b) and a == b


def _see_the_same(a: Any, b: Any, past_length: int) -> bool:
    """Whether two masks let the fed tokens see the same slots; a dictionary has one mask for each kind of layer."""
    masks = [*(a.values() if isinstance(a, dict) else [a]), *(b.values() if isinstance(b, dict) else [b])]
    seen = [_visible(mask, past_length) for mask in masks]
    return all(rows is not None and rows == seen[0] for rows in seen)


def _visible(mask: Any, past_length: int) -> list[list[bool]] | None:
    """What a mask shows of the slots, `[q][kv]`; `None` if it cannot be read."""
    causal = torch.ones(_TEXT_LENGTH, _TEXT_LENGTH, dtype=torch.bool).tril()[past_length:]
    if mask is None:
        return cast("list[list[bool]]", causal.tolist())
    if not isinstance(mask, torch.Tensor) or mask.shape[-1] != _TEXT_LENGTH:
        return None
    mask = mask.cpu()
    if mask.dim() == 2:
        visible = causal & (mask[:1] != 0)
    elif mask.dim() == 4 and mask.shape[-2] == causal.shape[0]:
        visible = mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] == 0
    else:
        return None
    return cast("list[list[bool]]", visible.tolist())


def filled_cache(model: Any, length: int) -> DynamicCache:
    """A cache whose every layer holds `length` slots of zeros. Only its length is ever looked at."""
    cache = DynamicCache()
    num_layers = int(getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", 1) or 1)
    for layer in range(num_layers if length else 0):
        cache.update(torch.zeros(1, 1, length, 1), torch.zeros(1, 1, length, 1), layer)
    return cache


def _notes(model: Any) -> list[tuple[str, int]]:
    """Which objects the model's modules hold as plain attributes, by identity."""
    return [
        (name, id(value))
        for module in model.modules()
        for name, value in vars(module).items()
        if not name.startswith("_") or isinstance(value, (torch.Tensor, int))
    ]
