"""The merges of a byte-pair encoding that is given as ranks of tokens, as SentencePiece and tiktoken do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

_Text = TypeVar("_Text", str, bytes)


def merges_of(ranks: Mapping[_Text, float]) -> list[tuple[_Text, _Text]]:
    """All pairs of tokens that make a token, in the order in which they are merged.

    Both libraries merge any two neighbours that together are a token, the token of lowest rank first; a list of merges
    does the same if it holds every way to split every token.

    Args:
        ranks: of each token; what is lower is merged earlier.
    """
    found = []
    for token, rank in ranks.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ranks and right in ranks:
                found.append((rank, ranks[left], ranks[right], left, right))
    found.sort(key=lambda pair: pair[:3])
    return [(left, right) for *_, left, right in found]
