"""Records of parquet files and hub datasets, through the package `datasets` where it is installed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

from pia.errors import ShrinkError
from pia.ipad.data.records import Record, record_of

_SUFFIXES = (".txt", ".md", ".text", ".jsonl", ".ndjson", ".json", ".parquet", ".gz")


def parquet_records(path: str) -> Iterator[tuple[str, Record]]:
    """Rows of a parquet file.

    Raises:
        ShrinkError: `datasets` is missing, or cannot read the file.
    """
    datasets = _package(f"{path} is a parquet file, which")
    try:
        table = datasets.load_dataset("parquet", data_files=path, split="train")
    except Exception as error:  # the reader's own errors are of many kinds
        raise ShrinkError(f"{path}: this parquet file cannot be read ({error})") from error
    return _records(path, table)


def hub_records(name: str) -> Iterator[tuple[str, Record]]:
    """Rows of a dataset on the hub.

    Args:
        name: of the dataset, with `:split` behind it unless its split "train" is meant.

    Raises:
        ShrinkError: this is a file that is not there, `datasets` is missing, or the dataset cannot be had.
    """
    if name.lower().endswith(_SUFFIXES) or name.startswith((".", os.sep)) or name.count("/") > 1:
        raise ShrinkError(f"there is no file {name}")
    datasets = _package(f"there is no file {name}; if it is a dataset on the hub, that")
    dataset, _, part = name.partition(":")
    try:
        table = datasets.load_dataset(dataset, split=part or "train")
    except Exception as error:  # no such dataset, no network, no such split, a configuration is needed ...
        raise ShrinkError(f"there is no file {name}, and no dataset of this name can be had ({error})") from error
    return _records(name, table)


def _records(name: str, table: Iterable[Any]) -> Iterator[tuple[str, Record]]:
    for number, fields in enumerate(table, 1):
        where = f"{name}, row {number}"
        yield where, record_of(fields, where)


def _package(what: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise ShrinkError(f"{what} needs the package datasets (not installed here): pip install datasets") from None
    return datasets
