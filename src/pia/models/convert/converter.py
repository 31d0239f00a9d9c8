"""What a family brings to be converted: which configurations are its own, and what becomes of each tensor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pia.errors import ConversionError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

Shape = tuple[int, ...]


class Converter(ABC):
    """Converts one checkpoint of a family; the driver feeds it tensor by tensor, in any order.

    A family is a subclass in a file of its own, listed in `registry.py`.

    Args:
        source: the original `config.json`.

    Raises:
        ConversionError: the configuration lacks a field, or says something that the stock model cannot do.
    """

    family: ClassVar[str]
    """The name people know it by, as in messages."""
    target: ClassVar[str]
    """What it becomes, as in messages."""

    def __init__(self, source: Mapping[str, Any]) -> None:
        self.source = source

    @classmethod
    @abstractmethod
    def recognises(cls, source: Mapping[str, Any]) -> bool:
        """Whether an original `config.json` belongs to this family; must be false for stock configurations."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The new `config.json`, with `model_type` and `architectures`; the dtype is filled in by the driver."""

    @abstractmethod
    def shapes(self) -> dict[str, Shape]:
        """Name and shape of every tensor that the original checkpoint must hold."""

    @abstractmethod
    def tensors(self, name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """The new tensors that an original one becomes; its name and shape have been checked.

        Views are fine: the driver copies what it keeps.
        """

    def finish(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Tensors that are due once all have been seen."""
        return iter(())

    def ignores(self, name: str) -> bool:
        """Whether an original tensor is of no use: buffers that the model computes for itself."""
        return name.endswith("inv_freq")

    def tokenizer(self, folder: Path) -> PreTrainedTokenizerFast | None:
        """The tokenizer of the original folder in a stock form, or `None` where the folder holds none."""
        return None

    def generation_config(self, original: Mapping[str, Any]) -> dict[str, Any]:
        """The new `generation_config.json`.

        Args:
            original: the one of the original folder; empty where it has none.
        """
        kept = (
            "do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens",
            "bos_token_id", "eos_token_id", "pad_token_id",
        )  # fmt: skip
        return {name: original[name] for name in kept if original.get(name) is not None}

    def notes(self) -> list[str]:
        """What the user should know: limits that the original did not have."""
        return []

    def field(self, *names: str) -> Any:
        """A field of the original configuration, the first of these names that it has.

        Raises:
            ConversionError: it has none of them.
        """
        for name in names:
            if self.source.get(name) is not None:
                return self.source[name]
        raise ConversionError(f"config.json lacks {' or '.join(names)}, which {self.family} needs")
