"""Tables of a latency measurement, for people; shared by `pia bench` and `pia demo`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pia.cli.terminal import new_console, new_progress

if TYPE_CHECKING:
    from pia.bench.report import Report

_NAMES = {
    "generate": "generate",
    "prompt_lookup": "generate, prompt lookup",
    "plain": "PIA without drafts",
    "pia_cold": "PIA, cache empty at start",
    "pia": "PIA, cache warmed",
}


def measure_with_progress(
    model: Any,
    prompts: list[Any],
    new_cache: Any,
    *,
    rounds: int,
    lookahead_options: dict[str, Any],
    batch_size: int = 1,
    **options: Any,
) -> Report:
    """Runs the contenders of `pia bench` under a progress bar; arguments as for `pia.bench.latency.measure`."""
    from pia.bench.contenders import usual_contenders
    from pia.bench.latency import measure

    contenders = usual_contenders(new_cache, batch_size=batch_size, **lookahead_options)
    num_calls = -(-len(prompts) // batch_size)
    with new_progress() as progress:
        task = progress.add_task("warming up", total=rounds * num_calls * len(contenders))

        def on_answer(number: int, name: str) -> None:
            progress.update(task, advance=1, description=f"round {number + 1} of {rounds}")

        return measure(model, prompts, contenders, rounds=rounds, batch_size=batch_size, on_answer=on_answer, **options)


def show_report(report: Report, machine: dict[str, Any], *, json_only: bool = False) -> None:
    """Prints the table for people and, as the very last line, one JSON object."""
    figures = report.as_dict()
    if not json_only:
        _show_table(report, figures)
        print(f"On {machine_line(machine)}.")
    print(json.dumps({**figures, "machine": machine}))


def _show_table(report: Report, figures: dict[str, Any]) -> None:
    from rich.table import Table

    console = new_console()
    at_a_time = "one request at a time" if figures["batch"] == 1 else f"batches of {figures['batch']}"
    table = Table(title=f"{figures['questions']} prompts, {_plural(figures['rounds'], 'round')}, {at_a_time}")
    table.add_column("")
    for column in ("tokens/s", "against generate", "tokens a forward", "same output"):
        table.add_column(column, justify="right")
    for name, speed in figures["tokens_per_s"].items():
        table.add_row(_NAMES[name], f"{speed:.1f}", *_row(report, figures, name))
    console.print(table)
    for line in _remarks(report, figures):
        console.print(line)


def machine_line(machine: dict[str, Any]) -> str:
    """The machine in a sentence."""
    parts = [
        f"{machine['cpu']} ({_plural(machine['cores'], 'core')}, {_plural(machine['threads'], 'thread')})",
        machine["gpu"],
    ]
    parts += [f"torch {machine['torch']}", f"transformers {machine['transformers']}"]
    parts += [machine.get("dtype"), machine.get("device")]
    return ", ".join(part for part in parts if part)


def _row(report: Report, figures: dict[str, Any], name: str) -> list[str]:
    stats = report.stats(name)
    same = figures["identical_by_contender"].get(name)
    return [
        f"{report.ratio(name, 'generate'):.2f} x",
        f"{stats.edl:.2f}" if stats else "",
        f"{same} of {figures['questions']}" if same is not None else "(reference)",
    ]


def _remarks(report: Report, figures: dict[str, Any]) -> list[str]:
    ratios, calm = figures["ratio"], figures["ratio_nonrepeating"]
    lines = [f"PIA warmed runs at {_ratio_line(ratios)} (all tokens by all time; median round)."]
    if calm["pia_over_generate"] is not None:
        lines.append(f"On the {figures['nonrepeating']} answers that repeat no 8-gram: {_ratio_line(calm)}.")
    lines.append(_draft_remark(figures))
    stats = report.stats("pia")
    if stats is not None and stats.mode != "tree":
        lines.append(f"Mode {stats.mode}: {stats.reason}")
    return lines


def _ratio_line(ratios: dict[str, float | None]) -> str:
    others = {"generate": "generate", "plain": "its own plain loop", "prompt_lookup": "prompt lookup"}
    given = ((ratios[f"pia_over_{name}"], label) for name, label in others.items())
    return ", ".join(f"{value:.2f} x {label}" for value, label in given if value is not None)


def _draft_remark(figures: dict[str, Any]) -> str:
    sources = ", ".join(f"{count} {name}" for name, count in sorted(figures["accepted_by_source"].items())) or "none"
    share = f"{figures['acceptance']:.0%}; {sources}"
    return (
        f"Drafted {figures['drafted']:,} tokens, accepted {figures['accepted']:,} ({share}); "
        f"draft, accept and keep take {figures['host_share']:.1%} of the decoding time."
    )


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
