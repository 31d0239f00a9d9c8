"""The command line: one file a verb. What is heavy is imported inside the verbs, so that `pia --help` is instant."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from pia import __version__
from pia.cli import bench, cache, chat, convert, demo, env, generate, models, replay, shrink
from pia.cli import compile as compile_

VERBS = (demo, generate, chat, bench, replay, cache, compile_, convert, shrink, models, env)

_DESCRIPTION = """\
Painless Inference Acceleration: the model you have, the same output, fewer forward passes.

MODEL is a name on the Hugging Face Hub, a local folder, or `demo` (a small model that comes with PIA)."""


class Parser(argparse.ArgumentParser):
    """Refuses what it does not know with a single line, and never guesses abbreviations."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **kwargs, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parser() -> Parser:
    """The whole command line; each parsed result carries the verb to run as `args.run`."""
    parser = Parser(prog="pia", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"pia {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for verb in VERBS:
        name = verb.__name__.rpartition(".")[2]
        subparser = verbs.add_parser(name, help=verb.HELP, description=verb.__doc__)
        verb.add_arguments(subparser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        the exit code: 0, 1 for a fault of PIA's own, 2 for a mistake of the user's, 130 for Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a model may write what this terminal cannot show
    if os.environ.get("PIA_DEBUG"):
        return _run(argv)
    try:
        return _run(argv)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except BrokenPipeError:  # the reader has gone, as in `pia ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _complain(*_explain(error))


def _run(argv: Sequence[str] | None) -> int:
    try:
        args = build_parser().parse_args(argv)
        code: int = args.run(args)
    except SystemExit as stop:  # argparse has said why
        code = int(stop.code or 0)
    sys.stdout.flush()
    return code


def _explain(error: Exception) -> tuple[str, int]:
    """One line about an error, and the exit code."""
    from pia.errors import PiaError

    message = " ".join(str(error).split())
    if isinstance(error, PiaError):
        return message, 2
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or message}", 2
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory; try a smaller model, a shorter prompt or --dtype bfloat16", 2
    return f"{type(error).__name__}: {message} (a fault of PIA or its libraries: PIA_DEBUG=1 shows where)", 1


def _complain(message: str, code: int) -> int:
    try:
        sys.stdout.flush()
        print(f"pia: {message}", file=sys.stderr)
    except OSError:
        pass
    return code
