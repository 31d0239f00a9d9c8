"""GLM and Phi-3: like Llama, with projections stacked into one weight."""

from __future__ import annotations

from pia.ipad.structure.axes import FFN, HIDDEN, KV, QUERY, linear
from pia.ipad.structure.family import Table
from pia.ipad.structure.llama import ATTENTION, PRE_NORMS, like_llama, norms

_GATED: Table = {
    "mlp.gate_up_proj": linear(f"{FFN}+{FFN}", HIDDEN),
    "mlp.down_proj": linear(HIDDEN, FFN),
}
_ATTENTION: Table = {
    "self_attn.qkv_proj": linear(f"{QUERY}+{KV}+{KV}", HIDDEN),
    "self_attn.o_proj": linear(HIDDEN, QUERY),
}
_BRANCH_NORMS = ("post_self_attn_layernorm", "post_mlp_layernorm")

FAMILIES = (
    like_llama("glm", "GlmForCausalLM", inside={**ATTENTION, **_GATED, **norms(PRE_NORMS)}),
    like_llama(
        "glm4",
        "Glm4ForCausalLM",
        inside={**ATTENTION, **_GATED, **norms(PRE_NORMS + _BRANCH_NORMS)},
        branch_norms=_BRANCH_NORMS,
    ),
    like_llama("phi3", "Phi3ForCausalLM", inside={**_ATTENTION, **_GATED, **norms(PRE_NORMS)}),
)
