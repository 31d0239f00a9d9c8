"""Generate an answer to one prompt and stream it. Piped, the output is the plain text alone."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from pia.cli import options

HELP = "answer one prompt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `pia generate`."""
    options.add_model(parser)
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what to continue; - reads standard input")
    parser.add_argument("--chat", action="store_true", help="put the prompt through the model's chat template")
    parser.add_argument("--system", metavar="TEXT", help="system message (with --chat)")
    parser.add_argument(
        "--stop", action="append", type=options.text, metavar="TEXT", help="stop after this text (may be given again)"
    )
    parser.add_argument(
        "--predict", metavar="FILE", help="text file with the expected output, more or less, to draft from"
    )
    options.add_length(parser, 256)
    options.add_sampling(parser)
    options.add_drafting(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--show-drafts", action="store_true", help="mark accepted drafts also in a pipe")
    options.add_recording(output)
    output.add_argument("--stats", action="store_true", help="print statistics to standard error")
    output.add_argument("--json", action="store_true", help="print one JSON line: text, token_ids, stats ...")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs `pia generate`."""
    from pia.cli.files import read_text
    from pia.cli.loading import answer_room, load_model

    prompt = _prompt(args)
    predicted = None if args.predict is None else read_text(args.predict)
    model, tokenizer = load_model(args.model, args.dtype, args.device)
    lookahead = options.new_lookahead(args)
    max_new_tokens = answer_room(model, tokenizer, prompt, args.max_new_tokens)
    kwargs = {"max_new_tokens": max_new_tokens, "stop_strings": args.stop, "predicted_output": predicted}
    kwargs |= options.sampling_kwargs(args)
    if args.seed is not None:
        import torch

        torch.manual_seed(args.seed)
    if args.json:
        _print_json(model, tokenizer, prompt, lookahead, kwargs)
    else:
        _stream(model, tokenizer, prompt, lookahead, kwargs, show_drafts=args.show_drafts or sys.stdout.isatty())
    if args.stats:
        print(lookahead.last_stats, file=sys.stderr)
    return 0


def _prompt(args: argparse.Namespace) -> Any:
    text = sys.stdin.read().rstrip("\n") if args.prompt == "-" else args.prompt
    if not args.chat:
        return text
    system = [{"role": "system", "content": args.system}] if args.system else []
    return [*system, {"role": "user", "content": text}]


def _print_json(model: Any, tokenizer: Any, prompt: Any, lookahead: Any, kwargs: dict[str, Any]) -> None:
    from pia.text import generate

    result = generate(model, tokenizer, prompt, lookahead=lookahead, **kwargs)
    fields = {"text": result.text, "token_ids": result.token_ids, "finish_reason": result.finish_reason}
    print(json.dumps({**fields, "stats": result.stats.as_dict()}))


def _stream(
    model: Any, tokenizer: Any, prompt: Any, lookahead: Any, kwargs: dict[str, Any], *, show_drafts: bool
) -> None:
    """Writes text as it comes; what was written stays when Ctrl-C breaks in."""
    from pia.cli.terminal import new_painter
    from pia.text import stream

    painter = new_painter()
    try:
        for step in stream(model, tokenizer, prompt, lookahead=lookahead, **kwargs):
            for piece in step.pieces:
                sys.stdout.write(painter.paint(piece.text, piece.is_drafted and show_drafts))
            sys.stdout.flush()
    finally:
        sys.stdout.write(painter.end() + "\n")
        sys.stdout.flush()
