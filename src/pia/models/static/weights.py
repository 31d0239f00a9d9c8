"""Weights as a compiled program has them inside: which they are, and whether the model's own are still the same."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch

_LOOKED_AT = 4
"""Elements of each tensor that are looked at before each call."""


def weights_digest(model: Any) -> str:
    """A digest of all weights and buffers, names, shapes and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(_tensors(model)):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_size(model: Any) -> int:
    """Bytes of all weights and buffers, shared ones counted once."""
    return sum({tensor.data_ptr(): tensor.nbytes for _, tensor in _tensors(model)}.values())


class WeightsWatch:
    """Notices when a model's weights are replaced or changed: a program made of the old ones must not run then.

    Looks at where the tensors lie, at PyTorch's counters of changes, and at a few elements of each, since changes
    through `.data` (as PEFT merges adapters) are not counted.

    Args:
        model: as it is now.
    """

    def __init__(self, model: Any) -> None:
        self._model = weakref.ref(model)
        self._marks = _marks(model)
        self._bytes = [_middle_bytes(tensor) for _, tensor in _tensors(model) if tensor.is_contiguous()]
        self._seen = torch.cat(self._bytes)

    def has_changed(self) -> bool:
        """Whether anything is not as it was at first."""
        return _marks(self._model()) != self._marks or not torch.equal(torch.cat(self._bytes), self._seen)


def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _marks(model: Any) -> list[tuple[int, int]]:
    return [(t.data_ptr(), 0 if t.is_inference() else t._version) for _, t in _tensors(model)]


def _middle_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """A view of a few elements from the middle of a tensor, uint8 `[n]`: bits compare where a NaN does not."""
    start = max(0, (tensor.numel() - _LOOKED_AT) // 2)
    return tensor.detach().flatten()[start : start + _LOOKED_AT].view(torch.uint8)
