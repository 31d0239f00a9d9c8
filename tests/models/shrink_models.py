"""Tiny models to cut: every supported family and its variants, nothing in them left as it is initialised."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from zoo import ZOO

from pia.ipad.selection import Selection
from pia.ipad.structure import structure_of

KINDS = (
    "llama (tied, biases)",
    "qwen2 (windows)",
    "gemma2 (tied)",
    "phi3",
    "opt (projected, norms after)",
    "gpt2 (tied)",
)
"""One model for each kind of structure, where all of them would take too long."""

_WINDOWS = ["sliding_attention", "full_attention", "sliding_attention"]
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    # name: (name in the zoo, what is changed)
    "llama": ("llama", {}),
    "llama (tied, biases)": ("llama", dict(tie_word_embeddings=True, attention_bias=True, mlp_bias=True)),
    "llama (one query a group)": ("llama", dict(num_key_value_heads=4)),
    "llama (one group)": ("llama", dict(num_key_value_heads=1)),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen2 (windows)": ("qwen2 (windows)", dict(layer_types=_WINDOWS[1:] + _WINDOWS[:1], max_window_layers=1)),
    "qwen3": ("qwen3", dict(head_dim=12)),
    "gemma": ("gemma", {}),
    "gemma (tied)": ("gemma", dict(tie_word_embeddings=True)),
    "gemma2": ("gemma2", dict(layer_types=_WINDOWS, final_logit_softcapping=3.0)),
    "gemma2 (tied)": ("gemma2", dict(layer_types=_WINDOWS, tie_word_embeddings=True)),
    "gemma3_text": ("gemma3_text", dict(layer_types=_WINDOWS)),
    "glm": ("glm", {}),
    "glm4": ("glm4", {}),
    "phi3": ("phi3", {}),
    "opt": ("opt", {}),
    "opt (tied)": ("opt", dict(tie_word_embeddings=True)),
    "opt (projected, norms after)": ("opt", dict(word_embed_proj_dim=20, do_layer_norm_before=False)),
    "gpt2": ("gpt2", {}),
    "gpt2 (tied)": ("gpt2", dict(tie_word_embeddings=True, n_inner=40)),
}


def shrinkable(name: str, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A model of three layers whose norms and biases are random too, so that no mistake hides behind ones and zeros."""
    zoo_name, own = MODELS[name]
    class_name, options = ZOO[zoo_name]
    layers = {"n_layer" if zoo_name == "gpt2" else "num_hidden_layers": 3}
    kind = getattr(transformers, class_name)
    torch.manual_seed(0)
    model = kind._from_config(kind.config_class(**{**options, **layers, **own, **changes}), dtype=dtype)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn_like(weight) * 0.3)
    return model.eval()


def token_ids(*shape: int, seed: int = 1) -> torch.Tensor:
    """Random tokens, none of them special."""
    return torch.randint(3, 97, shape, generator=torch.Generator().manual_seed(seed))


def hidden_sizes(model: Any, num_kv_heads: int) -> list[int]:
    """Hidden sizes that the stock configuration can hold with that many KV heads."""
    structure = structure_of(model)
    heads = num_kv_heads * structure.queries_per_group
    if structure.ties_hidden_to_heads:
        return [heads * structure.head_dim]
    return [size for size in range(1, structure.shape.hidden_size + 1) if size % heads == 0]


def half(model: Any) -> Selection:
    """Two layers, one group less, some neurons and channels less; no row like the other."""
    shape = structure_of(model).shape
    num_kv_heads = max(1, shape.num_kv_heads - 1)
    hidden = [size for size in hidden_sizes(model, num_kv_heads) if size + 3 <= shape.hidden_size][-1]
    ffn = shape.ffn_size // 2
    return Selection(
        layers=(0, 2),
        kv_groups=(tuple(range(num_kv_heads)), tuple(range(shape.num_kv_heads))[-num_kv_heads:]),
        ffn=(tuple(range(0, 2 * ffn, 2)), tuple(range(1, ffn + 1))),
        hidden=tuple(range(shape.hidden_size))[-hidden - 3 : -3],
    )
