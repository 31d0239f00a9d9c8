"""Attention over a tree in plain PyTorch: what the kernels are held to, in any precision, and what runs on a CPU.

Every backend is such a function (`TreeAttention`). Row b's committed slots are `0 .. starts[b] - 1`, where slot =
position; its tree lies in the slots `starts[b] .. starts[b] + q - 1`, node j at position `starts[b] + depths[b, j]`.
Slots beyond may hold anything.
"""

from __future__ import annotations

from typing import Protocol

import torch

from pia.models.attention.bits import unpack


class TreeAttention(Protocol):
    """Attention of a tree's nodes over their row's committed slots and over the nodes that they see."""

    def __call__(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        starts: torch.Tensor,
        bits: torch.Tensor,
        *,
        scale: float,
        depths: torch.Tensor | None = None,
        window: int | None = None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attends.

        Args:
            query: `[rows, heads, q, dim]`.
            keys: `[rows, kv_heads, slots, dim]`; `heads` is a multiple of `kv_heads`.
            values: `[rows, kv_heads, slots, value_dim]`.
            starts: committed slots of each row, int32 `[rows]`, on the same device.
            bits: who sees whom, int64 `[rows, q, words]`, see `bits.pack`.
            scale: factor of the scores.
            depths: of the nodes below the root, int `[rows, q]`; needed with a window only.
            window: positions seen, the node's own among them; `None` is all.
            softcap: scores are squashed to +- this by a hyperbolic tangent.
            sinks: a score for each head that takes part in the softmax and brings no value, `[heads]`.

        Returns:
            `[rows, heads, q, value_dim]`, in the dtype of the values.
        """
        ...


def reference_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    bits: torch.Tensor,
    *,
    scale: float,
    depths: torch.Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """`TreeAttention` in plain PyTorch, computed in the dtype of its inputs."""
    rows, heads, q, _ = query.shape
    kv_heads, num_slots = keys.shape[1:3]
    seen, used = _sight(starts, bits, q, num_slots, depths, window)
    keys, values = (states.masked_fill(~used[:, None, :, None], 0) for states in (keys, values))  # 0 * NaN is NaN
    grouped = query.reshape(rows, kv_heads, heads // kv_heads, q, -1)
    scores = torch.einsum("rkgqd,rksd->rkgqs", grouped, keys).flatten(1, 2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen[:, None], float("-inf"))
    weights = _softmax(scores, sinks).view(*grouped.shape[:4], num_slots)
    return torch.einsum("rkgqs,rksd->rkgqd", weights, values).flatten(1, 2)


def _sight(
    starts: torch.Tensor,
    bits: torch.Tensor,
    q: int,
    num_slots: int,
    depths: torch.Tensor | None,
    window: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What each node sees, bool `[rows, q, slots]`, and which slots hold something, bool `[rows, slots]`."""
    starts = starts[:, None].long()
    slots = torch.arange(num_slots, device=starts.device)[None]
    nodes = (slots - starts).clamp(0, q - 1)  # of slots in the tree; elsewhere any
    in_tree = (slots >= starts) & (slots < starts + q)
    visible = unpack(bits, q).gather(2, nodes[:, None].expand(-1, q, -1))
    seen = (slots < starts)[:, None] | (in_tree[:, None] & visible)
    if window is not None:
        assert depths is not None, "a window is counted in positions, so the nodes' depths are needed"
        positions = torch.where(in_tree, starts + depths.gather(1, nodes), slots)
        seen = seen & (positions[:, None] > (starts + depths)[:, :, None] - window)
    return seen, slots < starts + q


def _softmax(scores: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    if sinks is None:
        return scores.softmax(dim=-1)
    sink = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.cat([scores, sink], dim=-1).softmax(dim=-1)[..., :-1]
