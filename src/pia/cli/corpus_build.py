"""`pia cache build NAME.corpus`: texts become a corpus, whatever their size."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from pia.cli.text_files import OnBytes, Piece, TextSource, read_pieces, total_bytes
from pia.errors import PromptError

if TYPE_CHECKING:
    from pia.drafting.corpus import CorpusBuilder

SUFFIX = ".corpus"

_BATCH_PIECES = 256
_BATCH_LETTERS = 1 << 20


def is_wanted(args: argparse.Namespace) -> bool:
    """Whether a corpus shall be built, rather than a draft cache."""
    return bool(args.corpus) or str(args.out).endswith(SUFFIX)


def build(args: argparse.Namespace, sources: list[TextSource], tokenizer: Any) -> int:
    """Builds `args.out` from files."""
    from pia.cli.terminal import new_progress
    from pia.drafting.corpus import CorpusBuilder
    from pia.drafting.fingerprint import tokenizer_fingerprint, tokenizer_vocab_size

    start = perf_counter()
    with (
        CorpusBuilder(
            args.out,
            vocab_size=tokenizer_vocab_size(tokenizer),
            tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
            max_memory=args.max_mib << 20,
        ) as builder,
        new_progress("{task.fields[texts]:,} texts, {task.fields[tokens]:,} tokens") as progress,
    ):
        _learn(args, sources, tokenizer, builder, progress)
        if builder.num_tokens == 0:
            raise PromptError(f"there is no text in {', '.join(args.files)}")
        task = progress.add_task("writing", total=1.0, texts=builder.num_sequences, tokens=builder.num_tokens)
        header = builder.finish(lambda share: progress.update(task, completed=share))
    seconds, size = perf_counter() - start, Path(args.out).stat().st_size
    print(
        f"{args.out}: {header.num_sequences:,} texts, {header.num_tokens:,} tokens, {size / 2**20:,.2f} MiB on disk "
        f"({size / header.num_tokens:.0f} bytes a token), {header.num_tokens / seconds:,.0f} tokens/s"
    )
    return 0


def _learn(
    args: argparse.Namespace, sources: list[TextSource], tokenizer: Any, builder: CorpusBuilder, progress: Any
) -> None:
    task = progress.add_task("learning", total=total_bytes(sources), texts=0, tokens=0)
    for batch in _batches(read_all(args, sources, lambda size: progress.advance(task, size))):
        encoded = tokenizer([piece.text for piece in batch], add_special_tokens=False, verbose=False)["input_ids"]
        for piece, ids in zip(batch, encoded, strict=True):
            builder.extend(ids)
            if piece.is_last:
                builder.end_sequence()
        progress.update(task, texts=builder.num_sequences, tokens=builder.num_tokens)


def read_all(args: argparse.Namespace, sources: list[TextSource], on_bytes: OnBytes) -> Iterator[Piece]:
    """The texts of all files, one after the other."""
    for source in sources:
        yield from read_pieces(source, field=args.field, whole=args.whole, limit=args.limit, on_bytes=on_bytes)


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces in lists that are worth a call of the tokenizer, and small beside the memory we may use."""
    batch: list[Piece] = []
    num_letters = 0
    for piece in pieces:
        batch.append(piece)
        num_letters += len(piece.text)
        if num_letters >= _BATCH_LETTERS or len(batch) == _BATCH_PIECES:
            yield batch
            batch, num_letters = [], 0
    if batch:
        yield batch


def use_all_cores() -> None:
    """Lets the tokenizer use threads; call before it is loaded."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
