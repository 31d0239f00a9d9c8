"""A big model that behaves as the one cut from it would, by hooks alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from pia.ipad.selection import Selection
from pia.ipad.structure import Structure, structure_of
from pia.ipad.structure.axes import FFN, HIDDEN, QUERY


@contextmanager
def masked(model: Any, selection: Selection) -> Iterator[Any]:
    """Under it, the model computes what `cut` makes of it; run it with `use_cache=False`.

    Layers that go pass the stream through, groups and neurons that go give zero, hidden channels that go carry zero,
    and norms take their statistics over the channels that stay. Weights are never touched.

    Args:
        model: of a supported family.
        selection: units of this model.

    Yields:
        The model.

    Raises:
        ShrinkError: the model cannot be cut, or the selection does not fit it.
    """
    structure = structure_of(model)
    structure.check_selection(selection)
    with ExitStack() as hooks:
        for handle in _hooks(model, structure, selection):
            hooks.callback(handle.remove)
        yield model


def _hooks(model: Any, structure: Structure, selection: Selection) -> Iterator[Any]:
    yield from _layer_hooks(model, structure, selection)
    if selection.shape.hidden_size < structure.shape.hidden_size:
        yield from _channel_hooks(model, structure, selection)


def _layer_hooks(model: Any, structure: Structure, selection: Selection) -> Iterator[Any]:
    rows = {layer: row for row, layer in enumerate(selection.layers)}
    for number, layer in enumerate(structure.layers(model)):
        if number not in rows:
            yield layer.register_forward_hook(_pass_stream, with_kwargs=True)
            continue
        kept = structure.kept(selection, rows[number])
        yield _zero_inputs(structure.attention_output(layer), kept.dropped(QUERY))
        yield _zero_inputs(structure.ffn_output(layer), kept.dropped(FFN))


def _channel_hooks(model: Any, structure: Structure, selection: Selection) -> Iterator[Any]:
    kept = structure.kept(selection)
    dropped = kept.dropped(HIDDEN)
    for start in structure.stream_starts(model):
        yield _zero_outputs(start, dropped)
    for layer in structure.layers(model):
        yield _zero_outputs(structure.attention_output(layer), dropped)
        yield _zero_outputs(structure.ffn_output(layer), dropped)
    for norm in structure.norms(model) + structure.branch_norms(model):
        yield norm.register_forward_hook(_over_channels(norm, kept.along(HIDDEN)))


def _pass_stream(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    stream = args[0] if args else kwargs["hidden_states"]
    return (stream, *output[1:]) if isinstance(output, tuple) else stream


def _zero_inputs(module: nn.Module, dropped: torch.Tensor) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
        return (args[0].masked_fill(dropped.to(args[0].device), 0), *args[1:])

    return module.register_forward_pre_hook(hook)


def _zero_outputs(module: nn.Module, dropped: torch.Tensor) -> Any:
    def hook(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output.masked_fill(dropped.to(output.device), 0)

    return module.register_forward_hook(hook)


def _over_channels(norm: nn.Module, channels: torch.Tensor) -> Callable[..., torch.Tensor]:
    """A hook that computes the norm anew from the channels that stay, with the norm's own code."""
    narrow = _narrowed(norm, channels)

    def hook(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        places = channels.to(output.device)
        stream = args[0].index_select(-1, places)
        # called past hooks, such as those that count activations on the norm it was copied from
        kept = type(narrow).forward(narrow.to(stream.dtype), stream)
        return torch.zeros_like(output).index_copy(-1, places, kept)

    return hook


@torch.no_grad()
def _narrowed(norm: nn.Module, channels: torch.Tensor) -> nn.Module:
    narrow = copy.deepcopy(norm)
    for name, weight in narrow.named_parameters():
        setattr(narrow, name, nn.Parameter(weight.index_select(0, channels.to(weight.device)), requires_grad=False))
    if isinstance(narrow, nn.LayerNorm):
        narrow.normalized_shape = (len(channels),)
    return narrow
