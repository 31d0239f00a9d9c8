"""Saves and loads the models of a shrink: stock checkpoints, there whole or not at all."""

from __future__ import annotations

import contextlib
import copy
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pia.drafting.atomic_file import replacing, replacing_folder
from pia.errors import ShrinkError
from pia.ipad.kernels import kernels_of


def save_model(model: Any, tokenizer: Any, path: Path, dtype: torch.dtype) -> None:
    """Writes weights, configuration, generation configuration and tokenizer.

    Args:
        model: in any dtype; it is not changed.
        tokenizer: of the model.
        path: of the folder; what stood there is replaced at the end.
        dtype: of the weights in the file.

    Raises:
        OSError: it cannot be written; what stood there still stands.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = model if model.dtype == dtype else copy.deepcopy(model).to(dtype)
    with replacing_folder(path) as folder, _disk_errors(path):
        saved.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Makes an `OSError` of what the writers in Rust (safetensors, tokenizers) raise in its place."""
    try:
        yield
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if isinstance(error, OSError) or found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


def load_model(path: Path, like: Any) -> Any:
    """Loads the model of a round in float32, on the device and with the kernels of another one."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **kernels_of(like))
    return model.to(like.device).eval()


def publish(source: Path, target: Path) -> None:
    """Copies a checkpoint into a folder that holds other things too.

    The configuration comes last, as without it the folder is no model: half of one is never taken for a whole.

    Raises:
        OSError: it cannot be written.
    """
    names = sorted(child.name for child in source.iterdir() if child.is_file())
    for child in source.iterdir():
        if child.is_dir():  # such as that of further chat templates
            shutil.copytree(child, target / child.name, dirs_exist_ok=True)
    (target / "config.json").unlink(missing_ok=True)
    for old in target.glob("*.safetensors*"):
        old.unlink()
    for name in sorted(names, key=lambda name: name == "config.json"):
        with open(source / name, "rb") as old_file, replacing(target / name) as file:
            shutil.copyfileobj(old_file, file)


def check_room(folder: Path, num_bytes: int) -> None:
    """Refuses to begin what the disk cannot hold.

    Args:
        folder: where it will be written; exists.
        num_bytes: that will be.

    Raises:
        ShrinkError: there is less.
    """
    usage = os.statvfs(folder)
    free = usage.f_bavail * usage.f_frsize
    if free < num_bytes:
        raise ShrinkError(
            f"the disk of {folder} has {free / 2**30:.2f} GiB left, and this shrink may write {num_bytes / 2**30:.2f} "
            "GiB: free some, or give --out on another disk"
        )
