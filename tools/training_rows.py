"""Rows of weighted tokens, and their batches."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Row:
    """One training sequence.

    ``weights[i]`` belongs to ``ids[i]`` as a target: positive for likelihood, negative for unlikelihood, 0 for neither.
    """

    ids: list[int]
    weights: list[float]


def encode(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens."""
    given = list(texts)
    return list(tokenizer(given, add_special_tokens=False, verbose=False)["input_ids"]) if given else []


def make_batches(rows: Sequence[Row], max_tokens: int, rng: random.Random) -> list[list[Row]]:
    """Groups rows of like length into batches of at most ``max_tokens`` padded tokens, in random order."""
    jittered = sorted(rows, key=lambda row: len(row.ids) + rng.uniform(0, 24))  # new neighbours in every epoch
    batches: list[list[Row]] = []
    current: list[Row] = []
    longest = 0
    for row in jittered:
        longest = max(longest, len(row.ids))
        if current and longest * (len(current) + 1) > max_tokens:
            batches.append(current)
            current, longest = [], len(row.ids)
        current.append(row)
    if current:
        batches.append(current)
    rng.shuffle(batches)
    return batches
