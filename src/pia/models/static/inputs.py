"""What a step of fixed size is told: one small tensor of whole numbers, copied to the device in one piece."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pia.drafting.tree import DraftTree
from pia.models.layout import layout

_WORD = 64


class DeviceRow:
    """A row of whole numbers in a place of its own on the device, and the memory on the host it is loaded from.

    Whoever loads it has waited for what used the last load: there is one place on the host.

    Args:
        length: numbers.
        device: where they go.
    """

    def __init__(self, length: int, device: torch.device) -> None:
        host = torch.zeros(length, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._host, self.numbers = host, host.numpy()
        self.values = torch.zeros(length, dtype=torch.int64, device=device)

    def load(self, numbers: Sequence[int]) -> None:
        """Sets all of them."""
        self.numbers[:] = numbers
        self.send()

    def send(self) -> None:
        """Copies what stands in `numbers` to the device."""
        self.values.copy_(self._host, non_blocking=True)


class StepInputs:
    """The inputs of steps that feed `size` tokens, in a place of their own on the device.

    In one row of int64: the number of slots kept, then token ids, depths, and for each token the bits of those it
    sees, itself among them.

    Args:
        size: tokens fed, the last accepted one included.
        device: of the model's inputs.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        self._words = -(-size // _WORD)
        self._row = DeviceRow(1 + size * (2 + self._words), device)
        start, ids, depths, bits = torch.split(self._row.values, [1, size, size, size * self._words])
        self.start = start
        """Slots kept before the step, `[1]`."""
        self.ids = ids[None]
        """`[1, size]`."""
        self.depths = depths[None]
        """`[1, size]`."""
        self.bits = bits.view(1, size, self._words)
        """`[1, size, words]`: bit `j % 64` of word `j // 64` says whether a token sees token j of the step."""

    def load(self, token_id: int, tree: DraftTree, start: int) -> None:
        """Sets the inputs for a step with a tree of fewer than `size` nodes; what is left over sees itself only."""
        size, used = self.size, len(tree) + 1
        depths, visible = layout(tree)
        numbers = self._row.numbers
        numbers[:] = 0
        numbers[0], numbers[1] = start, token_id
        numbers[2 : 1 + used] = tree.token_ids
        numbers[1 + size : 1 + size + used] = depths
        numbers[1 + 2 * size :] = _bits(visible, size, self._words).ravel()
        self._row.send()

    def visible(self) -> torch.Tensor:
        """Which tokens of the step each sees, bool `[1, size, size]`, from the bits on the device."""
        places = torch.arange(self.size, device=self.bits.device)
        words = self.bits[..., places // _WORD]
        seen: torch.Tensor = (words >> (places % _WORD)).bitwise_and_(1).bool()
        return seen


def _bits(visible: np.ndarray, size: int, words: int) -> np.ndarray:
    """Rows of bools `[used, used]` as int64 words `[size, words]`, the rows beyond with their own bit only."""
    whole = np.eye(size, words * _WORD, dtype=bool)
    used = len(visible)
    whole[:used, :used] = visible
    return np.packbits(whole, axis=1, bitorder="little").view(np.int64)
