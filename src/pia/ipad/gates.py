"""A big model that behaves as the one cut from it would, by hooks alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from pia.ipad.expert_gates import expert_hooks
from pia.ipad.selection import Selection
from pia.ipad.stream import pass_on
from pia.ipad.structure import Structure, structure_of
from pia.ipad.structure.axes import FFN, HIDDEN, QUERY
from pia.ipad.twins import narrow_norm


@contextmanager
def masked(model: Any, selection: Selection) -> Iterator[Any]:
    """Under it, the model computes what `cut` makes of it; run it with `use_cache=False`.

    Layers that go pass the stream through, groups and neurons that go give zero, hidden channels that go carry zero,
    norms take their statistics over the channels that stay, and routers choose among the experts that stay. Weights
    are never touched.

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
            yield layer.register_forward_hook(pass_on, with_kwargs=True)
            continue
        kept = structure.kept(selection, rows[number])
        yield _zero_inputs(structure.attention_output(layer), kept.dropped(QUERY))
        if structure.shape.num_experts:
            yield from expert_hooks(structure.router(layer), structure.experts(layer), kept)
        else:
            yield _zero_inputs(structure.ffn_output(layer), kept.dropped(FFN))


def _channel_hooks(model: Any, structure: Structure, selection: Selection) -> Iterator[Any]:
    kept = structure.kept(selection)
    dropped = kept.dropped(HIDDEN)
    writers = structure.stream_starts(model)
    for layer in structure.layers(model):
        writers += structure.branch_ends(layer)
    for writer in writers:
        yield _zero_outputs(writer, dropped)
    for norm in structure.norms(model) + structure.branch_norms(model):
        yield _over_channels(norm, kept.along(HIDDEN))


def _zero_inputs(module: nn.Module, dropped: torch.Tensor) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
        return (args[0].masked_fill(dropped.to(args[0].device), 0), *args[1:])

    return module.register_forward_pre_hook(hook)


def _zero_outputs(module: nn.Module, dropped: torch.Tensor) -> Any:
    def hook(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output.masked_fill(dropped.to(output.device), 0)

    return module.register_forward_hook(hook)


def _over_channels(norm: nn.Module, channels: torch.Tensor) -> Any:
    def hook(norm: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        places = channels.to(output.device)
        kept = narrow_norm(norm, places).forward(args[0].index_select(-1, places))
        return torch.zeros_like(output).index_copy(-1, places, kept)

    return norm.register_forward_hook(hook)
