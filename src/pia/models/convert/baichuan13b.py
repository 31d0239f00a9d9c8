"""Baichuan-13B and Baichuan2-13B: the 7B models' layout with ALiBi, which no stock model has, so ours takes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pia.models.convert.baichuan import Baichuan7B, has_alibi, is_baichuan
from pia.models.modeling import register_families

if TYPE_CHECKING:
    import torch


class Baichuan13B(Baichuan7B):
    """Converts Baichuan-13B and Baichuan2-13B; the second's head is normalised on the way."""

    family = "Baichuan-13B and Baichuan2-13B"
    target = "PIA's own Baichuan13BForCausalLM"

    @classmethod
    def recognises(cls, source: Mapping[str, Any]) -> bool:
        return is_baichuan(source) and has_alibi(source)

    def config(self) -> dict[str, Any]:
        register_families()  # what fills the configuration up has to know it
        self.must_be("hidden_act", "silu", default="silu")
        sizes = self.sizes
        return {
            "model_type": "baichuan_13b",
            "architectures": ["Baichuan13BForCausalLM"],
            "vocab_size": sizes.vocab,
            "hidden_size": sizes.hidden,
            "intermediate_size": sizes.intermediate,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "max_position_embeddings": self.field("model_max_length", "max_position_embeddings"),
            "rms_norm_eps": self.source.get("rms_norm_eps", 1e-6),
            "bos_token_id": self.source.get("bos_token_id", 1),
            "eos_token_id": self.source.get("eos_token_id", 2),
            "pad_token_id": self.source.get("pad_token_id", 0),
            "tie_word_embeddings": self.has_tied_head,
        }

    def repack(self, part: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        yield part.replace("W_pack", "qkv_proj"), tensor

    def notes(self) -> list[str]:
        return ["Transformers knows this model after pia.register_families(); PIA's own commands call it"]


CONVERTERS = (Baichuan13B,)
