"""Mixtral and Qwen3-MoE: Llama's attention, and experts that are stacked in one weight."""

from __future__ import annotations

from typing import Any

from pia.ipad.shape import Shape
from pia.ipad.structure.axes import EXPERTS, FFN, HIDDEN
from pia.ipad.structure.family import ConfigNames, Family, Table
from pia.ipad.structure.llama import ATTENTION, HEAD_NORMS, PRE_NORMS, like_llama, norms

_EXPERTS: Table = {
    "mlp.gate": {"weight": (EXPERTS, HIDDEN)},
    "mlp.experts": {"gate_up_proj": (EXPERTS, f"{FFN}+{FFN}", HIDDEN), "down_proj": (EXPERTS, HIDDEN, FFN)},
}


def _dense_layers(config: Any) -> str | None:
    if getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) != 1:
        return "some of its layers have experts and some have none"
    return None


def _too_few_experts(config: Any, shape: Shape) -> str | None:
    if shape.num_experts < config.num_experts_per_tok:
        return f"each token goes to {config.num_experts_per_tok} experts; keep that many at least"
    return None


def _with_experts(model_type: str, model_class: str, ffn: str, attention: Table) -> Family:
    return like_llama(
        model_type,
        model_class,
        inside={**attention, **_EXPERTS, **norms(PRE_NORMS)},
        ffn_output=None,
        router="mlp.gate",
        experts="mlp.experts",
        names=ConfigNames(ffn=ffn, experts="num_local_experts"),
        refuse=_dense_layers,
        refuse_shape=_too_few_experts,
    )


FAMILIES = (
    _with_experts("mixtral", "MixtralForCausalLM", "intermediate_size", ATTENTION),
    _with_experts("qwen3_moe", "Qwen3MoeForCausalLM", "moe_intermediate_size", {**ATTENTION, **HEAD_NORMS}),
)
