"""Which converter a checkpoint needs. A new family is one file here, with `CONVERTERS`, and its name in `_FILES`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pia.errors import ConversionError
from pia.models.convert.converter import Converter

_FILES = ("baichuan", "baichuan13b", "internlm", "qwen", "chatglm", "glm10b", "llama_names")


def converters() -> Iterator[type[Converter]]:
    """All converters there are."""
    for file in _FILES:
        yield from importlib.import_module(f"pia.models.convert.{file}").CONVERTERS


def converter_for(source: Mapping[str, Any], folder: Path = Path(), *, is_chat: bool | None = None) -> Converter:
    """The converter of an original `config.json`.

    Args:
        source: the configuration.
        folder: where it lies.
        is_chat: see `Converter`.

    Raises:
        ConversionError: the model needs no conversion, or no converter knows it.
    """
    for converter in converters():
        if converter.recognises(source):
            return converter(source, folder, is_chat=is_chat)
    name = source.get("model_type") or ", ".join(source.get("architectures") or ()) or "without model_type"
    if _is_stock(source):
        raise ConversionError(f"a {name!r} model needs no conversion: Transformers loads it as it is")
    known = "; ".join(f"{converter.family} (becomes {converter.target})" for converter in converters())
    raise ConversionError(f"cannot convert a model of the kind {name!r}; what can be converted: {known}")


def _is_stock(source: Mapping[str, Any]) -> bool:
    """Whether Transformers has this model type itself; the same name with remote code counts as something else."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return source.get("model_type") in CONFIG_MAPPING_NAMES and "AutoConfig" not in (source.get("auto_map") or {})
