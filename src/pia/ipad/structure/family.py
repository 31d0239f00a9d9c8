"""What the map of a model family says; a new family is one of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pia.ipad.structure.axes import Dims

Table = Mapping[str, Mapping[str, Dims]]
"""Dimensions of each weight, by module path and by parameter; weights that a model lacks may be named."""


def same_logits(config: Any, logits: Any) -> Any:
    """What the head gives is what the model gives."""
    return logits


@dataclass(frozen=True)
class ConfigNames:
    """How a configuration calls the sizes."""

    layers: str = "num_hidden_layers"
    hidden: str = "hidden_size"
    heads: str = "num_attention_heads"
    kv_heads: str | None = "num_key_value_heads"
    """None where every query head has its own keys."""
    ffn: str = "intermediate_size"
    head_dim: str | None = "head_dim"
    """None where a head is always hidden / heads wide."""
    experts: str | None = None


@dataclass(frozen=True)
class Family:
    """A family of models: where its parts are, what its weights count, and what pruning must mind.

    Paths of weights in `inside` and of the parts of a layer start at the layer, all others at the model.
    """

    model_type: str
    """As configurations name it."""
    model_class: str
    """The class with a language model head."""
    inside: Table
    """Weights of one layer."""
    outside: Table
    """All other weights."""
    attention_output: str
    ffn_output: str
    layer_norms: tuple[str, ...]
    """Norms that read the stream (or make it, where they come after the sum), in a layer."""
    branch_norms: tuple[str, ...] = ()
    """Norms at the end of a branch, before it joins the stream."""
    backbone: str = "model"
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    embedding: str = "model.embed_tokens"
    stream_starts: tuple[str, ...] = ("model.embed_tokens",)
    """Modules outside of the layers that write to the stream."""
    head: str = "lm_head"
    names: ConfigNames = field(default_factory=ConfigNames)
    logits: Callable[[Any, Any], Any] = same_logits
    """`(config, head output) -> logits`: soft caps and scales."""
    compensate: Callable[[Any, Any], None] | None = None
    """`(model, cut model)`: undoes, in the weights of the cut model, what its code derives from its hidden size."""
    vllm_ties_hidden_to_heads: bool = False
    """Whether vLLM takes hidden / heads for the size of a head even where the configuration names another."""
    refuse: Callable[[Any], str | None] = lambda config: None
    """Why a model of this configuration cannot be cut, if so."""
    for_config: Callable[[Any, Family], Family] | None = None
    """The map that a configuration asks for, where options move parts."""
    refuse_hidden: Callable[[Any, int], str | None] = lambda config, hidden: None
    """`(config, new hidden size)`: why this family cannot be that wide, if so."""
    more_config: Callable[[Any, int], dict[str, Any]] = lambda config, hidden: {}
    """`(config, new hidden size)`: fields that follow from the sizes."""
