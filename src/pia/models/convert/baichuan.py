"""Baichuan-7B and Baichuan2-7B: a Llama with packed queries, keys and values; the second with a normalised head.

The 13B models have ALiBi in place of rotary positions and are something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pia.models.convert.chat_templates import baichuan_template
from pia.models.convert.converter import Shape
from pia.models.convert.llama_like import LlamaLike, llama_config, llama_layer_shapes
from pia.models.convert.sentencepiece_tokenizer import sentencepiece_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

_ROPE_THETA = 10_000.0  # written into the original code, not into its configuration


def is_baichuan(source: Mapping[str, Any]) -> bool:
    """Whether a configuration is one of Baichuan 1 or 2, of whatever size."""
    architectures = {name.lower() for name in source.get("architectures") or ()}
    return source.get("model_type") == "baichuan" or "baichuanforcausallm" in architectures


def has_alibi(source: Mapping[str, Any]) -> bool:
    """Whether it is a 13B model, which marks positions by ALiBi: these call their context length otherwise."""
    is_13b = source.get("hidden_size") == 5120 and source.get("num_attention_heads") == 40
    return is_13b or "max_position_embeddings" not in source


def has_normalised_head(source: Mapping[str, Any]) -> bool:
    """Whether it is of the second generation, whose head has rows of length 1."""
    return "z_loss_weight" in source or source.get("vocab_size") == 125_696


class Baichuan7B(LlamaLike):
    """Converts Baichuan-7B and Baichuan2-7B."""

    family = "Baichuan-7B and Baichuan2-7B"
    target = "Llama"

    @classmethod
    def recognises(cls, source: Mapping[str, Any]) -> bool:
        return is_baichuan(source) and not has_alibi(source)

    def config(self) -> dict[str, Any]:
        self.must_be("hidden_act", "silu", default="silu")
        return llama_config(
            self.sizes,
            eps=self.source.get("rms_norm_eps", 1e-6),
            rope={"rope_theta": _ROPE_THETA},
            max_position_embeddings=self.field("max_position_embeddings"),
            tie_word_embeddings=self.has_tied_head,
            bos_token_id=self.source.get("bos_token_id", 1),
            eos_token_id=self.source.get("eos_token_id", 2),
            pad_token_id=self.source.get("pad_token_id", 0),
        )

    def layer_shapes(self) -> dict[str, Shape]:
        shapes = llama_layer_shapes(self.sizes)
        for name in "qkv":
            del shapes[f"self_attn.{name}_proj.weight"]
        shapes["self_attn.W_pack.weight"] = (3 * self.sizes.query, self.sizes.hidden)
        return shapes

    def repack(self, part: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        if part == "self_attn.W_pack.weight":
            for name, matrix in zip("qkv", tensor.chunk(3), strict=True):
                yield f"self_attn.{name}_proj.weight", matrix
        else:
            yield part, tensor

    def repack_outer(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        import torch

        if name == "lm_head.weight" and has_normalised_head(self.source):
            # In the dtype of the weights, as the original does at its first forward: the same bits.
            return torch.nn.functional.normalize(tensor)
        return tensor

    def says_chat(self) -> bool:
        return "user_token_id" in self.read_json("generation_config.json")

    def tokenizer(self, folder: Path) -> PreTrainedTokenizerFast | None:
        roles = self.read_json("generation_config.json")
        ids = (roles.get("user_token_id", 195), roles.get("assistant_token_id", 196)) if self.is_chat else ()
        tokenizer = sentencepiece_tokenizer(folder, add_bos=True, special_ids=ids)
        if tokenizer is not None and ids:
            tokenizer.chat_template = baichuan_template(*tokenizer.convert_ids_to_tokens(list(ids)))
        return tokenizer


CONVERTERS = (Baichuan7B,)
