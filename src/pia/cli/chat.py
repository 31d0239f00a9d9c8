"""Talk with a model. Its draft cache lives across turns, so what was said once comes faster again.

Ctrl-C stops an answer and keeps the conversation; Ctrl-D or /exit ends it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from pia.cli import options
from pia.errors import CacheFileError, ModelError, PiaError, PromptError

HELP = "talk with a model"
_COMMANDS = "/reset forgets the conversation, /stats shows statistics, /exit (or Ctrl-D) ends"
_LEAST_ANSWER = 64
"""Room, in tokens, that an answer shall have before old turns are dropped for it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `pia chat`."""
    options.add_model(parser)
    parser.add_argument("--system", metavar="TEXT", help="system message")
    options.add_length(parser, 512)
    options.add_sampling(parser)
    options.add_drafting(parser)
    options.add_recording(parser)
    parser.add_argument("--save-cache", metavar="FILE", help="save the draft cache here at the end")
    parser.add_argument("--show-drafts", action="store_true", help="mark accepted drafts also in a pipe")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs `pia chat`."""
    from pia.cli.loading import load_model

    if args.save_cache and not Path(args.save_cache).parent.is_dir():
        raise CacheFileError(f"can't save to {args.save_cache}: there is no folder {Path(args.save_cache).parent}")
    model, tokenizer = load_model(args.model, args.dtype, args.device)
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(f"{args.model} has no chat template; use pia generate {args.model} --prompt TEXT")
    lookahead = options.new_lookahead(args)
    lookahead.bind(tokenizer)
    if args.seed is not None:
        import torch

        torch.manual_seed(args.seed)
    chat = Chat(model, tokenizer, lookahead, args)
    try:
        chat.talk()
    finally:
        if args.save_cache:
            lookahead.cache.save(args.save_cache)
    return 0


class Chat:
    """A conversation.

    Args:
        model: answers.
        tokenizer: has a chat template.
        lookahead: its cache learns every answer.
        args: options of `pia chat`.
    """

    def __init__(self, model: Any, tokenizer: Any, lookahead: Any, args: argparse.Namespace) -> None:
        from pia.cli.terminal import new_painter

        self._model = model
        self._tokenizer = tokenizer
        self._lookahead = lookahead
        self._system = [{"role": "system", "content": args.system}] if args.system else []
        self._turns: list[dict[str, str]] = []
        self._all_stats: list[Any] = []
        self._max_new_tokens: int = args.max_new_tokens
        self._sampling = options.sampling_kwargs(args)
        self._painter = new_painter()
        self._shows_drafts = args.show_drafts or sys.stdout.isatty()

    def talk(self) -> None:
        """Takes turns until the user ends."""
        from pia.cli.terminal import note

        if sys.stdin.isatty():
            note(f"{_COMMANDS}; Ctrl-C stops an answer.")
            note(self._painter.legend)
        for line in _user_lines():
            text = line.strip()
            if text in ("/exit", "/quit"):
                return
            if text.startswith("/"):
                self._command(text)
            elif text:
                self._turn(text)

    def _command(self, text: str) -> None:
        from pia.cli.terminal import note

        if text == "/reset":
            self._turns = []
            note("The conversation is forgotten; the draft cache is kept.")
        elif text == "/stats":
            from pia.decoding.stats import Stats

            note(f"{Stats.total(self._all_stats)!r}\n{self._lookahead.cache!r}")
        else:
            note(f"There is no command {text.split()[0]}: {_COMMANDS}.")

    def _turn(self, text: str) -> None:
        """Answers one message. A message that cannot be answered is taken back."""
        from pia.cli.terminal import note

        self._turns.append({"role": "user", "content": text})
        try:
            answer = self._answer(self._fit())
        except PiaError as error:
            self._turns.pop()
            note(str(error))
            return
        self._turns.append({"role": "assistant", "content": answer})

    def _answer(self, max_new_tokens: int) -> str:
        """Streams an answer; Ctrl-C ends it early."""
        from pia.text import stream

        texts: list[str] = []
        messages = self._system + self._turns
        kwargs = {"lookahead": self._lookahead, "max_new_tokens": max_new_tokens, **self._sampling}
        with suppress(KeyboardInterrupt), closing(stream(self._model, self._tokenizer, messages, **kwargs)) as steps:
            self._all_stats.append(self._lookahead.last_stats)
            for step in steps:
                for piece in step.pieces:
                    texts.append(piece.text)
                    sys.stdout.write(self._painter.paint(piece.text, piece.is_drafted and self._shows_drafts))
                sys.stdout.flush()
        sys.stdout.write(self._painter.end() + "\n")
        sys.stdout.flush()
        return "".join(texts)

    def _fit(self) -> int:
        """Drops the oldest turns until the conversation leaves room for an answer; returns the answer's length limit.

        Raises:
            PromptError: the last message alone is too long.
        """
        from pia.cli.terminal import note
        from pia.models.positions import context_length
        from pia.text import encode

        limit: int | None = context_length(self._model)
        if limit is None:
            return self._max_new_tokens
        wanted = min(self._max_new_tokens, _LEAST_ANSWER)
        turns, num_dropped = self._turns, 0
        while limit - (length := encode(self._tokenizer, self._system + turns).shape[1]) < wanted and len(turns) > 1:
            turns, num_dropped = turns[2:], num_dropped + 1
        if limit - length < wanted:
            raise PromptError(
                f"a message of {length} tokens leaves no room for an answer in a context of {limit}; shorten it"
            )
        if num_dropped:
            self._turns = turns
            note(f"The conversation outgrew the context of {limit} tokens: dropped the oldest {num_dropped} exchanges.")
        return min(self._max_new_tokens, limit - length)


def _user_lines() -> Iterator[str]:
    """Lines of the user's until the input ends. At a terminal there is a prompt, and Ctrl-C clears the line."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    with suppress(ImportError):
        import readline  # noqa: F401  # gives `input` a history and editing keys
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            print(file=sys.stderr)
        except EOFError:
            print()
            return
