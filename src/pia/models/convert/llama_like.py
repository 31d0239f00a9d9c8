"""What the families share: decoder layers that hold the matrices of a Llama under other names, and packed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pia.errors import ConversionError
from pia.models.convert.converter import Converter, Shape

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sizes:
    """The sizes of a decoder."""

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    """Channels of a head."""

    @property
    def query(self) -> int:
        """Channels of all queries."""
        return self.heads * self.head

    @property
    def key(self) -> int:
        """Channels of all keys, and of all values."""
        return self.kv_heads * self.head


class LlamaLike(Converter):
    """A family whose tensors become those of Llama, Qwen2 or Glm by renaming and unpacking."""

    layer_prefix: ClassVar[str] = "model.layers."
    """What stands before the layer's number in original names."""
    outer: ClassVar[dict[str, str]] = {
        "model.embed_tokens.weight": "model.embed_tokens.weight",
        "model.norm.weight": "model.norm.weight",
        "lm_head.weight": "lm_head.weight",
    }
    """Original names outside the layers: embeddings, last norm, head, in this order; and the new ones."""
    renamed: ClassVar[dict[str, str]] = {}
    """Original names within a layer that only change their name; what is not here keeps it."""

    @property
    def sizes(self) -> Sizes:
        """The sizes that the original configuration tells, by the names that most families use."""
        hidden, heads = self.field("hidden_size"), self.field("num_attention_heads")
        return Sizes(
            vocab=self.field("vocab_size"),
            hidden=hidden,
            intermediate=self.field("intermediate_size"),
            layers=self.field("num_hidden_layers"),
            heads=heads,
            kv_heads=self.source.get("num_key_value_heads") or heads,
            head=hidden // heads,
        )

    @abstractmethod
    def layer_shapes(self) -> dict[str, Shape]:
        """Original names within a layer, and their shapes."""

    @property
    def has_tied_head(self) -> bool:
        """Whether the head is the embeddings."""
        return bool(self.source.get("tie_word_embeddings", False))

    def shapes(self) -> dict[str, Shape]:
        sizes = self.sizes
        embeddings, norm, head = self.outer
        shapes: dict[str, Shape] = {embeddings: (sizes.vocab, sizes.hidden), norm: (sizes.hidden,)}
        if not self.has_tied_head:
            shapes[head] = (sizes.vocab, sizes.hidden)
        for layer in range(sizes.layers):
            shapes |= {f"{self.layer_prefix}{layer}.{part}": shape for part, shape in self.layer_shapes().items()}
        return shapes

    def ignores(self, name: str) -> bool:
        return super().ignores(name) or (self.has_tied_head and name == list(self.outer)[2])

    def tensors(self, name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        if name in self.outer:
            yield self.outer[name], self.repack_outer(name, tensor)
            return
        layer, _, part = name.removeprefix(self.layer_prefix).partition(".")
        for new_part, new_tensor in self.repack(part, tensor):
            yield f"model.layers.{layer}.{new_part}", new_tensor

    def repack_outer(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """What becomes of a tensor outside the layers."""
        return tensor

    def repack(self, part: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """What becomes of a tensor of a layer; names are those within the layer."""
        yield self.renamed.get(part, part), tensor

    def must_be(self, name: str, *values: Any, default: Any) -> None:
        """Refuses a configuration that the stock model has no counterpart for.

        Raises:
            ConversionError: the field has another value than one of these.
        """
        value = self.source.get(name, default)
        if value not in values:
            raise ConversionError(
                f"config.json says {name} = {value!r}, which {self.target} cannot express (only {values[0]!r})"
            )


def llama_config(sizes: Sizes, *, eps: float, rope: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A Llama's `config.json`."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        **stock_fields(sizes, eps=eps, rope=rope),
        "head_dim": sizes.head,
        **fields,
    }


def stock_fields(sizes: Sizes, *, eps: float, rope: dict[str, Any]) -> dict[str, Any]:
    """The fields that all stock decoders name alike."""
    return {
        "vocab_size": sizes.vocab,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": eps,
        "rope_parameters": {"rope_type": "default", **rope},
        "use_cache": True,
    }


def llama_layer_shapes(sizes: Sizes, *, bias: bool = False) -> dict[str, Shape]:
    """Names and shapes of a Llama's layer, with biases in the attention if asked for."""
    shapes: dict[str, Shape] = {
        "self_attn.q_proj.weight": (sizes.query, sizes.hidden),
        "self_attn.k_proj.weight": (sizes.key, sizes.hidden),
        "self_attn.v_proj.weight": (sizes.key, sizes.hidden),
        "self_attn.o_proj.weight": (sizes.hidden, sizes.query),
        "mlp.gate_proj.weight": (sizes.intermediate, sizes.hidden),
        "mlp.up_proj.weight": (sizes.intermediate, sizes.hidden),
        "mlp.down_proj.weight": (sizes.hidden, sizes.intermediate),
        "input_layernorm.weight": (sizes.hidden,),
        "post_attention_layernorm.weight": (sizes.hidden,),
    }
    if bias:
        matrices = [name for name in shapes if name.startswith("self_attn.")]
        shapes |= {name.replace("weight", "bias"): shapes[name][:1] for name in matrices}
    return shapes
