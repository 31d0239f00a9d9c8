"""Gemma: embeddings scaled by the root of the hidden size, norms that add one to their weight, soft caps."""

from __future__ import annotations

from typing import Any

import torch

from pia.ipad.structure.llama import ATTENTION, GATED, HEAD_NORMS, PRE_NORMS, like_llama, norms

_READERS = ("input_layernorm", "pre_feedforward_layernorm")
_BRANCH_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
_SANDWICH = {**ATTENTION, **GATED, **norms(_READERS + _BRANCH_NORMS)}


def _soft_capped(config: Any, logits: torch.Tensor) -> torch.Tensor:
    cap = config.final_logit_softcapping
    return logits if cap is None else torch.tanh(logits / cap) * cap


@torch.no_grad()
def _keep_embedding_scale(model: Any, cut_model: Any) -> None:
    """Puts into the weights by how much the code of a narrower model scales embeddings less.

    A tied head sees the changed embedding as well; the final norm takes that back.
    """
    embedding = cut_model.model.embed_tokens
    factor = _scale(model.model.embed_tokens) / _scale(embedding)
    if factor == 1:
        return
    embedding.weight.copy_(embedding.weight.double() * factor)
    if cut_model.lm_head.weight is embedding.weight:
        norm = cut_model.model.norm.weight
        norm.copy_((1 + norm.double()) / factor - 1)


def _scale(embedding: Any) -> float:
    return float(embedding.embed_scale.to(embedding.weight.dtype))


_CAPPED: dict[str, Any] = dict(
    layer_norms=_READERS, branch_norms=_BRANCH_NORMS, logits=_soft_capped, compensate=_keep_embedding_scale
)
FAMILIES = (
    like_llama("gemma", "GemmaForCausalLM", layer_norms=PRE_NORMS, compensate=_keep_embedding_scale),
    like_llama("gemma2", "Gemma2ForCausalLM", inside=_SANDWICH, **_CAPPED),
    like_llama("gemma3_text", "Gemma3ForCausalLM", inside={**_SANDWICH, **HEAD_NORMS}, **_CAPPED),
)
