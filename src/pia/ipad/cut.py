"""Cuts a model physically: the same stock class, a smaller configuration, the weights that stay."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from pia.ipad.kernels import kernels_of
from pia.ipad.selection import Selection
from pia.ipad.structure import Structure, structure_of


@torch.no_grad()
def cut(model: Any, selection: Selection) -> Any:
    """A new model of the units that stay, on the device and of the dtype of the original, which is left as it is.

    Args:
        model: of a supported family.
        selection: units of this model.

    Returns:
        A `PreTrainedModel` of the same class, in evaluation mode.

    Raises:
        ShrinkError: the model cannot be cut, or the selection does not fit it.
    """
    structure = structure_of(model)
    structure.check_selection(selection)
    config = structure.config_for(selection.shape, selection.layers)
    small = _blank(model, config)
    _fill(small, model, structure, selection)
    if structure.map.compensate is not None:
        structure.map.compensate(model, small)
    if getattr(model, "generation_config", None) is not None:
        small.generation_config = copy.deepcopy(model.generation_config)
    return small.eval()


def _blank(model: Any, config: Any) -> Any:
    """A model whose weights are about to be replaced; making it draws random numbers, which nobody else shall miss."""
    with torch.random.fork_rng(devices=[]):
        small = type(model)._from_config(config, dtype=model.dtype, **kernels_of(model))
    return small.to(model.device)


def _fill(small: Any, model: Any, structure: Structure, selection: Selection) -> None:
    """Copies what stays, weight by weight, so that no third model is ever in memory."""
    blanks = small.state_dict()
    for name, stays in what_stays(model.state_dict(), structure, selection):
        blank = blanks.pop(name)
        assert stays.shape == blank.shape, f"{name} is cut to {tuple(stays.shape)}, not {tuple(blank.shape)}"
        blank.copy_(stays)
    assert not blanks, f"nothing is left for {', '.join(blanks)}"


def what_stays(
    tensors: Mapping[str, torch.Tensor], structure: Structure, selection: Selection
) -> Iterator[tuple[str, torch.Tensor]]:
    """What stays of tensors that have the names and sizes of a model's weights, under the names of the cut model.

    Args:
        tensors: all weights, or some of them.
        structure: of the model they belong to.
        selection: units of this model.
    """
    rows = {layer: row for row, layer in enumerate(selection.layers)}
    kept = {row: structure.kept(selection, row) for row in (None, *rows.values())}
    for name, tensor in tensors.items():
        layer, dims = structure.place(name)
        assert dims is not None, f"{name} is on no map"
        if layer is None:
            yield name, kept[None].cut(tensor, dims)
        elif layer in rows:
            yield _renamed(name, structure, rows[layer]), kept[rows[layer]].cut(tensor, dims)


def _renamed(name: str, structure: Structure, row: int) -> str:
    prefix = structure.map.layers + "."
    return f"{prefix}{row}.{name[len(prefix) :].partition('.')[2]}"
