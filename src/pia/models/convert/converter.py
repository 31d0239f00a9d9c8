"""What a family brings to be converted: which configurations are its own, and what becomes of each tensor."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pia.errors import ConversionError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

Shape = tuple[int, ...]


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds a JSON object.

    Raises:
        ConversionError: it is no JSON object.
        OSError: it cannot be read.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConversionError(f"{path} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise ConversionError(f"{path} is damaged: it holds no JSON object")
    return value


class Converter(ABC):
    """Converts one checkpoint of a family; the driver feeds it tensor by tensor, in any order.

    A family is a subclass in a file of its own, listed in `registry.py`.

    Args:
        source: the original `config.json`.
        folder: where the original lies; tokenizer and further configurations are read from it.
        is_chat: whether it is a model for chats; `None` asks the checkpoint.

    Raises:
        ConversionError: the configuration lacks a field, or says something that the stock model cannot do.
    """

    family: ClassVar[str]
    """The name people know it by, as in messages."""
    target: ClassVar[str]
    """What it becomes, as in messages."""

    def __init__(self, source: Mapping[str, Any], folder: Path = Path(), *, is_chat: bool | None = None) -> None:
        self.source = source
        self.folder = folder
        self._is_chat = is_chat

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

    @property
    def is_chat(self) -> bool:
        """Whether a chat template shall come along."""
        return self.says_chat() if self._is_chat is None else self._is_chat

    def says_chat(self) -> bool:
        """Whether the original folder tells that the model is one for chats."""
        return "chat_template" in self.read_json("tokenizer_config.json")

    def finish(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Tensors that are due once all have been seen."""
        return iter(())

    def ignores(self, name: str) -> bool:
        """Whether an original tensor is of no use: buffers that the model computes for itself."""
        return name.endswith("inv_freq")

    def tokenizer(self, folder: Path) -> PreTrainedTokenizerFast | None:
        """The tokenizer of the original folder in a stock form, or `None` where the folder holds none."""
        return None

    def generation_config(self) -> dict[str, Any]:
        """The new `generation_config.json`: what stock generation knows of the original one."""
        original = {**self.source, **self.read_json("generation_config.json")}
        kept = ("max_new_tokens", "repetition_penalty", "bos_token_id", "eos_token_id", "pad_token_id")
        sampling = ("do_sample", "temperature", "top_k", "top_p") if original.get("do_sample") else ()
        return {name: original[name] for name in (*kept, *sampling) if original.get(name) is not None}

    def notes(self) -> list[str]:
        """What the user should know: limits that the original did not have."""
        return []

    def read_json(self, name: str) -> dict[str, Any]:
        """A further JSON file of the original folder; empty where there is none.

        Raises:
            ConversionError: it is no JSON object.
        """
        return read_json(self.folder / name) if (self.folder / name).exists() else {}

    def read_remote_code(self, name: str) -> str:
        """The text of a file of the original's own code, for facts that stand nowhere else; it is never run."""
        path = self.folder / name
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def field(self, *names: str) -> Any:
        """A field of the original configuration, the first of these names that it has.

        Raises:
            ConversionError: it has none of them.
        """
        for name in names:
            if self.source.get(name) is not None:
                return self.source[name]
        raise ConversionError(f"config.json lacks {' or '.join(names)}, which {self.family} needs")
