"""Random trees behind texts of random length, with garbage behind their end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pia.drafting.tree import DraftTree
from pia.models.attention.bits import pack
from pia.models.attention.reference import reference_attention
from pia.models.layout import batch_layout


@dataclass(frozen=True)
class Case:
    """One call of attention over trees."""

    starts: tuple[int, ...]
    q: int
    kv_heads: int = 1
    group: int = 1
    dim: int = 16
    value_dim: int = 16
    dtype: torch.dtype = torch.float32
    window: int | None = None
    softcap: float | None = None
    has_sinks: bool = False
    seed: int = 0

    def inputs(self) -> tuple[tuple[torch.Tensor, ...], dict]:
        rng, generator = np.random.default_rng(self.seed), torch.Generator().manual_seed(self.seed)
        rows, capacity = len(self.starts), max(self.starts) + self.q + 5
        _, depths, visible = batch_layout([0] * rows, [random_tree(rng, self.q - 1) for _ in self.starts])

        def states(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(self.dtype)

        query = states(rows, self.q, self.kv_heads * self.group, self.dim).transpose(1, 2)
        keys = states(rows, self.kv_heads, capacity, self.dim)
        values = states(rows, self.kv_heads, capacity, self.value_dim)
        for row, start in enumerate(self.starts):
            keys[row, :, start + self.q :] = values[row, :, start + self.q :] = torch.nan
        options = {
            "scale": self.dim**-0.5,
            "depths": torch.from_numpy(depths),
            "window": self.window,
            "softcap": self.softcap,
            "sinks": states(self.kv_heads * self.group) if self.has_sinks else None,
        }
        starts = torch.tensor(self.starts, dtype=torch.int32)
        return (query, keys, values, starts, torch.from_numpy(pack(visible))), options


def random_tree(rng: np.random.Generator, size: int) -> DraftTree:
    """Nodes that hang from the root or from any node before them."""
    parents = np.array([rng.integers(-1, node) if node else -1 for node in range(size)], dtype=np.int32)
    probs = np.linspace(0.9, 0.1, size, dtype=np.float32)
    return DraftTree(np.arange(size, dtype=np.int32), parents, probs, np.zeros(size, dtype=np.uint8))


def expected(inputs: tuple[torch.Tensor, ...], options: dict) -> torch.Tensor:
    """The same in float64."""
    query, keys, values, starts, bits = inputs
    return reference_attention(query.double(), keys.double(), values.double(), starts, bits, **options)
