"""GLM as it was before ChatGLM (GLM-10b, GLM-2b, the Chinese ones): no stock model has its positions, so ours takes it.

Names and layout are those of the original code: queries, keys and values packed in this order, embeddings that are also
the head. Its `attention_scale` divides the scores and multiplies them again, against overflow in float16, so nothing
becomes of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pia.errors import ConversionError
from pia.models.convert.checkpoint import Checkpoint
from pia.models.convert.converter import Converter, Shape
from pia.models.convert.glm10b_tokenizer import END, MASKS, START, glm_tokenizer
from pia.models.modeling import register_families

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

_OUTER = {
    "word_embeddings.weight": "embed_tokens.weight",
    "transformer.position_embeddings.weight": "embed_positions.weight",
    "transformer.block_position_embeddings.weight": "embed_block_positions.weight",
    "transformer.final_layernorm.weight": "norm.weight",
    "transformer.final_layernorm.bias": "norm.bias",
}
_INNER = {
    "attention.query_key_value": "self_attn.qkv_proj",
    "attention.dense": "self_attn.o_proj",
    "mlp.dense_h_to_4h": "mlp.up_proj",
    "mlp.dense_4h_to_h": "mlp.down_proj",
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
}
_LAYERS = "transformer.layers."


class Glm10B(Converter):
    """Converts GLM-10b and its kin."""

    family = "GLM (GLM-10b and its kin)"
    target = "PIA's own Glm10BForCausalLM"

    @classmethod
    def recognises(cls, source: Mapping[str, Any]) -> bool:
        return source.get("model_type") == "glm" and {"num_layers", "max_sequence_length"} <= source.keys()

    def config(self) -> dict[str, Any]:
        register_families()  # what fills the configuration up has to know it
        if not self.source.get("block_position_encoding", True):
            raise ConversionError("config.json says block_position_encoding = false, which no published GLM has")
        ids = self._special_ids
        return {
            "model_type": "glm_10b",
            "architectures": ["Glm10BForCausalLM"],
            "vocab_size": self.field("vocab_size"),
            "hidden_size": self.field("hidden_size"),
            "num_hidden_layers": self.field("num_layers"),
            "num_attention_heads": self.field("num_attention_heads"),
            "max_sequence_length": self.field("max_sequence_length"),
            "sop_token_id": ids[START],
            "mask_token_ids": [ids[token] for token in MASKS if token in ids],
            "eos_token_id": ids[END],
            "pad_token_id": self._tokenizer.pad_token_id,
            "bos_token_id": None,
            "tie_word_embeddings": True,
        }

    def shapes(self) -> dict[str, Shape]:
        vocab, hidden, positions = self.field("vocab_size"), self.field("hidden_size"), self._num_positions
        outer = ((vocab, hidden), (positions, hidden), (positions, hidden), (hidden,), (hidden,))
        shapes: dict[str, Shape] = dict(zip(_OUTER, outer, strict=True))
        for layer in range(self.field("num_layers")):
            shapes |= {f"{_LAYERS}{layer}.{name}": shape for name, shape in _layer_shapes(hidden).items()}
        return {self._prefix + name: shape for name, shape in shapes.items()}

    def tensors(self, name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        name = name.removeprefix(self._prefix)
        if name in _OUTER:
            yield f"model.{_OUTER[name]}", tensor
            return
        layer, _, part = name.removeprefix(_LAYERS).partition(".")
        module, _, kind = part.rpartition(".")
        yield f"model.layers.{layer}.{_INNER[module]}.{kind}", tensor

    def ignores(self, name: str) -> bool:
        return super().ignores(name) or name.endswith("lm_head.weight")  # the embeddings once more

    def tokenizer(self, folder: Path) -> PreTrainedTokenizerFast | None:
        return self._tokenizer

    def generation_config(self) -> dict[str, Any]:
        ids = {"eos_token_id": self._special_ids[END], "pad_token_id": self._tokenizer.pad_token_id}
        return {**super().generation_config(), **ids}

    def notes(self) -> list[str]:
        return [
            "Transformers knows this model after pia.register_families(); PIA's own commands call it",
            "a prompt says where to write: '[gMASK]' at its end, or '[MASK]' or '[sMASK]' within",
        ]

    @property
    def _num_positions(self) -> int:
        return int(self.field("max_sequence_length")) + 1

    @cached_property
    def _prefix(self) -> str:
        """What stands before all names: nothing, or `glm.` where the whole generation model was saved."""
        first, _ = next(Checkpoint.find(self.folder).tensors())
        return "glm." if first.startswith("glm.") else ""

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerFast:
        tokenizer = glm_tokenizer(self.folder)
        if tokenizer is None:
            raise ConversionError(
                f"{self.folder} has no tokenizer that can be converted (vocab.json and merges.txt, or "
                "cog-pretrain.model), and only the tokenizer tells the ids of [gMASK] and <|startofpiece|>; "
                "put its files there"
            )
        return tokenizer

    @cached_property
    def _special_ids(self) -> dict[str, int]:
        """Ids of the tokens that give a text its form.

        Raises:
            ConversionError: the tokenizer lacks one that there must be.
        """
        known = self._tokenizer.get_vocab()
        missing = [token for token in (START, END) if token not in known]
        if missing or not known.keys() & set(MASKS):
            raise ConversionError(f"the tokenizer of {self.folder} has no token {(missing or MASKS)[0]}")
        return {token: known[token] for token in (START, END, *MASKS) if token in known}


def _layer_shapes(hidden: int) -> dict[str, Shape]:
    """Names and shapes within a layer."""
    matrices = {
        "attention.query_key_value": (3 * hidden, hidden),
        "attention.dense": (hidden, hidden),
        "mlp.dense_h_to_4h": (4 * hidden, hidden),
        "mlp.dense_4h_to_h": (hidden, 4 * hidden),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    weights: dict[str, Shape] = {f"{name}.weight": shape for name, shape in matrices.items()}
    return weights | {f"{name}.bias": shape[:1] for name, shape in matrices.items()}


CONVERTERS = (Glm10B,)
