"""InternLM 1 and 2: a Llama with biases in the attention, and one with packed queries, keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pia.errors import ConversionError
from pia.models.convert.chat_templates import internlm_template
from pia.models.convert.converter import Shape
from pia.models.convert.llama_like import LlamaLike, llama_config, llama_layer_shapes
from pia.models.convert.sentencepiece_tokenizer import sentencepiece_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast


class _AnyInternLM(LlamaLike):
    """What both generations share: names of fields, and rotary positions that may stretch beyond a length."""

    target = "Llama"
    model_types: ClassVar[tuple[str, ...]]
    default_bias: ClassVar[bool]

    @classmethod
    def recognises(cls, source: Mapping[str, Any]) -> bool:
        return source.get("model_type") in cls.model_types

    @property
    def has_bias(self) -> bool:
        """Whether all four matrices of the attention have biases."""
        return bool(self.source.get("bias", self.default_bias))

    def config(self) -> dict[str, Any]:
        self.must_be("hidden_act", "silu", default="silu")
        return llama_config(
            self.sizes,
            eps=self.source.get("rms_norm_eps", 1e-6),
            rope=self._rope(),
            max_position_embeddings=self.field("max_position_embeddings"),
            attention_bias=self.has_bias,
            tie_word_embeddings=self.has_tied_head,
            bos_token_id=self.source.get("bos_token_id", 1),
            eos_token_id=self.source.get("eos_token_id", 2),
            pad_token_id=self.source.get("pad_token_id", 2),
        )

    def _rope(self) -> dict[str, Any]:
        """Rotary positions; both generations stretch them by the rules that Transformers has under these names."""
        rotary = self.source.get("rotary") or {}  # later code of the first generation: {"base": ..., "type": ...}
        theta = float(rotary.get("base") or self.source.get("rope_theta") or 10_000)
        scaling = self.source.get("rope_scaling") or {}
        kind = scaling.get("type") or scaling.get("rope_type") or rotary.get("type") or "origin"
        if kind in ("origin", "default"):
            return {"rope_theta": theta}
        if kind not in ("dynamic", "linear"):
            raise ConversionError(f"config.json asks for rotary positions of the type {kind!r}, which is not known")
        factor = float(scaling.get("factor") or rotary.get("scaling_factor") or 1.0)
        return {"rope_type": kind, "rope_theta": theta, "factor": factor}


class InternLM(_AnyInternLM):
    """Converts InternLM 7B and 20B."""

    family = "InternLM"
    model_types = ("internlm",)
    default_bias = True

    def layer_shapes(self) -> dict[str, Shape]:
        return llama_layer_shapes(self.sizes, bias=self.has_bias)

    def says_chat(self) -> bool:
        eos = self.read_json("generation_config.json").get("eos_token_id")
        return super().says_chat() or isinstance(eos, list) or "chat" in str(self.source.get("_name_or_path"))

    def tokenizer(self, folder: Path) -> PreTrainedTokenizerFast | None:
        tokenizer = sentencepiece_tokenizer(folder, add_bos=True)
        if tokenizer is not None and self.is_chat and not tokenizer.chat_template:
            code = self.read_remote_code("modeling_internlm.py")
            tokenizer.chat_template = internlm_template(has_eoh=not code or "<eoh>" in code)
        return tokenizer


class InternLM2(_AnyInternLM):
    """Converts InternLM2 and 2.5, of all sizes."""

    family = "InternLM2"
    model_types = ("internlm2",)
    default_bias = False
    outer: ClassVar[dict[str, str]] = {
        "model.tok_embeddings.weight": "model.embed_tokens.weight",
        "model.norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    renamed: ClassVar[dict[str, str]] = {
        "attention.wo.weight": "self_attn.o_proj.weight",
        "attention.wo.bias": "self_attn.o_proj.bias",
        "feed_forward.w1.weight": "mlp.gate_proj.weight",
        "feed_forward.w3.weight": "mlp.up_proj.weight",
        "feed_forward.w2.weight": "mlp.down_proj.weight",
        "attention_norm.weight": "input_layernorm.weight",
        "ffn_norm.weight": "post_attention_layernorm.weight",
    }

    def layer_shapes(self) -> dict[str, Shape]:
        stock = llama_layer_shapes(self.sizes, bias=self.has_bias)
        shapes = {old: stock[new] for old, new in self.renamed.items() if new in stock}
        packed = self.sizes.query + 2 * self.sizes.key
        shapes["attention.wqkv.weight"] = (packed, self.sizes.hidden)
        if self.has_bias:
            shapes["attention.wqkv.bias"] = (packed,)
        return shapes

    def repack(self, part: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        if not part.startswith("attention.wqkv."):
            yield from super().repack(part, tensor)
            return
        # By head of keys: [the queries of its group, its key, its value], `head` rows each.
        sizes, suffix = self.sizes, part.rpartition(".")[2]
        groups = tensor.view(sizes.kv_heads, sizes.heads // sizes.kv_heads + 2, sizes.head, *tensor.shape[1:])
        for name, heads in (("q", groups[:, :-2]), ("k", groups[:, -2]), ("v", groups[:, -1])):
            yield f"self_attn.{name}_proj.{suffix}", heads.reshape(-1, *tensor.shape[1:])

    def tokenizer(self, folder: Path) -> PreTrainedTokenizerFast | None:
        return sentencepiece_tokenizer(folder, add_bos=True)  # a chat model's template stands in its configuration


CONVERTERS = (InternLM, InternLM2)
