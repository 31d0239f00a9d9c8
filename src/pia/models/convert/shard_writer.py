"""Writing safetensors as the tensors come, in shards of bounded size and with no more than one tensor in memory.

The header of a safetensors file stands before the data and tells where each tensor lies, so room for it is left free
and filled in at the end; the format allows spaces behind the header.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from pia.errors import ConversionError

if TYPE_CHECKING:
    import torch

_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_ENTRY_SIZE = 160
"""Bytes of the header that a tensor takes beside its name, generously: dtype, shape, offsets."""
_ALIGNMENT = 64


class ShardWriter:
    """Writes the tensors of a model into a folder; as a context manager it closes its file whatever happens.

    Args:
        folder: where to; it exists.
        names: of all tensors that will come, which bounds the size of a header.
        max_shard_size: bytes of data in a file; a tensor larger than this gets a file of its own.
    """

    def __init__(self, folder: Path, names: frozenset[str], max_shard_size: int) -> None:
        self._folder = folder
        room = sum(len(json.dumps(name)) + _ENTRY_SIZE for name in names) + 64
        self._header_size = -(-(room + 8) // _ALIGNMENT) * _ALIGNMENT - 8
        self._max_shard_size = max_shard_size
        self._file: BinaryIO | None = None
        self._entries: dict[str, dict[str, Any]] = {}
        self._size = 0
        self._shards: list[list[str]] = []
        self.num_bytes = 0
        """Of all tensors so far."""

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Writes a tensor.

        Raises:
            ConversionError: the tensor is not of floating point numbers.
            OSError: it cannot be written.
        """
        dtype = _DTYPES.get(str(tensor.dtype).removeprefix("torch."))
        if dtype is None:
            raise ConversionError(f"{name} is stored as {tensor.dtype}: convert the checkpoint that is not quantised")
        size = tensor.numel() * tensor.element_size()
        is_full = self._size > 0 and self._size + size > self._max_shard_size
        if self._file is None or is_full or self._size % tensor.element_size():  # the last: it would lie askew
            self._next_shard()
        assert self._file is not None
        self._write_data(self._file, tensor)
        offsets = [self._size, self._size + size]
        self._entries[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        self._size += size
        self.num_bytes += size

    def finish(self) -> int:
        """Completes the last file, names all of them, and writes the index where there are several.

        Returns:
            the number of files.
        """
        self._complete_shard()
        num = len(self._shards)
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            file = "model.safetensors" if num == 1 else f"model-{number + 1:05}-of-{num:05}.safetensors"
            os.rename(self._temporary(number), self._folder / file)
            weight_map.update(dict.fromkeys(names, file))
        if num > 1:
            index = {"metadata": {"total_size": self.num_bytes}, "weight_map": dict(sorted(weight_map.items()))}
            (self._folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        return num

    def _next_shard(self) -> None:
        self._complete_shard()
        self._file = open(self._temporary(len(self._shards)), "xb")  # noqa: SIM115 - it stays open
        self._file.write(b"\0" * (8 + self._header_size))

    def _complete_shard(self) -> None:
        if self._file is None:
            return
        header = json.dumps({"__metadata__": {"format": "pt"}, **self._entries}, separators=(",", ":")).encode()
        assert len(header) <= self._header_size
        self._file.seek(0)
        self._file.write(self._header_size.to_bytes(8, "little") + header.ljust(self._header_size))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._shards.append(list(self._entries))
        self._file, self._entries, self._size = None, {}, 0

    def _temporary(self, number: int) -> Path:
        return self._folder / f"shard-{number}.unfinished"

    @staticmethod
    def _write_data(file: BinaryIO, tensor: torch.Tensor) -> None:
        import torch

        if tensor.numel():
            file.write(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
