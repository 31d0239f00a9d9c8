"""Replay recorded outputs: how many tokens would a forward have yielded with PIA's drafts, or with those of others?

Plays what a model once wrote through each drafter, as if the model were there. No model is loaded, so this is the way
to try drafts on your own traffic before anything is switched on: record with `pia generate --record FILE` or
`pia.TraceRecorder`. Prints a table and, as the very last line, one JSON object.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import TYPE_CHECKING

from pia.cli import options

if TYPE_CHECKING:
    from pia.bench.replay_study import Plan, Study
    from pia.bench.trace import Trace

HELP = "play recorded outputs through PIA's drafts and those of others"
_BUDGETS = (16, 64)
_CURVES = ("flat-gpu", "cpu")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `pia replay`."""
    parser.add_argument(
        "traces", nargs="*", metavar="TRACE", help=".npz, or .jsonl of token ids or text (two that come with PIA)"
    )
    what = parser.add_argument_group("what to measure")
    what.add_argument(
        "--drafters", type=options.names, metavar="A,B", help="pia, pia-cache or pia-recycled (one source of it), "
        "arctic, arctic-wide, arctic-full, pld, seed, token-recycling, or package.module:Class of yours "
        "(the usual ones that are installed)",
    )  # fmt: skip
    what.add_argument(
        "--budgets",
        type=options.budgets,
        default=list(_BUDGETS),
        metavar="N,N",
        help="draft nodes a step, or auto (16,64)",
    )
    what.add_argument("--warm", type=options.natural, metavar="N", help="the first N requests only warm (half of them)")
    what.add_argument("--limit", type=options.positive, metavar="N", help="the first N requests of a trace only")
    what.add_argument(
        "--max-depth", type=options.positive, default=32, metavar="N", help="most tokens PIA drafts in a row (32)"
    )
    what.add_argument(
        "--cost", type=options.names, default=list(_CURVES), metavar="A,B",
        help="cost of a forward by its size: flat-gpu, cpu, or FILE.json as `pia env --model MODEL --json` prints it",
    )  # fmt: skip
    what.add_argument("--tokenizer", metavar="MODEL", help="name or folder, for traces of text")
    what.add_argument(
        "--repeat", type=options.positive, default=1, metavar="R", help="keep the shortest time of R runs (1)"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print the JSON line alone")
    output.add_argument("--plot", metavar="FILE", help="also draw the figures: .png, .svg or .pdf")
    output.add_argument("--save", metavar="FILE.npz", help="also write the (one) trace, cut to --limit, in this format")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs `pia replay`."""
    if args.plot:
        from pia.bench.plot import check_plot

        check_plot(args.plot)  # before the work, not after it
    plan, skipped = _plan(args)
    traces = _load_traces(args)
    if args.save:
        _save(traces, args)
    study = _run_with_progress(traces, plan, show=not args.json)
    study.notes[:0] = skipped
    from pia.bench.machine import describe_host

    machine = describe_host("pia", "numpy", "transformers", "arctic-inference")
    if not args.json:
        from pia.cli.replay_table import show_study

        show_study(study, machine)
    if args.plot:
        from pia.bench.plot import draw

        draw(study.rows, args.plot)
    print(json.dumps({"rows": study.rows, "notes": study.notes, "machine": machine}))
    return 0


def _plan(args: argparse.Namespace) -> tuple[Plan, list[str]]:
    """What to measure, and remarks on peers that are not there."""
    from pia.bench.curves import load_curve
    from pia.bench.drafters import built_in, find
    from pia.bench.replay_study import Plan

    skipped = []
    if args.drafters is None:
        kinds = [kind for kind in built_in(max_depth=args.max_depth).values() if kind.is_usual and kind.is_installed]
        skipped = _missing(args.max_depth)
    else:
        kinds = [find(name, max_depth=args.max_depth) for name in args.drafters]
    curves = dict(load_curve(name) for name in args.cost)
    return Plan(kinds, args.budgets, curves, warm=args.warm, limit=args.limit, repeat=args.repeat), skipped


def _missing(max_depth: int) -> list[str]:
    from pia.bench.drafters import built_in
    from pia.bench.drafters.arctic import HOW_TO_GET

    names = [kind.name for kind in built_in(max_depth=max_depth).values() if not kind.is_installed]
    return [f"{', '.join(names)}: left out, not installed (get it: {HOW_TO_GET})"] if names else []


def _load_traces(args: argparse.Namespace) -> list[Trace]:
    """The traces of the command line; those that come with PIA where it names none."""
    from pia.bench.trace import Trace

    if not args.traces:
        from pia.assets import trace_paths

        return [Trace.load(path) for path in trace_paths()]
    tokenizer = None
    if args.tokenizer is not None:
        from pia.cli.loading import load_tokenizer

        tokenizer = load_tokenizer(args.tokenizer)
    traces = [Trace.load(path, tokenizer=tokenizer) for path in args.traces]
    if len({trace.name for trace in traces}) < len(traces):
        return [replace(trace, name=path) for trace, path in zip(traces, args.traces, strict=True)]
    return traces


def _save(traces: list[Trace], args: argparse.Namespace) -> None:
    from pia.errors import TraceError

    if len(traces) != 1 or not args.save.endswith(".npz"):
        raise TraceError("--save writes one trace to a file that ends with .npz; give one TRACE")
    traces[0].part(0, args.limit or len(traces[0])).save(args.save)


def _run_with_progress(traces: list[Trace], plan: Plan, *, show: bool) -> Study:
    from pia.bench.replay_study import run as run_study
    from pia.cli.terminal import new_progress

    with new_progress() as progress:
        task = progress.add_task("reading", total=len(traces) * plan.num_runs, visible=show)
        done = iter(range(len(traces) * plan.num_runs))

        def on_row(text: str) -> None:
            progress.update(task, completed=next(done, None), description=text)

        return run_study(traces, plan, on_row=on_row)
