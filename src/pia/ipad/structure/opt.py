"""OPT: learned positions, LayerNorm before or after a branch, and a hidden size that its heads fill."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pia.ipad.shape import Shape
from pia.ipad.structure.axes import FFN, HIDDEN, KV, QUERY, WHOLE, linear, norm
from pia.ipad.structure.family import ConfigNames, Family, Table

_NORMS = ("self_attn_layer_norm", "final_layer_norm")
_INSIDE: Table = {
    "self_attn.q_proj": linear(QUERY, HIDDEN),
    "self_attn.k_proj": linear(KV, HIDDEN),
    "self_attn.v_proj": linear(KV, HIDDEN),
    "self_attn.out_proj": linear(HIDDEN, QUERY),
    "fc1": linear(FFN, HIDDEN),
    "fc2": linear(HIDDEN, FFN),
    **{name: norm() for name in _NORMS},
}
_OUTSIDE: Table = {
    "model.decoder.embed_tokens": linear(WHOLE, HIDDEN),
    "model.decoder.embed_positions": linear(WHOLE, HIDDEN),
    "model.decoder.final_layer_norm": norm(),
    "lm_head": linear(WHOLE, HIDDEN),
}
_PROJECTED: Table = {
    "model.decoder.embed_tokens": linear(WHOLE, WHOLE),
    "model.decoder.project_in": linear(HIDDEN, WHOLE),
    "model.decoder.project_out": linear(WHOLE, HIDDEN),
    "lm_head": linear(WHOLE, WHOLE),
}


def _is_projected(config: Any) -> bool:
    return bool(config.word_embed_proj_dim != config.hidden_size)


def _with_projections(config: Any, family: Family) -> Family:
    """Checkpoints such as opt-350m have embeddings narrower than the stream."""
    if not _is_projected(config):
        return family
    return replace(
        family,
        outside={**_OUTSIDE, **_PROJECTED},
        stream_starts=("model.decoder.project_in", "model.decoder.embed_positions"),
    )


def _embedding_size(config: Any, hidden: int) -> dict[str, Any]:
    return {} if _is_projected(config) else {"word_embed_proj_dim": hidden}


def _refused_shape(config: Any, shape: Shape) -> str | None:
    if _is_projected(config) and config.word_embed_proj_dim == shape.hidden_size:
        return "its embeddings would be as wide as the stream, and its projections would be lost"
    return None


FAMILIES = (
    Family(
        "opt",
        "OPTForCausalLM",
        inside=_INSIDE,
        outside=_OUTSIDE,
        attention_output="self_attn.out_proj",
        ffn_output="fc2",
        layer_norms=_NORMS,
        layers="model.decoder.layers",
        final_norm="model.decoder.final_layer_norm",
        embedding="model.decoder.embed_tokens",
        stream_starts=("model.decoder.embed_tokens", "model.decoder.embed_positions"),
        names=ConfigNames(kv_heads=None, ffn="ffn_dim", head_dim=None),
        for_config=_with_projections,
        more_config=_embedding_size,
        refuse_shape=_refused_shape,
    ),
)
