"""Tables of a replay, for people: one a trace, and what they come to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pia.bench.labels import OURS, is_part
from pia.bench.replay_study import Row, Study
from pia.cli.terminal import new_console


def show_study(study: Study, machine: dict[str, Any]) -> None:
    """Prints all tables and remarks."""
    console = new_console()
    for name in dict.fromkeys(row["trace"] for row in study.rows):
        rows = [row for row in study.rows if row["trace"] == name]
        console.print(_table(name, rows), highlight=False)
        for line in _remarks(rows):
            console.print(line, markup=False)
        console.print()
    for note in study.notes:
        console.print(f"Note: {note}.", markup=False)
    console.print(
        "EDL: output tokens a decode forward. Times in microseconds, medians (p99: draft + update). "
        f"x plain: modelled, without the drafter's own time. On {machine['cpu']} ({machine['cores']} cores).",
        markup=False,
    )


def _table(name: str, rows: list[Row]) -> Any:
    from rich.table import Table

    first = rows[0]
    curves = list(dict.fromkeys(curve for row in rows for curve in row["speedup"]))
    table = Table(title=f"{name}: {first['requests']} requests, after {first['warm']} that warm")
    table.add_column("drafter", min_width=max(len(row["drafter"]) for row in rows))
    for column in ("budget", "EDL", "nodes", "draft", "update", "p99", "bytes/token"):
        table.add_column(column, justify="right")
    for curve in curves:
        table.add_column(f"x plain\n{curve}", justify="right")
    best = _best_by_budget(rows)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        edl = f"{row['edl']:.2f}"
        table.add_row(
            row["drafter"],
            str(row["budget"]),
            f"[bold]{edl}[/bold]" if row["edl"] == best[row["budget"], row["curve"]] else edl,
            *(f"{row[key]:.1f}" for key in ("drafted", "draft_us", "update_us")),
            f"{row['p99_us']:.0f}",
            "" if row["bytes_per_token"] is None else f"{row['bytes_per_token']:.0f}",
            *(f"{row['speedup'][curve]:.2f}" if curve in row["speedup"] else "" for curve in curves),
            style="green" if row["drafter"] == OURS else None,
            end_section=following is not None and following["drafter"] != row["drafter"],
        )
    return table


def _best_by_budget(rows: list[Row]) -> dict[tuple[Any, Any], float]:
    best: dict[tuple[Any, Any], float] = {}
    for row in rows:
        key = row["budget"], row["curve"]
        best[key] = max(best.get(key, 0.0), row["edl"])
    return best


def _remarks(rows: list[Row]) -> Iterator[str]:
    yield from _against_peers(rows)
    yield from _auto_against_fixed(rows)
    fixed = [row for row in rows if row["drafter"] == OURS and row["budget"] != "auto"]
    if fixed:
        yield from _details(max(fixed, key=lambda row: row["budget"]))


def _against_peers(rows: list[Row]) -> Iterator[str]:
    """PIA against the best of the others, and against the best of its own sources, budget by budget."""
    own = [row for row in rows if is_part(row["drafter"])]
    others = [row for row in rows if row["drafter"] != OURS and row not in own]
    for peers, called in ((others, "others"), (own, "single sources")):
        if parts := _against([row for row in rows if row["drafter"] == OURS and row["budget"] != "auto"], peers):
            yield f"pia against the best of the {called}: {', '.join(parts)}."


def _against(rows: list[Row], peers: list[Row]) -> list[str]:
    parts = []
    for ours in rows:
        best = max((row for row in peers if row["budget"] == ours["budget"]), key=lambda row: row["edl"], default=None)
        if best is not None:
            parts.append(f"{ours['edl'] / best['edl']:.2f} x {best['drafter']} at {ours['budget']}")
    return parts


def _auto_against_fixed(rows: list[Row]) -> Iterator[str]:
    """What choosing the budget step by step brings."""
    fixed = [row for row in rows if row["drafter"] == OURS and row["budget"] != "auto"]
    for auto in (row for row in rows if fixed and row["drafter"] == OURS and row["budget"] == "auto"):
        curve = auto["curve"]
        best = max(fixed, key=lambda row: row["speedup"][curve])
        yield (
            f"pia, {curve}: auto {auto['speedup'][curve]:.2f} x with {auto['drafted']:.1f} nodes a step; "
            f"best fixed {best['speedup'][curve]:.2f} x at {best['budget']}."
        )


def _details(row: Row) -> Iterator[str]:
    """How far drafts go, where they come from, and how well they know themselves."""
    shares = row["acceptance_by_depth"]
    depths = [depth for depth in (1, 2, 4, 8, 16, 32) if depth <= len(shares)]
    if depths:
        accepted = ", ".join(f"{shares[depth - 1]:.0%} at {depth}" for depth in depths)
        yield f"pia at {row['budget']}: forwards whose drafts were accepted so many tokens ahead: {accepted}."
    if row["by_source"]:
        sources = ", ".join(f"{name} {counts['accepted']:.2f}" for name, counts in row["by_source"].items())
        yield f"Accepted drafts a forward by source: {sources}."
    if row["calibration"]:
        bins = "; ".join(f"{part['predicted']:.3f} {part['real']:.3f}" for part in row["calibration"])
        yield f"Predicted and real acceptance by decile: {bins}."
