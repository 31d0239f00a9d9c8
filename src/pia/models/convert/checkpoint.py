"""Reading a checkpoint tensor by tensor: safetensors or PyTorch's own format, in one file or in shards."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pia.errors import ConversionError
from pia.models.convert.converter import read_json

if TYPE_CHECKING:
    import torch

_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Checkpoint:
    """The weight files of a folder."""

    shards: tuple[Path, ...]
    names: frozenset[str] | None
    """Names of all tensors, where an index or the headers tell without reading weights."""

    @classmethod
    def find(cls, folder: Path) -> Checkpoint:
        """Looks for the weights of a folder; safetensors are preferred.

        Raises:
            ConversionError: there are none, or some are missing or damaged.
        """
        for index, single in zip(_INDICES, _SINGLE_FILES, strict=True):
            if (folder / index).exists():
                return cls._of_index(folder / index)
            if (folder / single).exists():
                shard = folder / single
                return cls((shard,), _names_in_header(shard) if _is_safetensors(shard) else None)
        raise ConversionError(f"{folder} holds no weights: none of {', '.join((*_SINGLE_FILES, *_INDICES))} is there")

    @classmethod
    def _of_index(cls, index: Path) -> Checkpoint:
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ConversionError(f"{index} is damaged: it holds no weight_map")
        shards = tuple(index.parent / name for name in sorted(set(weight_map.values())))
        missing = [shard.name for shard in shards if not shard.exists()]
        if missing:
            raise ConversionError(f"{index.parent} is incomplete: {_some(missing)} not there, but in {index.name}")
        for shard in shards:
            if _is_safetensors(shard):
                _names_in_header(shard)  # a truncated file shows now rather than after an hour
        return cls(shards, frozenset(weight_map))

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(shard.stat().st_size for shard in self.shards)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All tensors, file after file; no more than one file is open at a time, and read as it is needed.

        Raises:
            ConversionError: a file is damaged, or holds something else.
        """
        for shard in self.shards:
            yield from _safetensors(shard) if _is_safetensors(shard) else _pytorch(shard)


def _is_safetensors(shard: Path) -> bool:
    return shard.suffix == ".safetensors"


def _names_in_header(shard: Path) -> frozenset[str]:
    with _opened(shard) as file:
        return frozenset(file.keys())


def _safetensors(shard: Path) -> Iterator[tuple[str, torch.Tensor]]:
    with _opened(shard) as file:
        for name in file.keys():  # noqa: SIM118 - it is no dictionary
            yield name, file.get_tensor(name)


def _opened(shard: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(shard), framework="pt")
    except SafetensorError as error:
        raise ConversionError(f"{shard} is damaged or cut off: {error}") from None


def _pytorch(shard: Path) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    tensors = _load(shard)
    if not isinstance(tensors, dict):
        raise ConversionError(f"{shard} holds a {type(tensors).__name__}, not named tensors")
    for name in list(tensors):
        tensor = tensors.pop(name)
        if not isinstance(tensor, torch.Tensor):
            raise ConversionError(f"{shard}: {name} is a {type(tensor).__name__}, not a tensor")
        yield name, tensor


def _load(shard: Path) -> Any:
    """Memory-mapped if the file's format allows it; old ones are read whole, each in its turn."""
    import torch

    try:
        return torch.load(shard, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(shard))
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConversionError(f"{shard} is damaged, cut off, or no PyTorch checkpoint: {reason}") from None


def _some(names: list[str]) -> str:
    listed = ", ".join(names[:3])
    return f"{listed} and {len(names) - 3} more are" if len(names) > 3 else f"{listed} is"
