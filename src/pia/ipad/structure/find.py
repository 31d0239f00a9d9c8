"""Finds the map of a model, and makes sure that it says everything about it."""

from __future__ import annotations

from typing import Any

from pia.errors import ShrinkError
from pia.ipad.structure import fused, gemma, gpt2, llama, moe, opt
from pia.ipad.structure.config import read_shape, read_sizes
from pia.ipad.structure.family import Family
from pia.ipad.structure.refusals import check_ties, check_weights
from pia.ipad.structure.structure import Structure

_FAMILIES: dict[str, Family] = {
    family.model_type: family
    for kind in (llama.FAMILIES, gemma.FAMILIES, fused.FAMILIES, opt.FAMILIES, gpt2.FAMILIES, moe.FAMILIES)
    for family in kind
}


def supported_families() -> tuple[str, ...]:
    """Families that can be cut, as configurations name them."""
    return tuple(_FAMILIES)


def structure_of(model: Any) -> Structure:
    """Where the prunable parts of a model are, from the names of its modules and its configuration.

    Every weight is compared with the map, so that a model with anything beyond it is refused rather than damaged.

    Raises:
        ShrinkError: the family is unknown, the weights are quantised, adapted or shared in a way that cannot be kept,
            or the layers differ in shape.
    """
    check_weights(model)
    family = _family_of(model)
    if reason := family.refuse(model.config):
        raise ShrinkError(f"this {family.model_type} model cannot be shrunk: {reason}")
    is_tied = check_ties(model, family)
    shape, sizes = read_shape(model.config, family), read_sizes(model.config, family)
    structure = Structure(family, model.config, shape, sizes, is_tied)
    _check_complete(model, structure)
    return structure


def _family_of(model: Any) -> Family:
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    family = _FAMILIES.get(model_type) if model_type else None
    if family is None:
        raise ShrinkError(
            f"models of the family {model_type!r} cannot be shrunk yet; supported are {', '.join(_FAMILIES)}. "
            "A family is a table of a few lines in pia/ipad/structure"
        )
    classes = [kind.__name__ for kind in type(model).__mro__]
    if family.model_class not in classes:
        raise ShrinkError(
            f"{type(model).__name__} is no model with a language model head; "
            f"load the checkpoint as {family.model_class}, as AutoModelForCausalLM does"
        )
    return family if family.for_config is None else family.for_config(model.config, family)


def _check_complete(model: Any, structure: Structure) -> None:
    num_layers = len(structure.layers(model))
    if num_layers != structure.shape.num_layers:
        raise ShrinkError(
            f"the model has {num_layers} layers, but its configuration says {structure.shape.num_layers}; "
            "save and load it again"
        )
    for name, weight in model.state_dict().items():
        _, dims = structure.place(name)
        if dims is None:
            raise ShrinkError(
                f"the weight {name} is no part of a stock {structure.family} model, so PIA cannot tell how to cut it; "
                "merge or remove what was added to the model"
            )
        expected = [structure.sizes.length(dim) for dim in dims]
        fits = len(dims) == weight.ndim and all(e in (None, n) for e, n in zip(expected, weight.shape, strict=True))
        if not fits:
            sizes = " x ".join(str(length or "any") for length in expected)
            raise ShrinkError(
                f"the weight {name} is {' x '.join(map(str, weight.shape))}, where the configuration asks for {sizes}; "
                "only models whose layers all have the same shape can be shrunk"
            )
