"""Qwen's `qwen.tiktoken`, a list of byte strings with ranks, becomes a stock tokenizer that gives the same ids."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import TYPE_CHECKING

from pia.errors import ConversionError
from pia.models.convert.converter import read_json
from pia.models.convert.merges import merges_of
from pia.models.convert.stock_tokenizer import stock_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How the original cuts a text into words: a fact of the model, without which the ids differ."""
_NUM_EXTRA = 205
_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(_NUM_EXTRA)))


def qwen_tokenizer(folder: Path) -> PreTrainedTokenizerFast | None:
    """The tokenizer of a folder with a `qwen.tiktoken`, or `None` where it has none.

    Raises:
        ConversionError: the file is damaged.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    if not (folder / "qwen.tiktoken").exists():
        return None
    ranks = read_ranks(folder / "qwen.tiktoken")
    vocab = {_visible(token): rank for token, rank in ranks.items()}
    merges = [(_visible(left), _visible(right)) for left, right in merges_of(ranks)]
    vocab |= {token: len(ranks) + i for i, token in enumerate(_SPECIAL_TOKENS)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))  # tiktoken looks up whole words first, too
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL_TOKENS])
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    return stock_tokenizer(tokenizer, {"eos_token": _SPECIAL_TOKENS[0], "pad_token": _SPECIAL_TOKENS[0]}, config)


def read_ranks(path: Path) -> dict[bytes, int]:
    """Reads a file of tokens in base64, one a line with its rank.

    Raises:
        ConversionError: it is damaged; ranks must be 0, 1, 2 ... without a gap.
    """
    try:
        pairs = [line.split() for line in path.read_bytes().splitlines() if line]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except (ValueError, binascii.Error):
        raise ConversionError(f"{path} is damaged: a line is not a token and its rank") from None
    if sorted(ranks.values()) != list(range(len(pairs))) or not ranks:
        raise ConversionError(f"{path} is damaged: the ranks have gaps")
    return ranks


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level encodings: printable ones for themselves, then from U+0100."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + hidden.index(byte)) for byte in range(256)]


_LETTERS = _byte_letters()


def _visible(token: bytes) -> str:
    return "".join(_LETTERS[byte] for byte in token)
