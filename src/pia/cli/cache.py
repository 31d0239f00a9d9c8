"""Build, inspect and merge draft caches and corpora. Each belongs to one tokenizer.

A draft cache goes on learning from what is generated. A corpus is read-only and may be larger than memory: documents, a
code base. Use one with `pia generate --corpus NAME=FILE`, or attach it by DraftCache.attach.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pia.cli import corpus_build, options
from pia.cli.text_files import sources_of, total_bytes
from pia.errors import CacheFileError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pia.cli.text_files import TextSource

HELP = "build, inspect and merge draft caches"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `pia cache`."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    _add_build(
        actions.add_parser("build", help="learn texts: earlier answers, documents, code", description=build.__doc__)
    )
    info_parser = actions.add_parser("info", help="say what a cache holds", description=info.__doc__)
    info_parser.add_argument("file", metavar="FILE")
    info_parser.add_argument("--json", action="store_true", help="print one JSON line")
    info_parser.set_defaults(run=info)
    verify_parser = actions.add_parser("verify", help="look for damage in all of a file", description=verify.__doc__)
    verify_parser.add_argument("file", metavar="FILE")
    verify_parser.set_defaults(run=verify)
    merge_parser = actions.add_parser("merge", help="put several caches into one", description=merge.__doc__)
    merge_parser.add_argument("out", metavar="OUT")
    merge_parser.add_argument("files", metavar="FILE", nargs="+")
    merge_parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    merge_parser.set_defaults(run=merge)


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", help="the file to write; a corpus if its name ends in .corpus")
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="text, one text a line; JSON lines; or a folder, each text file one text",
    )
    parser.add_argument("--tokenizer", required=True, metavar="MODEL", help="the model that will use the cache")
    parser.add_argument("--corpus", action="store_true", help="write a corpus, whatever the name")
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
    """Learn texts and save what was learned.

    Texts are streamed, so files may be larger than memory. In a draft cache each text ends with the tokenizer's
    end-of-text token; in a corpus it does not, as documents are quoted in answers that go on. Of a folder all text
    files are read, however deep, but not those whose names begin with a dot.
    """
    _require_new(args.out, args.force)
    sources = sources_of(args.files)
    total = total_bytes(sources)
    from pia.cli.loading import load_tokenizer

    corpus_build.use_all_cores()
    tokenizer = load_tokenizer(args.tokenizer)
    if corpus_build.is_wanted(args):
        return corpus_build.build(args, sources, tokenizer)
    from pia.cli.terminal import new_progress
    from pia.drafting.cache import DraftCache
    from pia.lookahead import Lookahead

    lookahead = Lookahead(DraftCache(max_bytes=args.max_mib << 20), namespace=args.namespace)
    with new_progress("{task.fields[texts]:,} texts") as progress:
        task = progress.add_task("learning", total=total, texts=0)
        num_tokens = lookahead.warm(tokenizer, _texts(args, sources, progress, task))
        num_texts = progress.tasks[0].fields["texts"]
    lookahead.cache.save(args.out)
    print(f"{args.out}: {num_texts:,} texts, {num_tokens:,} tokens, {_mib(Path(args.out).stat().st_size)} on disk")
    if lookahead.cache.num_tokens < num_tokens:
        print(f"The cache keeps {lookahead.cache.num_tokens:,} of these tokens; --max-mib {args.max_mib} bounds it.")
    return 0


def info(args: argparse.Namespace) -> int:
    """Say what a file holds and which tokenizer it belongs to."""
    from pia.drafting.corpus_file import is_corpus_file

    fields = _facts_of_corpus(args.file) if is_corpus_file(args.file) else _facts_of_cache(args.file)
    if args.json:
        print(json.dumps(fields))
    else:
        _show_info(fields)
    return 0


def verify(args: argparse.Namespace) -> int:
    """Read all of a file and compare its checksums."""
    from pia.drafting.cache_file import read_header
    from pia.drafting.corpus import Corpus
    from pia.drafting.corpus_file import is_corpus_file

    if is_corpus_file(args.file):
        with Corpus.open(args.file) as corpus:
            corpus.verify()
    else:
        read_header(args.file)  # a draft cache is checked whenever it is read
    print(f"{args.file}: no damage found")
    return 0


def _facts_of_corpus(file: str) -> dict[str, Any]:
    from pia.drafting.corpus import Corpus
    from pia.drafting.corpus_file import FORMAT_VERSION

    with Corpus.open(file) as corpus:
        return {
            "file": file,
            "kind": "corpus",
            "format": FORMAT_VERSION,
            "bytes": corpus.nbytes,
            "tokens": corpus.num_tokens,
            "sequences": corpus.num_sequences,
            "contexts": corpus.num_contexts,
            "vocab_size": corpus.vocab_size,
            "tokenizer_fingerprint": corpus.tokenizer_fingerprint,
            "shapes": corpus.header.shapes,
        }


def _facts_of_cache(file: str) -> dict[str, Any]:
    from pia.drafting.cache_file import read_header

    header = read_header(file)
    return {
        "file": file,
        "kind": "cache",
        "format": header.version,
        "bytes": Path(file).stat().st_size,
        "tokens": header.num_tokens,
        "sequences": sum(section.num_sequences for section in header.namespaces),
        "vocab_size": header.vocab_size,
        "tokenizer_fingerprint": header.tokenizer_fingerprint,
        "namespaces": {section.name: section.num_tokens for section in header.namespaces},
    }


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


def _texts(args: argparse.Namespace, sources: list[TextSource], progress: Any, task: Any) -> Iterator[str]:
    """All files' texts, with the progress bar kept up to date."""
    num_texts = 0
    for piece in corpus_build.read_all(args, sources, lambda size: progress.advance(task, size)):
        num_texts += piece.is_last
        progress.update(task, texts=num_texts)
        yield piece.text


def _require_new(path: str, force: bool) -> None:
    if Path(path).exists() and not force:
        raise CacheFileError(f"{path} exists already; choose another name, or replace it with --force")


def _show_info(fields: dict[str, Any]) -> None:
    from rich.table import Table

    from pia.cli.terminal import new_console

    table = Table(show_header=False, title=fields["file"], title_justify="left")
    table.add_row("format", f"{fields['format']} ({'corpus' if fields['kind'] == 'corpus' else 'draft cache'})")
    table.add_row("size", _mib(fields["bytes"]))
    table.add_row("texts", f"{fields['sequences']:,}")
    table.add_row("tokens", f"{fields['tokens']:,}")
    table.add_row("vocabulary", "not known" if fields["vocab_size"] is None else f"{fields['vocab_size']:,} token ids")
    table.add_row("tokenizer", fields["tokenizer_fingerprint"] or "not known")
    if "contexts" in fields:
        table.add_row("contexts", f"{fields['contexts']:,}")
    for name, num_tokens in fields.get("namespaces", {}).items():
        table.add_row(f"namespace {name!r}" if name else "without namespace", f"{num_tokens:,} tokens")
    new_console().print(table, markup=False)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.2f} MiB"
