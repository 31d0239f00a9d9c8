"""Files and folders that are replaced whole: whatever happens, what stands under a name is the old one or the new."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a new file for writing that takes the place of `path` once the block has ended well.

    Raises:
        OSError: If it can't be written; an old file is left as it was.
    """
    target = path.resolve()  # through a symbolic link, to the file it stands for
    temporary = temporary_beside(target)
    try:
        with open(temporary, "xb") as file:
            yield file
        put_in_place(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        _name(error, path)
        raise


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A new folder that takes the place of `path` once the block has ended well, and else is removed.

    Raises:
        OSError: If it can't be written; an old folder is left as it was.
    """
    target = path.resolve()
    temporary = temporary_beside(target)
    temporary.mkdir()
    try:
        yield temporary
        _put_folder_in_place(temporary, target)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _name(error, path)
        raise


def _name(error: BaseException, path: Path) -> None:
    """Says where, which a full disk does not."""
    if isinstance(error, OSError) and error.filename is None:
        error.filename = str(path)


def _put_folder_in_place(temporary: Path, target: Path) -> None:
    if target.exists() and any(target.iterdir()):
        old = target.with_name(f"{temporary.name}.old")
        os.rename(target, old)
        os.rename(temporary, target)
        shutil.rmtree(old)
    else:
        os.replace(temporary, target)


def temporary_beside(target: Path) -> Path:
    """A new name beside a file or folder that is to be replaced."""
    return target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")


def put_in_place(temporary: Path, target: Path) -> None:
    """Lets a finished file take the place of another, durably."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    if target.exists():
        shutil.copymode(target, temporary)
    os.replace(temporary, target)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Makes the new name durable. Not every file system can; the file itself is complete either way."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
