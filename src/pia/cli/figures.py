"""Tables of a latency measurement, for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pia.bench.breakdown import PARTS
from pia.bench.by_source import source_cells
from pia.bench.labels import label_of
from pia.bench.machine import machine_line, plural
from pia.cli.terminal import new_console, new_progress

if TYPE_CHECKING:
    from pia.bench.contenders import Contender
    from pia.bench.report import Report
    from pia.bench.workload import Workload

_ONLY_IN_REPORT = ("contenders", "curve")
"""Too much for one line."""


def measure_with_progress(
    workload: Workload, contenders: Sequence[Contender], *, rounds: int, batch_size: int = 1, **options: Any
) -> Report:
    """Runs a measurement under a progress bar; arguments as for `pia.bench.latency.measure`."""
    from pia.bench.latency import measure

    num_calls = -(-len(workload.prompts) // batch_size)
    with new_progress() as progress:
        task = progress.add_task("warming up", total=rounds * num_calls * len(contenders))

        def on_answer(number: int, name: str) -> None:
            progress.update(task, advance=1, description=f"round {number + 1} of {rounds}")

        return measure(workload, contenders, rounds=rounds, batch_size=batch_size, on_answer=on_answer, **options)


def show_case(case: Mapping[str, Any]) -> None:
    """Prints the tables of a case and what is to be said of them."""
    console = new_console()
    console.print(_speed_table(case))
    if any(row["by_source"] for row in case["contenders"].values()):
        console.print(_source_table(case))
    if "roofline" in case:
        console.print(_step_table(case))
        console.print(_cost_table(case))
    for line in _remarks(case):
        console.print(line, markup=False)
    print(f"On {machine_line(case['machine'])}.")


def show_last_line(cases: Sequence[Mapping[str, Any]], files: Sequence[str]) -> None:
    """Prints the JSON object that ends every measurement: the first case's figures, and all of them as `cases`."""
    figures: dict[str, Any] = {**_line_of(cases[0])}
    if len(cases) > 1:
        figures["cases"] = [_line_of(case) for case in cases]
    if files:
        figures["files"] = list(files)
    print(json.dumps(figures))


def _line_of(case: Mapping[str, Any]) -> dict[str, Any]:
    figures = {name: value for name, value in case.items() if name not in _ONLY_IN_REPORT}
    speeds = {name: row["tokens_per_s"] for name, row in case["contenders"].items()}
    figures["tokens_per_s_spread"] = {name: [speed["min"], speed["max"]] for name, speed in speeds.items()}
    figures["by_source"] = {name: row["by_source"] for name, row in case["contenders"].items() if row["by_source"]}
    figures["edl_by_contender"] = {name: row["edl"] for name, row in case["contenders"].items()}
    return figures


def _speed_table(case: Mapping[str, Any]) -> Any:
    from rich.table import Table

    at_a_time = "one request at a time" if case["batch"] == 1 else f"batches of {case['batch']}"
    kind = "REPLAY: " if case["is_replay"] else ""
    size = f"{case['questions']} prompts, {plural(case['rounds'], 'round')}, {at_a_time}"
    table = Table(title=f"{kind}{case['model']}, {case['prompt_set']}: {size}")
    table.add_column("", no_wrap=True)
    for column in ("tokens/s", "slowest to fastest", "against generate", "tokens a forward", "same output"):
        table.add_column(column, justify="right")
    for row in case["contenders"].values():
        table.add_row(row["label"], *_speed_row(case, row))
    return table


def _speed_row(case: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    speed, same = row["tokens_per_s"], row["identical"]
    return [
        f"{speed['median']:.1f}",
        f"{speed['min']:.1f}-{speed['max']:.1f}",
        f"{row['over_generate']:.2f} x",
        "" if row["edl"] is None else f"{row['edl']:.2f}",
        f"{same} of {case['questions']}" if same is not None else "(reference)",
    ]


def _source_table(case: Mapping[str, Any]) -> Any:
    from rich.table import Table

    names, rows = source_cells(case["contenders"].values())
    table = Table(title="Accepted tokens a forward, of nodes drafted, by source")
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _step_table(case: Mapping[str, Any]) -> Any:
    from rich.table import Table

    table = Table(title="A decode step, ms")
    table.add_column("", no_wrap=True)
    for column in ("whole", *PARTS):
        table.add_column(column, justify="right")
    for row in case["contenders"].values():
        parts = [f"{row['steps']['ms'][part]:.3f}" if row["steps"] else "" for part in PARTS]
        whole = "" if row["step_ms"] is None else f"{row['step_ms']:.3f}"
        table.add_row(row["label"], whole, *parts)
    return table


def _cost_table(case: Mapping[str, Any]) -> Any:
    """What is paid before and beside the steps."""
    from rich.table import Table

    table = Table(title="Beside the steps")
    table.add_column("", no_wrap=True)
    for column in ("engine", "set-up, s", "first token, ms", "memory, MB"):
        table.add_column(column, justify="right")
    for row in case["contenders"].values():
        memory = row["peak_memory_bytes"]
        shown = "" if memory is None else f"{memory / 1e6:.1f}"
        first = f"{row['first_token_ms']['median']:.1f}"
        table.add_row(row["label"], row["engine"], f"{row['setup_s']['first']:.2f}", first, shown)
    return table


def _remarks(case: Mapping[str, Any]) -> list[str]:
    ratios, calm, ours = case["ratio"], case["ratio_nonrepeating"], case["contenders"]["pia"]
    lines = [f"{label_of(name)}: not here, {reason}." for name, reason in case["missing"].items()]
    if case["is_replay"]:
        lines.append(f"A REPLAY: {case['label']}.")
    lines.append(f"PIA warmed runs at {_ratio_line(ratios)} (all tokens by all time; median round).")
    if calm["pia_over_generate"] is not None:
        lines.append(f"On the {case['nonrepeating']} answers that repeat no 8-gram: {_ratio_line(calm)}.")
    lines.append(_draft_remark(case))
    if case.get("roofline"):
        lines.append(_roofline_remark(case["roofline"]))
    if ours["mode"] != "tree":
        lines.append(f"Mode {ours['mode']}: {ours['reason']}")
    if ours["engine_reason"]:
        lines.append(f"Engine {ours['engine']}: {ours['engine_reason']}")
    return lines


def _ratio_line(ratios: Mapping[str, float | None]) -> str:
    others = {"generate": "generate", "plain": "its own plain loop", "prompt_lookup": "prompt lookup"}
    given = ((ratios[f"pia_over_{name}"], label) for name, label in others.items())
    return ", ".join(f"{value:.2f} x {label}" for value, label in given if value is not None)


def _draft_remark(case: Mapping[str, Any]) -> str:
    sources = ", ".join(f"{count} {name}" for name, count in sorted(case["accepted_by_source"].items())) or "none"
    share = f"{case['acceptance']:.0%}; {sources}"
    return (
        f"Drafted {case['drafted']:,} tokens, accepted {case['accepted']:,} ({share}); "
        f"draft, accept and keep take {case['host_share']:.1%} of the decoding time."
    )


def _roofline_remark(line: Mapping[str, Any]) -> str:
    shares = line["share_of_step"]
    reached = ", ".join(f"{label_of(name)} {share:.1%}" for name, share in shares.items() if share is not None)
    return (
        f"A plain step reads {line['bytes'] / 1e6:.1f} MB, at {line['bandwidth_gb_s']:.1f} GB/s at least "
        f"{line['floor_ms']:.3f} ms; of that roofline reach: {reached}."
    )
