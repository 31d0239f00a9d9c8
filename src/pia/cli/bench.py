"""Measure latency, single or in batches: generate, prompt lookup, assisted generation, PIA plain, cold and warmed.

All answer the same prompts in turns. Prints tables and, as the very last line, one JSON object. With --report also
first-token times, memory, where a step's time goes, and how near plain steps come to the memory's bandwidth, as
Markdown, JSON and plots. Replays of recorded texts on models of full size with random weights are marked as such.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from pia.cli import options
from pia.cli.bench_sources import add_comparison, check_no_comparison, run_comparison
from pia.errors import UnsupportedOptionError

if TYPE_CHECKING:
    from pia.cli.bench_cases import BenchCase

HELP = "compare generate, prompt lookup, assisted generation and PIA on prompts of yours"
DEFAULT_TEMPERATURE = 0.8
_LOOKAHEAD_OPTIONS = ("budget", "max_depth", "engine", "sources")
"""Options of `Lookahead` that the command line has."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `pia bench`."""
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="name on the Hugging Face Hub, local folder, or `demo`"
    )
    options.add_loading(parser, dtype="float32")
    _add_prompts(parser)
    _add_replay(parser)
    add_comparison(parser)
    options.add_length(parser, 256)
    parser.add_argument("--rounds", type=options.positive, default=3, metavar="R", help="medians over R rounds (3)")
    parser.add_argument(
        "--batch", type=options.positive, default=1, metavar="B",
        help="prompts a call (1); prompt lookup and assisted generation take one only",
    )  # fmt: skip
    options.add_budget(parser)
    options.add_engine(parser)
    options.add_sources(parser)
    parser.add_argument("--assistant", metavar="MODEL", help="draft model of assisted generation")
    _add_output(parser)
    parser.add_argument(
        "--sample", action="store_true", help=f"sample at {DEFAULT_TEMPERATURE}, against PIA without drafts"
    )
    options.add_sampling(parser)
    parser.set_defaults(run=run)


def _add_prompts(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("prompts")
    files.add_argument(
        "--prompts", metavar="[NAME=]FILE", action="append", default=[],
        help="text, one a line, or JSON lines, such as HumanEval.jsonl.gz (demo: its 100 questions); "
        "give it again for further sets",
    )  # fmt: skip
    files.add_argument("--warm", metavar="FILE", help="what the warmed cache knows: text, JSON lines or .pia")
    files.add_argument("--field", metavar="NAME", help="field of a JSON line of --warm that holds the text")
    files.add_argument("--questions", "--limit", type=options.positive, metavar="N", help="only the first N prompts")
    files.add_argument("--chat", action="store_true", help="text prompts are questions for the chat template")


def _add_replay(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("replay of recorded texts on a model of full size with random weights")
    group.add_argument(
        "--replay", metavar="TRACE", action="append", default=[], help="recorded texts (may be given again)"
    )
    group.add_argument(
        "--shape", metavar="NAME", action="append", default=[], help="such as llama2-7b (may be given again)"
    )
    group.add_argument(
        "--warm-requests", type=options.natural, metavar="N",
        help="the trace's first N requests warm the cache, those behind them are replayed (half of them)",
    )  # fmt: skip
    group.add_argument(
        "--context", type=options.positive, metavar="N", help="lengthen shorter prompts to N tokens by unrelated text"
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print the JSON line alone")
    group.add_argument("--report", metavar="DIR", help="measure more, and write report.md, report.json and plots there")
    group.add_argument("--append", action="store_true", help="keep the other cases that the report in DIR has")


def run(args: argparse.Namespace) -> int:
    """Runs `pia bench`."""
    from pia.cli.loading import quiet_libraries

    quiet_libraries()
    from pia.bench.report_folder import ReportFolder
    from pia.cli.figures import show_case, show_last_line

    if args.append and args.report is None:
        raise UnsupportedOptionError("--append adds to a report; name it with --report DIR")
    if args.compare_sources:
        return run_comparison(args, _sampling(args))
    check_no_comparison(args)
    cases = _cases(args)
    folder = None if args.report is None else ReportFolder(args.report, append=args.append)
    figures = []
    for case in cases:
        figures.append(_measure(case, args))
        del case  # a replay's model makes room for the next
        if not args.json:
            show_case(figures[-1])
        if folder is not None:
            folder.add(figures[-1])
    files = folder.finish() if folder is not None else []
    show_last_line(figures, files)
    return 0


def _cases(args: argparse.Namespace) -> Iterator[BenchCase]:
    if args.replay or args.shape:
        from pia.cli.bench_replay import check_replay, replay_cases

        check_replay(args)
        return replay_cases(args)
    for name in ("warm_requests", "context"):
        if getattr(args, name) is not None:
            raise UnsupportedOptionError(f"--{name.replace('_', '-')} is for a replay: --replay TRACE --shape NAME")
    if args.model is None:
        raise UnsupportedOptionError("name a MODEL, or replay recorded texts with --replay TRACE --shape NAME")
    from pia.cli.bench_cases import model_cases

    return model_cases(args, _sampling(args))


def _measure(case: BenchCase, args: argparse.Namespace) -> dict[str, Any]:
    """A case's figures; the machine is described before it works."""
    from pia.bench.case_result import case_result, examined
    from pia.bench.contenders import usual_contenders, willing
    from pia.bench.machine import describe_machine
    from pia.cli.figures import measure_with_progress

    workload = case.workload
    machine = describe_machine(workload.model)
    about = {"model": case.model_name, "prompt_set": case.prompt_set, "label": case.label, "machine": machine}
    new_contenders = partial(usual_contenders, batch_size=args.batch, assisted=case.assisted)
    wanted = new_contenders(case.new_cache, **_lookahead_options(args, is_replay=workload.is_replay))
    contenders, refusals = willing(wanted, workload.model, workload.prompts[0], reference="generate")
    reference = "plain" if workload.options.get("do_sample") else "generate"
    report = measure_with_progress(
        workload, contenders, rounds=args.rounds, batch_size=args.batch, seed=args.seed or 0, reference=reference
    )
    result = case_result(workload, report, about=about, missing={**case.missing, **refusals})
    return result if args.report is None else examined(result, workload, contenders, report)


def _lookahead_options(args: argparse.Namespace, *, is_replay: bool) -> dict[str, Any]:
    """What PIA is told. The logits of a replay are made up, so there is nothing to recycle."""
    from pia.bench.workload import REPLAY_SOURCES

    given = {name: getattr(args, name) for name in _LOOKAHEAD_OPTIONS}
    return {**given, "sources": REPLAY_SOURCES} if is_replay else given


def _sampling(args: argparse.Namespace) -> dict[str, Any]:
    """How tokens are chosen, as arguments of `generate`."""
    sampling = options.sampling_kwargs(args)
    if args.sample and not sampling["do_sample"]:
        return {"do_sample": True, "temperature": DEFAULT_TEMPERATURE}
    return sampling
