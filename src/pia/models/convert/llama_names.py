"""Families that are a Llama to the letter but for a few names: XVERSE, and Yi as it was first released."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pia.models.convert.converter import Shape
from pia.models.convert.llama_like import LlamaLike, llama_config, llama_layer_shapes
from pia.models.convert.sentencepiece_tokenizer import sentencepiece_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class LlamaByAnotherName(LlamaLike):
    """Converts XVERSE 7B to 65B (not the mixture of experts) and the first Yi."""

    family = "XVERSE and the first Yi"
    target = "Llama"
    renamed: ClassVar[dict[str, str]] = {
        "ln1.weight": "input_layernorm.weight",
        "ln2.weight": "post_attention_layernorm.weight",
    }

    @classmethod
    def recognises(cls, source: Mapping[str, Any]) -> bool:
        return source.get("model_type") in ("xverse", "Yi") and "num_experts" not in source

    def config(self) -> dict[str, Any]:
        self.must_be("hidden_act", "silu", default="silu")
        self.must_be("rope_scaling", None, default=None)
        return llama_config(
            self.sizes,
            eps=self.source.get("rms_norm_eps", 1e-6),
            rope={"rope_theta": float(self.source.get("rope_theta", 10_000))},
            max_position_embeddings=self.field("max_position_embeddings"),
            tie_word_embeddings=self.has_tied_head,
            bos_token_id=self.source.get("bos_token_id", 1),
            eos_token_id=self.source.get("eos_token_id", 2),
            pad_token_id=self.source.get("pad_token_id"),
        )

    def layer_shapes(self) -> dict[str, Shape]:
        shapes = llama_layer_shapes(self.sizes)
        if self.source["model_type"] == "Yi":
            for old, new in self.renamed.items():
                shapes[old] = shapes.pop(new)
        return shapes

    def tokenizer(self, folder: Path) -> PreTrainedTokenizerFast | None:
        return sentencepiece_tokenizer(folder, add_bos=False)


CONVERTERS = (LlamaByAnotherName,)
