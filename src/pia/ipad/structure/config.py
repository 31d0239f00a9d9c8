"""The stock configuration of a model with other sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from pia.errors import ShrinkError
from pia.ipad.shape import Shape
from pia.ipad.structure.axes import Sizes
from pia.ipad.structure.family import Family

_PER_LAYER = ("layer_types",)
"""Fields that hold a value for each layer."""


def read_shape(config: Any, family: Family) -> Shape:
    """Sizes that a configuration names."""
    names = family.names
    hidden = getattr(config, names.hidden)
    return Shape(
        getattr(config, names.layers),
        _num_kv_heads(config, family),
        getattr(config, names.ffn) or 4 * hidden,  # GPT-2's may be none, and means this
        hidden,
        getattr(config, names.experts) if names.experts else 0,
    )


def read_sizes(config: Any, family: Family) -> Sizes:
    """Lengths of the axes that a configuration names."""
    shape, heads = read_shape(config, family), getattr(config, family.names.heads)
    head_dim = getattr(config, family.names.head_dim, None) if family.names.head_dim else None
    return Sizes(
        shape.hidden_size,
        shape.num_kv_heads,
        heads // shape.num_kv_heads,
        head_dim or shape.hidden_size // heads,
        shape.ffn_size,
        shape.num_experts,
    )


def build_config(
    config: Any, family: Family, sizes: Sizes, shape: Shape, layers: Sequence[int], *, is_tied: bool
) -> Any:
    """A configuration of the same class, as its file would say it; per-layer fields follow the `layers` that stay.

    Raises:
        ShrinkError: the class refuses the sizes.
    """
    content = config.to_dict()
    names = family.names
    content |= {
        names.layers: shape.num_layers,
        names.hidden: shape.hidden_size,
        names.heads: shape.num_kv_heads * sizes.queries_per_group,
        names.ffn: shape.ffn_size,
        "tie_word_embeddings": is_tied,
    }
    if names.kv_heads:
        content[names.kv_heads] = shape.num_kv_heads
    if names.head_dim:
        content[names.head_dim] = sizes.head_dim
    if names.experts:
        content[names.experts] = shape.num_experts
    content |= _per_layer(content, layers) | family.more_config(config, shape.hidden_size)
    try:
        built = type(config).from_dict(content)
    except (ValueError, StrictDataclassError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise ShrinkError(f"a {family.model_type} configuration cannot hold {shape}: {reason}") from error
    built.name_or_path = config.name_or_path
    return built


def _num_kv_heads(config: Any, family: Family) -> int:
    kv_heads = getattr(config, family.names.kv_heads) if family.names.kv_heads else None
    return int(kv_heads or getattr(config, family.names.heads))


def _per_layer(content: dict[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        name: [content[name][layer] for layer in layers] for name in _PER_LAYER if content.get(name)
    }
    if content.get("max_window_layers") is not None:  # that many layers from the first see everything
        fields["max_window_layers"] = sum(layer < content["max_window_layers"] for layer in layers)
    return fields
