"""See it work: a small model that comes with PIA answers school mathematics, plainly and with LOOKAHEAD, in turns.

The model runs on the CPU and needs no network. It writes well and calculates badly: watch the speed, not the sums.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pia.cli import options

if TYPE_CHECKING:
    from pia.cli.terminal import Prose
    from pia.decoding.stats import Stats

HELP = "see it work on a small model that comes with PIA"
_MAX_NEW_TOKENS = 320
_INDENT = 7


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `pia demo`."""
    parser.add_argument(
        "--questions", "--limit", type=options.positive, default=20, metavar="N", help="how many of its 100 (20)"
    )
    parser.add_argument("--no-stream", action="store_true", help="show the figures only")
    parser.add_argument("--json", action="store_true", help="measure as `pia bench demo` does, one JSON line last")
    options.add_length(parser, _MAX_NEW_TOKENS)
    options.add_loading(parser)
    parser.set_defaults(run=run)


@dataclass
class Tally:
    """What both ways of decoding did so far."""

    plain: list[Stats] = field(default_factory=list)
    ours: list[Stats] = field(default_factory=list)
    num_identical: int = 0


def run(args: argparse.Namespace) -> int:
    """Runs `pia demo`."""
    from pia.cli.bench import demo_prompts
    from pia.cli.models import load_model, stay_offline

    stay_offline()
    prompts = demo_prompts(args.questions)
    if args.json:
        return _measure(args, prompts)
    from pia.cli.terminal import note

    note("Loading the demo model and measuring what its forwards cost ...")
    model, tokenizer = load_model("demo", args.dtype, args.device)
    demo = Demo(model, tokenizer, args.max_new_tokens)
    _show_opening(model, demo, show_text=not args.no_stream)
    tally = demo.run(prompts, show_text=not args.no_stream)
    _show_table(tally)
    return 0


class Demo:
    """The model with its two ways of decoding.

    Args:
        model: the demo model.
        tokenizer: its tokenizer.
        max_new_tokens: most tokens of an answer.
    """

    def __init__(self, model: Any, tokenizer: Any, max_new_tokens: int) -> None:
        import torch

        from pia.assets import demo_cache_path
        from pia.bench.contenders import warm_up
        from pia.cli.terminal import has_colour, new_painter
        from pia.drafting.cache import DraftCache
        from pia.lookahead import Lookahead

        self._model = model
        self._tokenizer = tokenizer
        self._options = {"max_new_tokens": max_new_tokens, "do_sample": False}
        self._plain = Lookahead(budget=0)
        self.lookahead = Lookahead(DraftCache.load(demo_cache_path()))
        self.painter = new_painter()
        self._colour = has_colour(sys.stdout)
        for lookahead in (self._plain, self.lookahead):
            warm_up(model, torch.tensor([[1, 2, 3, 4]]), lookahead)

    def run(self, prompts: list[Any], *, show_text: bool) -> Tally:
        """Answers all questions in both ways."""
        tally = Tally()
        for number, prompt in enumerate(prompts if show_text else _tracked(prompts), 1):
            if show_text:
                self._show_question(f"{number} of {len(prompts)}", prompt[0]["content"])
            self._answer_twice(prompt, tally, show_text)
        return tally

    def _answer_twice(self, prompt: Any, tally: Tally, show_text: bool) -> None:
        plain_ids = self._answer("plain", prompt, self._plain, show_text)
        tally.plain.append(self._plain.last_stats)  # type: ignore[arg-type]
        if show_text:
            self._remark(_pace(tally.plain[-1]))
        our_ids = self._answer("PIA", prompt, self.lookahead, show_text)
        tally.ours.append(self.lookahead.last_stats)  # type: ignore[arg-type]
        tally.num_identical += plain_ids == our_ids
        if show_text:
            same = "same output" if plain_ids == our_ids else "OUTPUT DIFFERS"
            self._remark(f"{_pace(tally.ours[-1])}, {tally.ours[-1].edl:.2f} a forward, {same}")

    def _answer(self, label: str, prompt: Any, lookahead: Any, show_text: bool) -> list[int]:
        from pia.text import stream

        prose = self._new_prose(label, is_ours=lookahead is self.lookahead) if show_text else None
        token_ids: list[int] = []
        for step in stream(self._model, self._tokenizer, prompt, lookahead=lookahead, **self._options):
            token_ids += step.step.token_ids
            if prose:
                prose.write(step.pieces)
        if prose:
            prose.end()
        return token_ids

    def _new_prose(self, label: str, *, is_ours: bool) -> Prose:
        from pia.cli.terminal import Prose, bold, dim, width

        heading = label.ljust(_INDENT)
        print(bold(heading, colour=self._colour) if is_ours else dim(heading, colour=self._colour), end="")
        is_dim = self._colour and not is_ours
        return Prose(sys.stdout, self.painter if is_ours else None, indent=_INDENT, width=width(), dim=is_dim)

    def _show_question(self, number: str, question: str) -> None:
        import textwrap

        from pia.cli.terminal import bold, width

        line = f"── {number} ".ljust(width(), "─")
        print(f"\n{bold(line, colour=self._colour)}\n{textwrap.fill(' '.join(question.split()), width())}\n")

    def _remark(self, text: str) -> None:
        from pia.cli.terminal import dim

        print(dim(" " * _INDENT + text, colour=self._colour), flush=True)


def _tracked(prompts: list[Any]) -> Iterator[Any]:
    """The prompts, under a progress bar."""
    from pia.cli.terminal import new_progress

    with new_progress() as progress:
        yield from progress.track(prompts, description="answering")


def _measure(args: argparse.Namespace, prompts: list[Any]) -> int:
    """The figures of `pia bench demo`, one round."""
    from pia.cli import bench

    line = ["demo", "--rounds", "1", "--questions", str(len(prompts)), "--max-new-tokens", str(args.max_new_tokens)]
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    dtype = "float32" if args.dtype == "auto" else args.dtype
    return bench.run(parser.parse_args([*line, "--dtype", dtype, "--device", args.device]))


def _show_opening(model: Any, demo: Demo, *, show_text: bool) -> None:
    from pia.bench.machine import describe_machine
    from pia.cli.figures import machine_line

    machine = describe_machine(model)
    print(f"{machine['model']}, on {machine_line(machine)}.")
    print(f"LOOKAHEAD starts with {demo.lookahead.cache!r}")
    if show_text:
        print(demo.painter.legend)


def _show_table(tally: Tally) -> None:
    from rich.table import Table

    from pia.cli.terminal import new_console
    from pia.decoding.stats import Stats

    plain, ours = Stats.total(tally.plain), Stats.total(tally.ours)
    table = Table(title="Plain decoding and LOOKAHEAD")
    table.add_column("")
    table.add_column("plain", justify="right")
    table.add_column("LOOKAHEAD", justify="right", style="bold green")
    for label, show in _ROWS.items():
        table.add_row(label, show(plain), show(ours))
    console = new_console()
    console.print()
    console.print(table)
    console.print(f"[bold]{ours.tokens_per_s / plain.tokens_per_s:.2f} x[/bold] the speed of plain decoding; ", end="")
    console.print(f"outputs identical: [bold]{tally.num_identical} of {len(tally.ours)}[/bold]")


def _pace(stats: Stats) -> str:
    return f"{stats.num_tokens} tokens in {stats.seconds:.2f} s: {stats.tokens_per_s:.0f} tokens/s"


_ROWS: dict[str, Callable[[Stats], str]] = {
    "tokens/s": lambda stats: f"{stats.tokens_per_s:.1f}",
    "tokens a forward (EDL)": lambda stats: f"{stats.edl:.2f}",
    "tokens": lambda stats: f"{stats.num_tokens:,}",
    "forwards": lambda stats: f"{stats.num_steps:,}",
    "drafted tokens": lambda stats: f"{stats.num_drafted:,}",
    "accepted of these": lambda stats: f"{stats.num_accepted:,}",
    "time in prefill": lambda stats: f"{stats.prefill_s:.2f} s",
    "time in draft": lambda stats: f"{stats.draft_s:.2f} s",
    "time in forward": lambda stats: f"{stats.forward_s:.2f} s",
    "time in accept": lambda stats: f"{stats.accept_s:.2f} s",
    "time in keep": lambda stats: f"{stats.keep_s:.2f} s",
}
"""Rows of the table, each from the statistics of one way of decoding."""
