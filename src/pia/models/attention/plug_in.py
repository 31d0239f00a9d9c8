"""Makes an unmodified Transformers model attend over trees without a mask, through its registry of attention functions.

Transformers looks an attention function up by the name in the model's configuration, at each layer's call. While a
forward runs inside `tree_attention`, that name is ours, no mask is made, and every layer's function reads from a
context variable who sees whom. In other threads, or without a state, it does what the model did before.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from pia.models.attention.reference import TreeAttention

NAME = "pia_tree"
"""Under which the function is registered."""
_IGNORED = frozenset(
    {
        "is_causal",
        "position_ids",
        "position_embeddings",
        "cache_position",
        "use_cache",
        "past_key_values",
    }
)
"""Arguments that say nothing about a tree that its state does not say."""


class TreeAttentionError(RuntimeError):
    """A layer asks for something that attention over trees does not do."""


@dataclass(frozen=True)
class TreeState:
    """What a forward over trees attends by; in a captured graph static buffers, written before each replay.

    Attributes:
        starts: committed slots of each row, int32 `[rows]`, on the model's device.
        bits: who sees whom, int64 `[rows, q, words]`, see `bits.pack`.
        depths: of the nodes below the root, int64 `[rows, q]`; for layers with a sliding window.
        attend: the backend.
    """

    starts: torch.Tensor
    bits: torch.Tensor
    depths: torch.Tensor
    attend: TreeAttention


@dataclass
class _Users:
    """Forwards under way over trees, of one model, and the attention implementation that it had before."""

    original: str
    count: int = 0


_state: ContextVar[TreeState | None] = ContextVar("pia_tree_state", default=None)
_lock = threading.Lock()
_users: dict[int, _Users] = {}


@contextmanager
def tree_attention(model: Any, state: TreeState) -> Iterator[None]:
    """Enter this around forwards over trees; call the model with `attention_mask=None`.

    The cache's `update` must have written the tree's keys and values behind each row's committed slots, and return
    them together with these (slots beyond do no harm). Whether a model can be called so at all, `probe` finds out.

    Args:
        model: a causal language model of Transformers.
        state: who sees whom.
    """
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
    with _switched(model.config.get_text_config(decoder=True)):
        token = _state.set(state)
        try:
            yield
        finally:
            _state.reset(token)


@contextmanager
def _switched(config: Any) -> Iterator[None]:
    """Puts our name in a configuration for as long as anybody needs it."""
    with _lock:
        users = _users.setdefault(id(config), _Users(config._attn_implementation))
        users.count += 1
        config._attn_implementation = NAME
    try:
        yield
    finally:
        with _lock:
            users.count -= 1
            if users.count == 0:
                config._attn_implementation = users.original
                del _users[id(config)]


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Transformers' attention function: `[rows, heads, q, dim]` in, `[rows, q, heads, dim]` out."""
    state = _state.get()
    if state is None:
        attention = _original_attention(module)
        result: tuple[torch.Tensor, torch.Tensor | None] = attention(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **options
        )
        return result
    if attention_mask is not None or dropout:
        raise TreeAttentionError("its attention has a mask of its own" if dropout == 0 else "its attention has dropout")
    if query.shape[0] != state.starts.shape[0] or query.shape[2] != state.bits.shape[1]:
        raise TreeAttentionError(f"it attends from {tuple(query.shape)} where the trees have {tuple(state.bits.shape)}")
    attended = state.attend(
        query,
        key,
        value,
        state.starts,
        state.bits,
        scale=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        depths=state.depths,
        **_known(options),
    )
    return attended.transpose(1, 2).contiguous(), None


def _known(options: dict[str, Any]) -> dict[str, Any]:
    """The layer's arguments in our own words.

    Raises:
        TreeAttentionError: there is one that we do not know.
    """
    for name, value in options.items():
        is_set = isinstance(value, torch.Tensor) or value not in (None, False)
        if is_set and name not in _IGNORED and name not in ("sliding_window", "softcap", "s_aux"):
            raise TreeAttentionError(f"its attention takes {name}")
    return {
        "window": options.get("sliding_window") or None,
        "softcap": options.get("softcap"),
        "sinks": options.get("s_aux"),
    }


def _mask(*arguments: Any, **options: Any) -> torch.Tensor | None:
    """Transformers' mask function: none over trees, else what the model's own implementation takes."""
    if _state.get() is not None:
        return None
    make: Callable[..., torch.Tensor | None] = AttentionMaskInterface()[str(own_implementation(options["config"]))]
    return make(*arguments, **options)


def _original_attention(module: Any) -> Callable[..., Any]:
    """What this layer computes outside of trees."""
    name = str(own_implementation(module.config))
    if name != "eager":
        return AttentionInterface()[name]  # type: ignore[no-any-return]
    # Transformers has no register of these: each modeling file brings its own, and gives it as a default.
    return sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[no-any-return]


def own_implementation(config: Any) -> str | None:
    """The attention implementation of a model, also while another thread runs a forward of it over trees."""
    with _lock:
        users = _users.get(id(config))
        name: str | None = users.original if users else getattr(config, "_attn_implementation", None)
    return name
