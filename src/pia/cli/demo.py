"""See it work: a small model that comes with PIA answers school mathematics, plainly and with LOOKAHEAD, in turns.

The model runs on the CPU and needs no network. It writes well and calculates badly: watch the speed, not the sums.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pia.cli import options

if TYPE_CHECKING:
    from pia.decoding.stats import Stats
    from pia.lookahead import Lookahead
    from pia.text import TextStep

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
    options.add_loading(parser, dtype="float32")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs `pia demo`."""
    from pia.cli.bench_prompts import demo_prompts
    from pia.cli.loading import load_model, stay_offline

    stay_offline()
    prompts = demo_prompts(args.questions)
    if args.json:
        return _measure(args, prompts)
    from pia.cli.terminal import note

    note("Loading the demo model and measuring what its forwards cost ...")
    model, tokenizer = load_model("demo", args.dtype, args.device)
    demo = Demo(model, tokenizer, args.max_new_tokens)
    screen = Silent() if args.no_stream else Screen()
    _show_opening(model, demo, screen)
    for number, prompt in enumerate(_tracked(prompts) if args.no_stream else prompts, 1):
        screen.question(f"{number} of {len(prompts)}", prompt[0]["content"])
        demo.answer(prompt, screen)
    _show_table(demo)
    return 0


class Demo:
    """The model with its two ways of decoding, and what came of them so far.

    Args:
        model: the demo model.
        tokenizer: its tokenizer.
        max_new_tokens: most tokens of an answer.
    """

    def __init__(self, model: Any, tokenizer: Any, max_new_tokens: int) -> None:
        import torch

        from pia.assets import demo_cache_path
        from pia.bench.contenders import warm_up
        from pia.drafting.cache import DraftCache
        from pia.lookahead import Lookahead

        self._model = model
        self._tokenizer = tokenizer
        self._options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False}
        self._plain = Lookahead(budget=0)
        self.lookahead = Lookahead(DraftCache.load(demo_cache_path()))
        for lookahead in (self._plain, self.lookahead):
            warm_up(model, torch.tensor([[1, 2, 3, 4]], device=model.device), lookahead)
        self.plain_stats: list[Stats] = []
        self.our_stats: list[Stats] = []
        self.num_identical = 0

    def answer(self, prompt: Any, screen: Silent) -> None:
        """Answers a question in both ways, one after the other."""
        plain_ids = screen.answer(self._stream(prompt, self._plain), is_ours=False)
        self.plain_stats.append(_last_stats(self._plain))
        screen.remark(_pace(self.plain_stats[-1]))
        our_ids = screen.answer(self._stream(prompt, self.lookahead), is_ours=True)
        self.our_stats.append(_last_stats(self.lookahead))
        self.num_identical += plain_ids == our_ids
        same = "same output" if plain_ids == our_ids else "OUTPUT DIFFERS"
        screen.remark(f"{_pace(self.our_stats[-1])}, {self.our_stats[-1].edl:.2f} a forward, {same}")

    def _stream(self, prompt: Any, lookahead: Lookahead) -> Iterator[TextStep]:
        from pia.text import stream

        return stream(self._model, self._tokenizer, prompt, lookahead=lookahead, **self._options)


class Silent:
    """A screen that shows nothing."""

    legend = ""

    def question(self, number: str, text: str) -> None:
        """Shows a question."""

    def remark(self, text: str) -> None:
        """Shows figures under an answer."""

    def answer(self, steps: Iterator[TextStep], *, is_ours: bool) -> list[int]:
        """Shows an answer as it comes; returns its tokens."""
        return [token_id for step in steps for token_id in step.step.token_ids]


class Screen(Silent):
    """The terminal, or a pipe: questions, plain answers faint, PIA's with the accepted drafts marked."""

    def __init__(self) -> None:
        from pia.cli.terminal import has_colour, new_painter, width

        self._painter = new_painter()
        self._colour = has_colour(sys.stdout)
        self._width = width()
        self.legend = self._painter.legend

    def question(self, number: str, text: str) -> None:
        """Shows a question."""
        import textwrap

        from pia.cli.terminal import bold

        line = f"── {number} ".ljust(self._width, "─")
        print(f"\n{bold(line, colour=self._colour)}\n{textwrap.fill(' '.join(text.split()), self._width)}\n")

    def remark(self, text: str) -> None:
        """Shows figures under an answer."""
        from pia.cli.terminal import dim

        print(dim(" " * _INDENT + text, colour=self._colour), flush=True)

    def answer(self, steps: Iterator[TextStep], *, is_ours: bool) -> list[int]:
        """Shows an answer as it comes; returns its tokens."""
        from pia.cli.terminal import Prose, bold, dim

        show_label = bold if is_ours else dim
        print(show_label(("PIA" if is_ours else "plain").ljust(_INDENT), colour=self._colour), end="")
        painter, is_faint = (self._painter, False) if is_ours else (None, self._colour)
        prose = Prose(sys.stdout, painter, indent=_INDENT, width=self._width, dim=is_faint)
        token_ids: list[int] = []
        try:
            for step in steps:
                token_ids += step.step.token_ids
                prose.write(step.pieces)
        finally:
            prose.end()
        return token_ids


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
    return bench.run(parser.parse_args([*line, "--dtype", args.dtype, "--device", args.device]))


def _show_opening(model: Any, demo: Demo, screen: Silent) -> None:
    from pia.bench.machine import describe_machine, machine_line

    machine = describe_machine(model)
    print(f"{machine['model']}, on {machine_line(machine)}.")
    print(f"LOOKAHEAD starts with {demo.lookahead.cache!r}")
    if screen.legend:
        print(screen.legend)


def _show_table(demo: Demo) -> None:
    from rich.table import Table

    from pia.cli.terminal import new_console
    from pia.decoding.stats import Stats

    plain, ours = Stats.total(demo.plain_stats), Stats.total(demo.our_stats)
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
    console.print(f"outputs identical: [bold]{demo.num_identical} of {len(demo.our_stats)}[/bold]")
    console.print(f"Both ran on the engine {ours.engine}: {ours.engine_reason}", markup=False, highlight=False)


def _last_stats(lookahead: Lookahead) -> Stats:
    stats = lookahead.last_stats
    assert stats is not None
    return stats


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
