"""Builds the draft cache that goes with the demo model: the tokens of GSM8K's training answers.

    python tools/build_demo_cache.py

The very last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable
from pathlib import Path

from rich.progress import track
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from demo_data import load_examples
from pia.drafting.cache import DraftCache
from pia.drafting.fingerprint import tokenizer_fingerprint, tokenizer_vocab_size
from training_rows import encode

REPO = Path(__file__).resolve().parents[1]
ASSETS = REPO / "src" / "pia" / "assets"
DEFAULT_DATA = REPO.parent / "shared" / "data" / "gsm8k_train.jsonl"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line; its defaults make the shipped cache."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="GSM8K training file (JSON lines)")
    parser.add_argument("--model", type=Path, default=ASSETS / "demo_model", help="folder with the tokenizer")
    parser.add_argument("--out", type=Path, default=ASSETS / "demo_cache.pia")
    parser.add_argument("--max-answers", type=int, help="learn only the first so many answers (for a smaller file)")
    return parser.parse_args(argv)


def build_cache(tokenizer: PreTrainedTokenizerBase, answers: Iterable[list[int]]) -> DraftCache:
    """A cache bound to the tokenizer that has learned each answer, with the end token after it."""
    cache = DraftCache(
        vocab_size=tokenizer_vocab_size(tokenizer), tokenizer_fingerprint=tokenizer_fingerprint(tokenizer)
    )
    end = tokenizer.eos_token_id
    for ids in answers:
        cache.insert([*ids, end], stop_ids=frozenset([end]))
    return cache


def main(argv: list[str] | None = None) -> int:
    """Builds and saves the cache, and says how large it is."""
    args = parse_args(argv)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    examples = load_examples(args.data)[: args.max_answers]
    answers = encode(tokenizer, (e.answer for e in examples))
    cache = build_cache(tokenizer, track(answers, description="learning answers"))
    partial = args.out.with_suffix(".partial")
    cache.save(partial)
    os.replace(partial, args.out)
    figures = {
        "num_answers": len(answers),
        "num_tokens": cache.num_tokens,
        "file_bytes": args.out.stat().st_size,
        "memory_bytes": cache.memory_usage,
    }
    print(f"{args.out}: {figures['file_bytes'] / 2**20:.1f} MiB from {len(answers)} answers")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
