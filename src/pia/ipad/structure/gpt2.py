"""GPT-2: queries, keys and values in one transposed weight, learned positions, heads that fill the hidden size."""

from __future__ import annotations

from typing import Any

from pia.ipad.structure.axes import FFN, HIDDEN, KV, QUERY, WHOLE, linear, norm, transposed
from pia.ipad.structure.family import ConfigNames, Family


def _refused(config: Any) -> str | None:
    if config.scale_attn_by_inverse_layer_idx:
        return "it scales attention by the number of the layer, which changes when a layer before it goes"
    if config.add_cross_attention:
        return "it attends to an encoder as well"
    return None


FAMILIES = (
    Family(
        "gpt2",
        "GPT2LMHeadModel",
        inside={
            "attn.c_attn": transposed(HIDDEN, f"{QUERY}+{KV}+{KV}"),
            "attn.c_proj": transposed(QUERY, HIDDEN),
            "mlp.c_fc": transposed(HIDDEN, FFN),
            "mlp.c_proj": transposed(FFN, HIDDEN),
            "ln_1": norm(),
            "ln_2": norm(),
        },
        outside={
            "transformer.wte": linear(WHOLE, HIDDEN),
            "transformer.wpe": linear(WHOLE, HIDDEN),
            "transformer.ln_f": norm(),
            "lm_head": linear(WHOLE, HIDDEN),
        },
        attention_output="attn.c_proj",
        ffn_output="mlp.c_proj",
        layer_norms=("ln_1", "ln_2"),
        backbone="transformer",
        layers="transformer.h",
        final_norm="transformer.ln_f",
        embedding="transformer.wte",
        stream_starts=("transformer.wte", "transformer.wpe"),
        names=ConfigNames("n_layer", "n_embd", "n_head", None, "n_inner", None),
        refuse=_refused,
    ),
)
