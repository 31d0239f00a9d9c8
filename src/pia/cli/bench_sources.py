"""`pia bench --compare-sources`: each source of drafts alone, all in one tree, and a peer, in one run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pia.cli import options
from pia.config import SOURCES
from pia.errors import UnsupportedOptionError

if TYPE_CHECKING:
    from pia.bench.source_comparison import Budget
    from pia.bench.workload import Workload
    from pia.cli.bench_cases import BenchCase

_FORBIDDEN = ("replay", "shape", "report", "assistant", "warm", "field")
_WORST_PROMPTS = 20


def add_comparison(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the comparison."""
    group = parser.add_argument_group("comparison of the sources of drafts")
    group.add_argument(
        "--compare-sources", action="store_true",
        help="each source alone, all in one tree, and Token Recycling as published, from an empty cache",
    )  # fmt: skip
    group.add_argument(
        "--budgets", type=options.budgets, metavar="N,N", help="draft nodes a step, or auto (16,64,auto)"
    )
    group.add_argument("--forget", action="store_true", help="empty the cache before each prompt, not only each round")


def check_no_comparison(args: argparse.Namespace) -> None:
    """Refuses options of the comparison where there is none.

    Raises:
        UnsupportedOptionError: the message names the option.
    """
    for name in ("budgets", "forget"):
        if getattr(args, name):
            raise UnsupportedOptionError(f"--{name} is for a comparison of sources: --compare-sources")


def run_comparison(args: argparse.Namespace, decoding: dict[str, Any]) -> int:
    """Compares, prints tables, and ends with one JSON line.

    Args:
        args: the command line.
        decoding: arguments of `generate` that say how tokens are chosen.
    """
    from pia.bench.source_comparison import WORST_TEMPERATURE
    from pia.cli.bench_cases import model_cases

    _check(args)
    results = []
    for case in model_cases(args, decoding):
        result = _compare(case, args)
        if not args.json:
            _show(result)
        if not result["is_sampled"]:
            result["worst_case"] = _worst_case(case, args)
            if not args.json:
                _show_table(f"text drawn at temperature {WORST_TEMPERATURE:g}", result["worst_case"])
        results.append(result)
    print(json.dumps(results[0] if len(results) == 1 else {**results[0], "cases": results}))
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.model is None:
        raise UnsupportedOptionError("name a MODEL whose sources of drafts are to be compared")
    for name in _FORBIDDEN:
        if getattr(args, name) not in (None, False, []):
            raise UnsupportedOptionError(f"a comparison of sources takes no --{name}")
    if args.budget != "auto":
        raise UnsupportedOptionError("a comparison of sources takes --budgets, such as --budgets 16,auto, not --budget")
    if tuple(args.sources) != SOURCES:
        raise UnsupportedOptionError("a comparison of sources takes them all; leave out --sources")


def _compare(case: BenchCase, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of a prompt set."""
    from pia.bench.machine import describe_machine
    from pia.bench.source_comparison import BUDGETS

    workload = case.workload
    about = {"model": case.model_name, "prompt_set": case.prompt_set, "machine": describe_machine(workload.model)}
    return {**about, **_measure(workload, args, args.budgets or BUDGETS)}


def _worst_case(case: BenchCase, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of text that nothing can foresee."""
    from pia.bench.source_comparison import WORST_TEMPERATURE

    workload, most = case.workload, slice(0, _WORST_PROMPTS)
    drawn = {"do_sample": True, "temperature": WORST_TEMPERATURE}
    hot = replace(workload, prompts=workload.prompts[most], max_new_tokens=workload.max_new_tokens[most], options=drawn)
    return {"temperature": WORST_TEMPERATURE, **_measure(hot, args, ["auto"])}


def _measure(workload: Workload, args: argparse.Namespace, budgets: Sequence[Budget]) -> dict[str, Any]:
    from pia.bench.source_comparison import PLAIN, SourceComparison, usual_ways
    from pia.cli.figures import measure_with_progress

    is_sampled = bool(workload.options.get("do_sample"))
    lookahead_options = {"max_depth": args.max_depth, "engine": args.engine}
    comparison = SourceComparison(usual_ways(), budgets, forgets=args.forget, **lookahead_options)
    report = measure_with_progress(
        workload, comparison.contenders(is_sampled=is_sampled), rounds=args.rounds, batch_size=args.batch,
        seed=args.seed or 0, reference=PLAIN if is_sampled else "generate",
    )  # fmt: skip
    return comparison.result(workload, report)


def _show_table(title: str, result: Mapping[str, Any]) -> None:
    from pia.cli.terminal import new_console

    new_console().print(_table(title, result), highlight=False)


def _show(result: Mapping[str, Any]) -> None:
    from pia.bench.machine import machine_line
    from pia.cli.terminal import new_console

    console = new_console()
    _show_table(f"{result['model']}, {result['prompt_set']}", result)
    for name, against in result["mix_over_best"].items():
        mix = result["contenders"][name]
        console.print(
            f"At {mix['budget']}, {mix['label']}: {against['edl']:.2f} x the tokens a forward of the best single "
            f"source ({against['best']}), {against['speed']:.2f} x the speed of the fastest ({against['fastest']}).",
            markup=False,
        )
    start = "each prompt" if result["forgets"] else "each round"
    console.print(
        f"The cache is empty at the start of {start}. nodes, window: fed a forward; by source: accepted a forward.",
        markup=False,
    )
    print(f"On {machine_line(result['machine'])}.")


def _table(title: str, result: Mapping[str, Any]) -> Any:
    from rich.table import Table

    from pia.bench.by_source import source_names
    from pia.bench.machine import plural

    rows = list(result["contenders"].values())
    names = source_names(rows)
    about = f"{result['questions']} prompts, {plural(result['rounds'], 'round')}"
    table = Table(title=f"{title}: {about}; plain decoding {result['tokens_per_s']['plain']:.1f} tokens/s")
    table.add_column("", no_wrap=True)
    for column in ("budget", "nodes", "window", "EDL", "x plain", "same", *names):
        table.add_column(column, justify="right")
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        nodes = [f"{row['drafted']:.1f}", f"{row['window']:.1f}" if row["window"] else ""]
        figures = [*nodes, f"{row['edl']:.2f}", f"{row['over_plain']:.2f}"]
        same = f"{row['identical']}/{result['questions']}"
        sources = [f"{row['by_source'][name]['accepted']:.2f}" if name in row["by_source"] else "" for name in names]
        is_last = following is not None and following["budget"] != row["budget"]
        table.add_row(row["label"], str(row["budget"]), *figures, same, *sources, end_section=is_last)
    return table
