"""Qwen, the first generation: a Qwen2 with packed queries, keys and values and with names after GPT-2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pia.errors import ConversionError
from pia.models.convert.chat_templates import QWEN_TEMPLATE
from pia.models.convert.converter import Shape
from pia.models.convert.llama_like import LlamaLike, Sizes, stock_fields
from pia.models.convert.tiktoken_tokenizer import qwen_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast


class Qwen(LlamaLike):
    """Converts Qwen 1.8B to 72B, base and chat."""

    family = "Qwen (the first generation)"
    target = "Qwen2"
    layer_prefix = "transformer.h."
    outer: ClassVar[dict[str, str]] = {
        "transformer.wte.weight": "model.embed_tokens.weight",
        "transformer.ln_f.weight": "model.norm.weight",
        "lm_head.weight": "lm_head.weight",
    }
    renamed: ClassVar[dict[str, str]] = {
        "attn.c_proj.weight": "self_attn.o_proj.weight",
        "mlp.w2.weight": "mlp.gate_proj.weight",  # the original multiplies w1(x) by silu(w2(x))
        "mlp.w1.weight": "mlp.up_proj.weight",
        "mlp.c_proj.weight": "mlp.down_proj.weight",
        "ln_1.weight": "input_layernorm.weight",
        "ln_2.weight": "post_attention_layernorm.weight",
    }

    @classmethod
    def recognises(cls, source: Mapping[str, Any]) -> bool:
        return source.get("model_type") == "qwen" and "visual" not in source and "audio" not in source

    def ignores(self, name: str) -> bool:
        return super().ignores(name) or name.endswith((".attn.bias", ".attn.masked_bias", ".attn.logn_tensor"))

    @property
    def sizes(self) -> Sizes:
        heads = self.field("num_attention_heads", "n_head")
        return Sizes(
            vocab=self.field("vocab_size", "padded_vocab_size"),
            hidden=self.field("hidden_size", "n_embd"),
            intermediate=self.field("intermediate_size", "ffn_hidden_size") // 2,  # both matrices counted as one
            layers=self.field("num_hidden_layers", "n_layer"),
            heads=heads,
            kv_heads=heads,
            head=self.field("kv_channels"),
        )

    @property
    def _length(self) -> int:
        """Positions up to which Qwen2 does what the original does."""
        trained = int(self.field("seq_length"))
        if self._changes_beyond_length:
            return trained
        return max(trained, int(self.source.get("max_position_embeddings") or self.source.get("n_positions") or 0))

    @property
    def _changes_beyond_length(self) -> bool:
        return bool(self.source.get("use_dynamic_ntk", True) or self.source.get("use_logn_attn", True))

    def config(self) -> dict[str, Any]:
        self.must_be("rotary_pct", 1.0, default=1.0)
        self.must_be("no_bias", True, default=True)
        self.must_be("scale_attn_weights", True, default=True)
        self.must_be("apply_residual_connection_post_layernorm", False, default=False)
        sizes = self.sizes
        if sizes.query != sizes.hidden:
            raise ConversionError(f"config.json says {sizes.heads} heads of {sizes.head}: that is not {sizes.hidden}")
        return {
            "model_type": "qwen2",
            "architectures": ["Qwen2ForCausalLM"],
            **stock_fields(
                sizes,
                eps=self.field("layer_norm_epsilon"),
                rope={"rope_theta": float(self.source.get("rotary_emb_base", 10_000))},
            ),
            "max_position_embeddings": self._length,
            "tie_word_embeddings": self.has_tied_head,
            "use_sliding_window": False,
            "bos_token_id": self.source.get("bos_token_id"),
            "eos_token_id": self.source.get("eos_token_id"),
        }

    def notes(self) -> list[str]:
        if not self._changes_beyond_length:
            return []
        return [
            f"the context is {self._length:,} tokens: beyond them the original stretches its positions and scales its "
            "queries (use_dynamic_ntk, use_logn_attn), which Qwen2 does not"
        ]

    def layer_shapes(self) -> dict[str, Shape]:
        sizes = self.sizes
        return {
            "attn.c_attn.weight": (3 * sizes.query, sizes.hidden),
            "attn.c_attn.bias": (3 * sizes.query,),
            "attn.c_proj.weight": (sizes.hidden, sizes.query),
            "mlp.w1.weight": (sizes.intermediate, sizes.hidden),
            "mlp.w2.weight": (sizes.intermediate, sizes.hidden),
            "mlp.c_proj.weight": (sizes.hidden, sizes.intermediate),
            "ln_1.weight": (sizes.hidden,),
            "ln_2.weight": (sizes.hidden,),
        }

    def repack(self, part: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        if not part.startswith("attn.c_attn."):
            yield from super().repack(part, tensor)
            return
        for name, third in zip("qkv", tensor.chunk(3), strict=True):
            yield f"self_attn.{name}_proj.{part.rpartition('.')[2]}", third

    def says_chat(self) -> bool:
        return self.read_json("generation_config.json").get("chat_format") == "chatml"

    def tokenizer(self, folder: Path) -> PreTrainedTokenizerFast | None:
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerFast | None:
        tokenizer = qwen_tokenizer(self.folder)
        if tokenizer is not None and self.is_chat:
            tokenizer.chat_template = QWEN_TEMPLATE
        return tokenizer

    def generation_config(self) -> dict[str, Any]:
        config = super().generation_config()
        tokenizer = self._tokenizer
        if tokenizer is not None:
            end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
            config |= {"bos_token_id": end, "pad_token_id": end, "eos_token_id": end}
            if self.is_chat:  # the original's chat stops at both ends of a message as well
                ends = ["<|im_end|>", "<|im_start|>"]
                config["eos_token_id"] = [end, *(tokenizer.convert_tokens_to_ids(token) for token in ends)]
        return config


CONVERTERS = (Qwen,)
