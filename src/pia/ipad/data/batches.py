"""Batches of rows of like length, in an order that follows from the seed and the step alone."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from pia.errors import ShrinkError
from pia.ipad.data.rows import Row, Rows

_JITTER = 24
"""Rows lie side by side by their length, changed by up to so many tokens: new neighbours in every epoch."""


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right, on one device."""

    rows: tuple[int, ...]
    """Which rows of the data these are, `[batch]`."""
    ids: torch.Tensor
    """`[batch, length]`, 0 where padded. Padding is on the right, so a causal mask hides it."""
    weights: torch.Tensor
    """`[batch, length]`, float32: of each token as a target; 0 where padded."""

    @cached_property
    def places(self) -> torch.Tensor:
        """`[n]`: where in the flattened `[batch * length]` predictions stand whose targets have any weight."""
        weights = torch.nn.functional.pad(self.weights[:, 1:], (0, 1))
        return weights.flatten().nonzero().squeeze(1)

    @property
    def targets(self) -> torch.Tensor:
        """`[n]`: the tokens to be predicted at `places`."""
        return self.ids.flatten()[self.places + 1]

    @property
    def target_weights(self) -> torch.Tensor:
        """`[n]`: of `targets`."""
        return self.weights.flatten()[self.places + 1]

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(self.rows, self.ids.to(device), self.weights.to(device))


def make_batch(rows: Sequence[Row], numbers: Sequence[int]) -> Batch:
    """Pads some rows, given by their numbers, to the longest of them."""
    chosen = [rows[number] for number in numbers]
    length = max(map(len, chosen))
    ids = np.zeros((len(chosen), length), np.int64)
    weights = np.zeros((len(chosen), length), np.float32)
    for line, row in enumerate(chosen):
        ids[line, : len(row)] = row.ids
        weights[line, : len(row)] = row.weights
        weights[line, 0] = 0  # nothing predicts a first token
    return Batch(tuple(numbers), torch.from_numpy(ids), torch.from_numpy(weights))


class Batches:
    """Deals rows out, epoch after epoch.

    Args:
        rows: to train on.
        batch_tokens: most tokens of a batch, padding counted. A single row may be longer.
        seed: of the order.
    """

    def __init__(self, rows: Rows, batch_tokens: int, seed: int) -> None:
        if not len(rows):
            raise ShrinkError("there are no rows to train on")
        self.rows = rows
        self.batch_tokens = batch_tokens
        self.seed = seed
        self._lengths = np.array([len(row) for row in rows])
        self._sizes: list[int] = []
        self._held: tuple[int, list[tuple[int, ...]]] = (-1, [])

    def numbers(self, step: int) -> tuple[int, ...]:
        """The rows of the batch at a step: a function of the seed and the step alone, however many were asked for."""
        epoch = 0
        while step >= self._size(epoch):
            step -= self._size(epoch)
            epoch += 1
        return self.epoch(epoch)[step]

    def epoch(self, epoch: int) -> list[tuple[int, ...]]:
        """The rows of all batches of an epoch."""
        if self._held[0] != epoch:
            rng = random.Random(f"{self.seed}/{epoch}")
            keys = self._lengths + np.array([rng.uniform(0, _JITTER) for _ in self._lengths])
            batches = grouped(np.argsort(keys, kind="stable").tolist(), self._lengths.tolist(), self.batch_tokens)
            rng.shuffle(batches)
            self._held = (epoch, batches)
        return self._held[1]

    def _size(self, epoch: int) -> int:
        while len(self._sizes) <= epoch:
            self._sizes.append(len(self.epoch(len(self._sizes))))
        return self._sizes[epoch]


def grouped(order: Sequence[int], lengths: Sequence[int] | Mapping[int, int], max_tokens: int) -> list[tuple[int, ...]]:
    """Consecutive rows in groups of at most `max_tokens` tokens once padded to the longest of the group."""
    groups: list[tuple[int, ...]] = []
    current: list[int] = []
    longest = 0
    for number in order:
        longest = max(longest, lengths[number])
        if current and longest * (len(current) + 1) > max_tokens:
            groups.append(tuple(current))
            current, longest = [], lengths[number]
        current.append(number)
    if current:
        groups.append(tuple(current))
    return groups
