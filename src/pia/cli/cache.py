"""Build, inspect and merge draft caches. A saved cache belongs to one tokenizer."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pia.cli import options
from pia.errors import CacheFileError

if TYPE_CHECKING:
    from collections.abc import Iterator

HELP = "build, inspect and merge draft caches"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `pia cache`."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    _add_build(actions.add_parser("build", help="learn texts, such as earlier answers", description=build.__doc__))
    info_parser = actions.add_parser("info", help="say what a cache holds", description=info.__doc__)
    info_parser.add_argument("file", metavar="FILE")
    info_parser.add_argument("--json", action="store_true", help="print one JSON line")
    info_parser.set_defaults(run=info)
    merge_parser = actions.add_parser("merge", help="put several caches into one", description=merge.__doc__)
    merge_parser.add_argument("out", metavar="OUT")
    merge_parser.add_argument("files", metavar="FILE", nargs="+")
    merge_parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    merge_parser.set_defaults(run=merge)


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", help="the cache file to write")
    parser.add_argument("files", metavar="FILE", nargs="+", help="text, one text a line, or JSON lines")
    parser.add_argument("--tokenizer", required=True, metavar="MODEL", help="the model that will use the cache")
    parser.add_argument("--field", metavar="NAME", help="field of a JSON line with the text (text, answer, ...)")
    parser.add_argument("--whole", action="store_true", help="a text file is one long text (code, a book)")
    parser.add_argument("--limit", type=options.positive, metavar="N", help="learn at most N texts of each file")
    parser.add_argument(
        "--max-mib", type=options.positive, default=1024, metavar="N", help="most memory, in MiB (1024)"
    )
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    options.add_namespace(parser)
    parser.set_defaults(run=build)


def build(args: argparse.Namespace) -> int:
    """Learn texts and save what was learned. Each text ends with the tokenizer's end-of-text token."""
    _require_new(args.out, args.force)
    total = sum(Path(file).stat().st_size for file in args.files)
    from pia.cli.models import load_tokenizer

    tokenizer = load_tokenizer(args.tokenizer)
    from pia.cli.terminal import new_progress
    from pia.drafting.cache import DraftCache
    from pia.lookahead import Lookahead

    lookahead = Lookahead(DraftCache(max_bytes=args.max_mib << 20), namespace=args.namespace)
    with new_progress("{task.fields[texts]:,} texts") as progress:
        task = progress.add_task("learning", total=total, texts=0)
        num_tokens = lookahead.warm(tokenizer, _texts(args, progress, task))
        num_texts = progress.tasks[0].fields["texts"]
    lookahead.cache.save(args.out)
    print(f"{args.out}: {num_texts:,} texts, {num_tokens:,} tokens, {_mib(Path(args.out).stat().st_size)} on disk")
    if lookahead.cache.num_tokens < num_tokens:
        print(f"The cache keeps {lookahead.cache.num_tokens:,} of these tokens; --max-mib {args.max_mib} bounds it.")
    return 0


def info(args: argparse.Namespace) -> int:
    """Say what a cache file holds and which tokenizer it belongs to."""
    from pia.drafting.cache_file import read_header

    header = read_header(args.file)
    fields = {
        "file": args.file,
        "format": header.version,
        "bytes": Path(args.file).stat().st_size,
        "tokens": header.num_tokens,
        "sequences": sum(section.num_sequences for section in header.namespaces),
        "vocab_size": header.vocab_size,
        "tokenizer_fingerprint": header.tokenizer_fingerprint,
        "orders": header.orders,
        "namespaces": {section.name: section.num_tokens for section in header.namespaces},
    }
    if args.json:
        print(json.dumps(fields))
    else:
        _show_info(fields)
    return 0


def merge(args: argparse.Namespace) -> int:
    """Put several caches of one tokenizer into a new one."""
    _require_new(args.out, args.force)
    from pia.cli.terminal import new_progress
    from pia.drafting.cache import DraftCache

    merged = DraftCache()
    with new_progress() as progress:
        for file in progress.track(args.files, description="merging"):
            merged.merge(DraftCache.load(file))
    merged.save(args.out)
    size = _mib(Path(args.out).stat().st_size)
    print(f"{args.out}: {merged.num_tokens:,} tokens of {len(args.files)} caches, {size} on disk")
    return 0


def _texts(args: argparse.Namespace, progress: Any, task: Any) -> Iterator[str]:
    """All files' texts, with the progress bar kept up to date."""
    from itertools import islice

    from pia.cli.files import read_texts

    num_texts = 0
    for file in args.files:
        texts = read_texts(file, field=args.field, whole=args.whole, on_bytes=lambda size: progress.advance(task, size))
        for num_texts, text in enumerate(islice(texts, args.limit), num_texts + 1):  # noqa: B020
            progress.update(task, texts=num_texts)
            yield text


def _require_new(path: str, force: bool) -> None:
    if Path(path).exists() and not force:
        raise CacheFileError(f"{path} exists already; choose another name, or replace it with --force")


def _show_info(fields: dict[str, Any]) -> None:
    from rich.table import Table

    from pia.cli.terminal import new_console

    namespaces = fields["namespaces"]
    table = Table(show_header=False, title=fields["file"], title_justify="left")
    table.add_row("format", str(fields["format"]))
    table.add_row("size", _mib(fields["bytes"]))
    table.add_row("texts", f"{fields['sequences']:,}")
    table.add_row("tokens", f"{fields['tokens']:,}")
    table.add_row("vocabulary", "not known" if fields["vocab_size"] is None else f"{fields['vocab_size']:,} token ids")
    table.add_row("tokenizer", fields["tokenizer_fingerprint"] or "not known")
    table.add_row("contexts of", ", ".join(map(str, fields["orders"])) + " tokens")
    for name, num_tokens in namespaces.items():
        table.add_row(f"namespace {name!r}" if name else "without namespace", f"{num_tokens:,} tokens")
    new_console().print(table, markup=False)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.2f} MiB"
