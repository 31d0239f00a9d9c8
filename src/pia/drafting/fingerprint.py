"""A tokenizer's fingerprint: equal for tokenizers that give a token id the same meaning."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A stable hash over a tokenizer's vocabulary and its added tokens.

    It does not depend on the process, the order of insertion, the library's version, or on options that leave the
    meaning of ids alone (padding side, chat template, ...).

    Args:
        tokenizer: A Transformers tokenizer, or anything with `get_vocab() -> dict[str, int]`.

    Returns:
        32 hexadecimal digits.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    entries = {(int(token_id), str(token)) for token, token_id in tokenizer.get_vocab().items()}
    entries |= {(int(token_id), str(token)) for token_id, token in added.items()}
    return _digest(sorted(entries))


def tokenizer_vocab_size(tokenizer: Any) -> int:
    """One more than the highest token id: ids may have gaps, so this can be more than `len(tokenizer)`."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=-1))


def _digest(entries: Iterable[tuple[int, str]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for token_id, token in entries:
        text = token.encode("utf-8", "surrogatepass")
        digest.update(b"%d:%d:" % (token_id, len(text)))
        digest.update(text)
    return digest.hexdigest()
