"""Whether a model can attend over trees without a mask: shown on the model itself, not declared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pia.drafting.tree import DraftTree
from pia.models.adapters import adapter_of
from pia.models.attention.bits import pack
from pia.models.attention.plug_in import TreeState, tree_attention
from pia.models.attention.reference import TreeAttention
from pia.models.distance import rms_distance
from pia.models.layout import batch_layout
from pia.models.masks import FULL, SLIDING, mask_kinds, reach
from pia.models.placement import compute_dtype
from pia.models.runner import SlabRunner

_PROMPT_LENGTH = 21
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Largest error, in standard deviations of the logits; wrong masks were measured at 0.07 and more. Models of float64
have parts in float32."""
_TOLERANCE_16_BIT = 3e-2
_PARENTS = (-1, -1, 0, 1, 1, 2, 4, 0, 6)


@dataclass(frozen=True)
class LayerShape:
    """What a layer attends with.

    Attributes:
        heads: of the queries.
        kv_heads: of keys and values.
        dim: of keys.
        value_dim: of values.
        dtype: of all.
        window: positions seen, or `None`.
        softcap: bound of the scores, or `None`.
    """

    heads: int
    kv_heads: int
    dim: int
    value_dim: int
    dtype: torch.dtype
    window: int | None = None
    softcap: float | None = None


@dataclass(frozen=True)
class Finding:
    """What a probe found.

    Attributes:
        reason: why the backend cannot be used; `None` if it can.
        layers: each layer's shapes, in the order of the calls; incomplete with a reason.
    """

    reason: str | None
    layers: tuple[LayerShape, ...] = ()


def probed(model: Any, attend: TreeAttention) -> Finding:
    """Whether a model that verifies trees under masks can do so with this backend.

    One tree is fed twice, under PIA's masks and without, and every layer's window is compared with the configuration's
    (a short text would not show a window that is missing).

    Args:
        model: a causal language model of Transformers that verifies trees, in evaluation mode.
        attend: the backend.
    """
    if adapter_of(model) is not None:
        return Finding("it places tokens by their slots")
    if odd := set(mask_kinds(model.config)) - {SLIDING, FULL}:
        return Finding(f"it has {odd.pop()} layers")
    layers: list[LayerShape] = []
    try:
        error = _error(model, _recording(attend, layers))
    except Exception as refusal:  # a model, or a compiler, may refuse in any way it likes; that is an answer too
        return Finding(f"{type(refusal).__name__}: {str(refusal)[:200]}")
    return Finding(_doubt(model, error, layers), tuple(layers))


def _doubt(model: Any, error: float, layers: list[LayerShape]) -> str | None:
    windows, declared = [layer.window for layer in layers], _declared_windows(model)
    if len(windows) != len(declared):
        return f"{len(windows)} of its {len(declared)} layers attend through Transformers' registry"
    if windows != declared:
        return "its layers attend through other windows than its configuration says"
    if not error <= _TOLERANCE.get(compute_dtype(model), _TOLERANCE_16_BIT):  # true for NaN
        return f"its logits differ by {error:.1e} from those under a mask"
    return None


@torch.inference_mode()
def _error(model: Any, attend: TreeAttention) -> float:
    """How far the logits are from those under a mask, in standard deviations."""
    prompt, token, tree = _example(model)
    runner = SlabRunner(model)
    runner.prefill([prompt])
    expected = runner.forward([token], [tree])[0]
    runner.cache.set_lengths([len(prompt)])
    logits = unmasked_forward(runner, [token], [tree], attend)[0]
    return rms_distance(logits, expected) / float(expected.double().std())


def unmasked_forward(
    runner: SlabRunner, token_ids: list[int], trees: list[DraftTree], attend: TreeAttention
) -> torch.Tensor:
    """The runner's next forward over trees, without a mask; logits `[rows, q, vocab]`."""
    ids, depths, visible = batch_layout(token_ids, trees)
    starts = torch.tensor(runner.cache.lengths, device=runner.device)
    places = torch.from_numpy(depths).to(runner.device)
    bits = torch.from_numpy(pack(visible)).to(runner.device)
    runner.cache.begin_step()
    with tree_attention(runner.model, TreeState(starts.int(), bits, places, attend)):
        logits: torch.Tensor = runner.model(
            input_ids=torch.from_numpy(ids).to(runner.device),
            attention_mask=None,
            position_ids=starts[:, None] + places,
            past_key_values=runner.cache,
            use_cache=True,
        ).logits
    return logits


def _recording(attend: TreeAttention, layers: list[LayerShape]) -> TreeAttention:
    """The same backend, which also notes what it is given."""

    def recorded(
        query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *trees: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        limits = {name: options[name] for name in ("window", "softcap")}
        sizes = (query.shape[1], keys.shape[1], keys.shape[-1], values.shape[-1])
        layers.append(LayerShape(*sizes, query.dtype, **limits))
        return attend(query, keys, values, *trees, **options)

    return recorded


def _declared_windows(model: Any) -> list[int | None]:
    """The window of each layer as the configuration has it."""
    config = model.config.get_text_config(decoder=True)
    if not mask_kinds(config):
        return [reach(config)] * config.num_hidden_layers
    return [config.sliding_window if kind == SLIDING else None for kind in config.layer_types]


def _example(model: Any) -> tuple[torch.Tensor, int, DraftTree]:
    """A prompt `[length]`, a token after it and a tree, of fixed pseudo-random token ids."""
    vocab_size = model.get_input_embeddings().weight.shape[0]
    ids = np.random.default_rng(11).integers(0, vocab_size, _PROMPT_LENGTH + 1 + len(_PARENTS))
    nodes = ids[_PROMPT_LENGTH + 1 :].astype(np.int32)
    probs = np.linspace(0.9, 0.1, len(nodes), dtype=np.float32)
    tree = DraftTree(nodes, np.asarray(_PARENTS, dtype=np.int32), probs, np.zeros(len(nodes), dtype=np.uint8))
    return torch.from_numpy(ids[:_PROMPT_LENGTH]), int(ids[_PROMPT_LENGTH]), tree
