"""Llama and the families that are built like it: rotary positions, gated feed-forward, a norm before each branch."""

from __future__ import annotations

from typing import Any

from pia.ipad.structure.axes import FFN, HIDDEN, KV, QUERY, WHOLE, linear, norm
from pia.ipad.structure.family import Family, Table

ATTENTION: Table = {
    "self_attn.q_proj": linear(QUERY, HIDDEN),
    "self_attn.k_proj": linear(KV, HIDDEN),
    "self_attn.v_proj": linear(KV, HIDDEN),
    "self_attn.o_proj": linear(HIDDEN, QUERY),
}
HEAD_NORMS: Table = {"self_attn.q_norm": norm(WHOLE), "self_attn.k_norm": norm(WHOLE)}
GATED: Table = {
    "mlp.gate_proj": linear(FFN, HIDDEN),
    "mlp.up_proj": linear(FFN, HIDDEN),
    "mlp.down_proj": linear(HIDDEN, FFN),
}
PRE_NORMS = ("input_layernorm", "post_attention_layernorm")
OUTSIDE: Table = {
    "model.embed_tokens": linear(WHOLE, HIDDEN),
    "model.norm": norm(),
    "lm_head": linear(WHOLE, HIDDEN),
}


def norms(names: tuple[str, ...]) -> Table:
    """Rows of norms over the hidden channels."""
    return {name: norm() for name in names}


def like_llama(model_type: str, model_class: str, **changes: Any) -> Family:
    """A family with Llama's names, apart from what is given."""
    parts: dict[str, Any] = dict(
        inside={**ATTENTION, **GATED, **norms(PRE_NORMS)},
        outside=OUTSIDE,
        attention_output="self_attn.o_proj",
        ffn_output="mlp.down_proj",
        layer_norms=PRE_NORMS,
    )
    return Family(model_type, model_class, **{**parts, **changes})


FAMILIES = (
    like_llama("llama", "LlamaForCausalLM"),
    like_llama("mistral", "MistralForCausalLM"),
    like_llama("qwen2", "Qwen2ForCausalLM", vllm_ties_hidden_to_heads=True),
    like_llama("qwen3", "Qwen3ForCausalLM", inside={**ATTENTION, **HEAD_NORMS, **GATED, **norms(PRE_NORMS)}),
)
