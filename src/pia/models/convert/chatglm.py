"""ChatGLM2 and ChatGLM3: a Glm with packed queries, keys and values.

Both turn the first half of a head's channels in neighbouring pairs, so that no channel has to move.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pia.errors import ConversionError
from pia.models.convert.chat_templates import CHATGLM2_TEMPLATE, CHATGLM3_TEMPLATE
from pia.models.convert.converter import Shape
from pia.models.convert.llama_like import LlamaLike, Sizes, stock_fields
from pia.models.convert.sentencepiece_tokenizer import sentencepiece_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

_CODE = "modeling_chatglm.py"
_SPECIAL_TOKENS = ("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>")
"""Behind the pieces, in this order. The original says "sop" and "eop", but finds them in no text: as stock special
tokens they would be found within words ("philosophy"), so they get the brackets that GLM-4 gave them."""
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_MAX_VOCAB = 100_000


class ChatGLM(LlamaLike):
    """Converts ChatGLM2-6B and ChatGLM3-6B, the versions for long texts included."""

    family = "ChatGLM2 and ChatGLM3"
    target = "Glm"
    layer_prefix = "transformer.encoder.layers."
    outer: ClassVar[dict[str, str]] = {
        "transformer.embedding.word_embeddings.weight": "model.embed_tokens.weight",
        "transformer.encoder.final_layernorm.weight": "model.norm.weight",
        "transformer.output_layer.weight": "lm_head.weight",
    }
    renamed: ClassVar[dict[str, str]] = {
        "self_attention.dense.weight": "self_attn.o_proj.weight",
        "mlp.dense_h_to_4h.weight": "mlp.gate_up_proj.weight",
        "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight",
        "input_layernorm.weight": "input_layernorm.weight",
        "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    }

    @classmethod
    def recognises(cls, source: Mapping[str, Any]) -> bool:
        # ChatGLM-6B, the first, and GLM-4 go by the same model type.
        is_second = "padded_vocab_size" in source and "multi_query_group_num" in source
        return source.get("model_type") == "chatglm" and is_second and source["padded_vocab_size"] < _MAX_VOCAB

    @property
    def sizes(self) -> Sizes:
        return Sizes(
            vocab=self.field("padded_vocab_size"),
            hidden=self.field("hidden_size"),
            intermediate=self.field("ffn_hidden_size"),
            layers=self.field("num_layers"),
            heads=self.field("num_attention_heads"),
            kv_heads=self.field("multi_query_group_num"),
            head=self.field("kv_channels"),
        )

    @property
    def _has_bias(self) -> bool:
        return bool(self.source.get("add_qkv_bias", False))

    def config(self) -> dict[str, Any]:
        for name, value in {
            "multi_query_attention": True,
            "rmsnorm": True,
            "post_layer_norm": True,
            "add_bias_linear": False,
            "apply_residual_connection_post_layernorm": False,
            "interleaved_qkv": False,
        }.items():
            self.must_be(name, value, default=value)
        self.must_be("pre_seq_len", None, 0, default=None)
        return {
            "model_type": "glm",
            "architectures": ["GlmForCausalLM"],
            **stock_fields(self.sizes, eps=self.field("layernorm_epsilon"), rope=self._rope()),
            "head_dim": self.sizes.head,
            "attention_bias": self._has_bias,
            "max_position_embeddings": self.field("seq_length"),
            "tie_word_embeddings": self.has_tied_head,
            "bos_token_id": 1,
            "eos_token_id": self.source.get("eos_token_id") or 2,
            "pad_token_id": self.source.get("pad_token_id") or 0,
        }

    def _rope(self) -> dict[str, Any]:
        """ChatGLM3 multiplies the base by `rope_ratio` where ChatGLM2 divides the positions by it."""
        rope = {"rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
        ratio = float(self.source.get("rope_ratio") or 1.0)
        if ratio == 1.0:
            return rope
        code = "".join(self.read_remote_code(_CODE).split())
        if "base*self.rope_ratio" in code:
            return {**rope, "rope_theta": 10_000.0 * ratio}
        if "/self.rope_ratio" in code:
            return {**rope, "rope_type": "linear", "factor": ratio}
        raise ConversionError(
            f"config.json says rope_ratio = {ratio:g}, whose meaning differs between ChatGLM2 and ChatGLM3: put the "
            f"original {_CODE} beside it, which tells (it is read, not run)"
        )

    def layer_shapes(self) -> dict[str, Shape]:
        sizes = self.sizes
        packed = sizes.query + 2 * sizes.key
        shapes: dict[str, Shape] = {
            "self_attention.query_key_value.weight": (packed, sizes.hidden),
            "self_attention.dense.weight": (sizes.hidden, sizes.query),
            "mlp.dense_h_to_4h.weight": (2 * sizes.intermediate, sizes.hidden),
            "mlp.dense_4h_to_h.weight": (sizes.hidden, sizes.intermediate),
            "input_layernorm.weight": (sizes.hidden,),
            "post_attention_layernorm.weight": (sizes.hidden,),
        }
        if self._has_bias:
            shapes["self_attention.query_key_value.bias"] = (packed,)
        return shapes

    def repack(self, part: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        if not part.startswith("self_attention.query_key_value."):
            yield from super().repack(part, tensor)
            return
        import torch

        sizes = self.sizes
        for name, rows in zip("qkv", torch.split(tensor, [sizes.query, sizes.key, sizes.key]), strict=True):
            yield f"self_attn.{name}_proj.{part.rpartition('.')[2]}", rows

    def says_chat(self) -> bool:
        return "base" not in str(self.source.get("_name_or_path")).lower()

    @property
    def _has_roles(self) -> bool:
        """Whether it is ChatGLM3, which has special tokens for the roles of a chat."""
        facts = json.dumps(self.read_json("tokenizer_config.json")) + self.read_remote_code("tokenization_chatglm.py")
        return _ROLES[1] in facts or "chatglm3" in str(self.source.get("_name_or_path")).lower()

    def tokenizer(self, folder: Path) -> PreTrainedTokenizerFast | None:
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerFast | None:
        tokenizer = sentencepiece_tokenizer(
            self.folder,
            special_tokens=_SPECIAL_TOKENS + (_ROLES if self._has_roles else ()),
            prefix=("[gMASK]", "<sop>"),
            pad_token="<unk>",
        )
        if tokenizer is not None:
            tokenizer.chat_template = None  # the original's speaks of "sop", see above
            if self.is_chat:
                tokenizer.chat_template = CHATGLM3_TEMPLATE if self._has_roles else CHATGLM2_TEMPLATE
        return tokenizer

    def generation_config(self) -> dict[str, Any]:
        config = super().generation_config()
        tokenizer = self._tokenizer
        if tokenizer is not None and self.is_chat and self._has_roles:  # as the original's `chat` does
            ends = ["<|user|>", "<|observation|>"]
            config["eos_token_id"] = [2, *(tokenizer.convert_tokens_to_ids(token) for token in ends)]
        return config


CONVERTERS = (ChatGLM,)
