"""Tiny tokenizers of the original kinds, trained on a few lines, for the tests of `pia convert`."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import regex
import sentencepiece

LINES = [
    "def area(r):\n    return 3.14 * r ** 2  # code",
    "你好，世界。今天天气很好，我们去公园散步吧。",  # noqa: RUF001
    "Numbers 12345 and 67.89, 2026-11-21",
    "emoji 😀🚀 family 👩‍👩‍👧",
    "  spaces   here\tand tabs \n\n  and lines",
    "The quick brown fox jumps over the lazy dog",
    "hello hello world people philosophy sop eop",
    "人工智能语言模型 生成文本",
    "aaaa aaaaaaa bbbb abababab",
    "It's we'll you're 'sure' I'd",
]
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PLAIN = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}
SENTENCEPIECES = {
    "baichuan": {**PLAIN, "add_dummy_prefix": False, "user_defined_symbols": ["<reserved_106>", "<reserved_107>"]},
    "llama": {**PLAIN, "split_digits": True},
    "internlm": {**PLAIN, "user_defined_symbols": ["<eoh>", "<eoa>", "<|User|>", "<|Bot|>"]},
    "yi": {**PLAIN, "add_dummy_prefix": False, "user_defined_symbols": ["▁▁", "▁▁▁▁", "ell"]},
    "chatglm": {"byte_fallback": True},  # normalised by NFKC, spaces collapsed
    "no-bytes": {"character_coverage": 0.98},
    "unigram": {"model_type": "unigram", "byte_fallback": True, "user_defined_symbols": ["ell"]},
}


def texts(num: int = 150) -> list[str]:
    """What tokenizers are compared on: the lines above, odd cases, and random mixtures of letters."""
    rng = np.random.RandomState(0)
    letters = list("abcdehlo  l你好世界\n\t😀12,<é")
    mixed = ["".join(rng.choice(letters, rng.randint(1, 40))) for _ in range(num)]
    spaces = ["", " ", "\n", "\n\n  x", " lead", "trail ", "\u3000全角 空"]
    return [*LINES, *spaces, "a", "ﬁ ① Å", "e\u0301", "\x01", "𠀀", "<eoh>x<eoa>", *mixed]


def write_sentencepiece(folder: Path, name: str) -> sentencepiece.SentencePieceProcessor:
    """Trains a `tokenizer.model` of a kind; the library's own processor reads it for comparison."""
    file = io.BytesIO()
    options = {"model_type": "bpe", "vocab_size": 420, "hard_vocab_limit": False, **SENTENCEPIECES[name]}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 20), model_writer=file, minloglevel=2, num_threads=1, **options
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(file.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())


def write_tiktoken(folder: Path, num_tokens: int = 300) -> dict[bytes, int]:
    """Trains a `qwen.tiktoken` by merging the most frequent pair until there are enough tokens."""
    words = Counter(word.encode() for line in LINES for word in regex.findall(WORDS, line))
    parts = {word: [bytes([byte]) for byte in word] for word in words}
    ranks = {bytes([byte]): rank for rank, byte in enumerate(np.random.RandomState(0).permutation(256).tolist())}
    while len(ranks) < num_tokens:
        pairs = Counter(pair for word, seq in parts.items() for pair in pairwise(seq))
        left, right = max(pairs, key=lambda pair: (pairs[pair], pair))
        ranks[left + right] = len(ranks)
        parts = {word: _merged(seq, left, right) for word, seq in parts.items()}
    folder.mkdir(parents=True, exist_ok=True)
    lines = [base64.b64encode(token) + f" {rank}\n".encode() for token, rank in ranks.items()]
    (folder / "qwen.tiktoken").write_bytes(b"".join(lines))
    return ranks


def _merged(seq: list[bytes], left: bytes, right: bytes) -> list[bytes]:
    merged: list[bytes] = []
    for part in seq:
        if merged and merged[-1] == left and part == right:
            merged[-1] = left + right
        else:
            merged.append(part)
    return merged


def write_json(path: Path, **fields) -> None:
    """Writes a JSON file."""
    path.write_text(json.dumps(fields))
