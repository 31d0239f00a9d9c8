"""Converting a whole checkpoint: read a tensor, repack it, write it, and put the new folder in place at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pia.drafting.atomic_file import replacing_folder
from pia.errors import ConversionError
from pia.models.convert.checkpoint import Checkpoint
from pia.models.convert.converter import Converter, Shape, read_json
from pia.models.convert.registry import converter_for
from pia.models.convert.shard_writer import ShardWriter
from pia.models.convert.stock_tokenizer import existing_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

DEFAULT_MAX_SHARD_SIZE = 4 * 10**9
"""Bytes."""

OnTensor = Callable[[str, int], None]


@dataclass(frozen=True)
class Conversion:
    """What was done."""

    family: str
    target: str
    num_tensors: int
    num_bytes: int
    num_shards: int
    dtype: str
    has_tokenizer: bool
    notes: list[str] = field(default_factory=list)


def plan(src: str | os.PathLike[str], *, is_chat: bool | None = None) -> tuple[Converter, Checkpoint]:
    """Looks at an original checkpoint: how it is converted, and where its weights are.

    Raises:
        ConversionError: it cannot be converted.
    """
    folder = Path(src).expanduser()
    if not folder.is_dir():
        raise ConversionError(f"there is no folder {folder}; the original checkpoint must lie on this machine")
    if not (folder / "config.json").exists():
        raise ConversionError(f"{folder} holds no model: there is no config.json in it")
    source = read_json(folder / "config.json")
    converter = converter_for(source, folder, is_chat=is_chat)
    if source.get("quantization_config") or source.get("quantization_bit"):
        raise ConversionError(f"{folder} holds quantised weights: convert the checkpoint that is not quantised")
    return converter, Checkpoint.find(folder)


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    max_shard_size: int = DEFAULT_MAX_SHARD_SIZE,
    is_chat: bool | None = None,
    overwrite: bool = False,
    on_tensor: OnTensor = lambda name, size: None,
) -> Conversion:
    """Writes a stock checkpoint that does what the original does.

    Nothing stands under the new name before all is there, and no more than one tensor is in memory (and one original
    file, where its format is the old one of PyTorch that cannot be read in parts).

    Args:
        src: folder of the original checkpoint.
        dst: new folder.
        dtype: of the new weights, such as "bfloat16"; as they are by default.
        max_shard_size: bytes of weights in a file.
        is_chat: whether a chat template comes along; by default if the original says that it is a chat model.
        overwrite: put the new folder in the place of an old model.
        on_tensor: told the name and the size in bytes of each original tensor.

    Raises:
        ConversionError: it cannot be converted, or the new folder's place is taken.
        OSError: a file cannot be read or written.
    """
    converter, checkpoint = plan(src, is_chat=is_chat)
    target = Path(dst).expanduser()
    _check_place(Path(src).expanduser(), target, overwrite)
    with replacing_folder(target) as folder:
        config = _stock_config(converter)
        shapes = _stock_shapes(config)
        tokenizer = _save_tokenizer(converter, folder)
        with ShardWriter(folder, frozenset(shapes), max_shard_size) as writer:
            weights_dtype = _convert_weights(converter, checkpoint, dict(shapes), writer, dtype, on_tensor)
            num_shards = writer.finish()
        _save_configs(converter, config, weights_dtype, folder)
    notes = [*converter.notes(), *_notes_on(tokenizer, config)]
    return Conversion(
        converter.family, converter.target, len(shapes), writer.num_bytes, num_shards, weights_dtype,
        tokenizer is not None, notes,
    )  # fmt: skip


def _check_place(src: Path, dst: Path, overwrite: bool) -> None:
    """Refuses a new folder that would harm something."""
    if not dst.exists():
        if not dst.absolute().parent.is_dir():
            raise ConversionError(f"cannot write {dst}: there is no folder {dst.absolute().parent}")
        return
    if not dst.is_dir():
        raise ConversionError(f"{dst} exists already, and is no folder")
    if dst.resolve() == src.resolve() or dst.resolve() in src.resolve().parents:
        raise ConversionError(f"{dst} is the original's own place; give another folder")
    if not any(dst.iterdir()):
        return
    if not overwrite:
        raise ConversionError(f"{dst} exists already and is not empty; --overwrite replaces it")
    if not (dst / "config.json").exists():
        raise ConversionError(f"{dst} holds something other than a model; remove it yourself if you do not need it")


def _stock_config(converter: Converter) -> Any:
    """The new configuration, filled up by Transformers."""
    from transformers import AutoConfig

    fields = dict(converter.config())
    architectures = fields.pop("architectures")
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    config.architectures = architectures
    return config


def _stock_shapes(config: Any) -> dict[str, Shape]:
    """Names and shapes of the tensors that the stock model asks for; no memory is taken for them."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ()) if config.tie_word_embeddings else set()
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}


def _convert_weights(
    converter: Converter,
    checkpoint: Checkpoint,
    wanted: dict[str, Shape],
    writer: ShardWriter,
    dtype: str | None,
    on_tensor: OnTensor,
) -> str:
    """Feeds all tensors through the converter, until none of those the stock model asks for is missing.

    Returns:
        the dtype of most of the weights.
    """
    due = converter.shapes()
    if checkpoint.names is not None:
        _check_complete(set(due) - checkpoint.names)
        for name in sorted(checkpoint.names - set(due)):
            _check_ignored(converter, name)
    sizes: dict[str, int] = {}

    def write(tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in tensors:
            shape = wanted.pop(name, None)
            assert shape == tuple(tensor.shape), f"{converter.family}: {name} {tuple(tensor.shape)} for {shape}"
            writer.add(name, tensor)
            kind = str(tensor.dtype).removeprefix("torch.")
            sizes[kind] = sizes.get(kind, 0) + tensor.numel() * tensor.element_size()

    for name, tensor in checkpoint.tensors():
        on_tensor(name, tensor.numel() * tensor.element_size())
        if name in due:
            write(converter.tensors(name, _checked(name, tensor, due.pop(name), dtype)))
        else:
            _check_ignored(converter, name)
        del tensor  # before the next one is read
    _check_complete(due)
    write(converter.finish())
    assert not wanted, f"{converter.family}: nothing was written for {sorted(wanted)[:5]}"
    return max(sizes, key=lambda kind: sizes[kind])


def _checked(name: str, tensor: torch.Tensor, shape: Shape, dtype: str | None) -> torch.Tensor:
    import torch

    if not tensor.is_floating_point():
        raise ConversionError(f"{name} is stored as {tensor.dtype}: convert the checkpoint that is not quantised")
    if tuple(tensor.shape) != shape:
        raise ConversionError(f"{name} has the shape {list(tensor.shape)}, but config.json calls for {list(shape)}")
    if dtype is None:
        return tensor
    converted = tensor.to(getattr(torch, dtype))
    if dtype == "float16" and not torch.isfinite(converted).all():
        raise ConversionError(f"{name} holds numbers too large for float16; give --dtype bfloat16 or float32")
    return converted


def _check_ignored(converter: Converter, name: str) -> None:
    if not converter.ignores(name):
        raise ConversionError(f"the tensor {name} does not belong to {converter.family}, or is there twice")


def _check_complete(missing: Any) -> None:
    names = sorted(missing)
    if names:
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise ConversionError(f"the checkpoint is incomplete: it lacks the tensor {names[0]}{others}")


def _save_tokenizer(converter: Converter, folder: Path) -> PreTrainedTokenizerFast | None:
    tokenizer = converter.tokenizer(converter.folder)
    if tokenizer is None:
        tokenizer = existing_tokenizer(converter.folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))
    return tokenizer


def _notes_on(tokenizer: PreTrainedTokenizerFast | None, config: Any) -> list[str]:
    if tokenizer is None:
        return ["the original has no tokenizer, so there is none"]
    if len(tokenizer) > config.vocab_size:
        return [f"the tokenizer has {len(tokenizer):,} tokens, but the model knows only {config.vocab_size:,} of them"]
    return []


def _save_configs(converter: Converter, config: Any, dtype: str, folder: Path) -> None:
    from transformers import GenerationConfig

    config.dtype = dtype
    config.save_pretrained(folder)
    GenerationConfig(**converter.generation_config()).save_pretrained(folder)
