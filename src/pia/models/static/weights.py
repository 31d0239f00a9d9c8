"""Weights as a compiled program has them inside: which they are, and whether the model's own are still the same."""

from __future__ import annotations

import ctypes
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
    through `.data` (as PEFT merges adapters) are not counted. Holds neither model nor weights.

    Args:
        model: as it is now, on the CPU.
    """

    def __init__(self, model: Any) -> None:
        self._model = weakref.ref(model)
        self._marks = _marks(model)
        self._samples = [_middle(tensor) for _, tensor in _tensors(model) if tensor.is_contiguous()]
        self._seen = self._look()

    def has_changed(self) -> bool:
        """Whether anything is not as it was at first."""
        return _marks(self._model()) != self._marks or self._look() != self._seen

    def _look(self) -> list[bytes]:
        """The bytes looked at. The tensors lie where they lay, so no views of them need be kept, or made anew."""
        return [ctypes.string_at(address, size) for address, size in self._samples]


class PlacesWatch:
    """Notices when a model's weights are replaced: a captured step reads them where they lay.

    Args:
        model: as it is now.
    """

    def __init__(self, model: Any) -> None:
        self._model = weakref.ref(model)
        self._places = _places(model)

    def has_changed(self) -> bool:
        """Whether any weight lies elsewhere now."""
        return _places(self._model()) != self._places


def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _marks(model: Any) -> list[tuple[int, int]]:
    return [(t.data_ptr(), 0 if t.is_inference() else t._version) for _, t in _tensors(model)]


def _places(model: Any) -> list[int]:
    return [tensor.data_ptr() for _, tensor in _tensors(model)]


def _middle(tensor: torch.Tensor) -> tuple[int, int]:
    """Address and number of bytes of a few elements from the middle of a tensor."""
    start = max(0, (tensor.numel() - _LOOKED_AT) // 2)
    size = min(_LOOKED_AT, tensor.numel())
    return tensor.data_ptr() + start * tensor.element_size(), size * tensor.element_size()
