"""`pia bench --replay TRACE --shape NAME`: models of full size with random weights, which write recorded texts."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pia.cli.bench_cases import BenchCase
from pia.config import SOURCES
from pia.errors import UnsupportedOptionError

_ASSISTANT = "no draft model writes the recorded text"
_FORBIDDEN = ("model", "prompts", "warm", "field", "chat", "assistant", "sample", "temperature", "top_p", "top_k")


def check_replay(args: argparse.Namespace) -> None:
    """Refuses what a replay cannot honour.

    Raises:
        UnsupportedOptionError: the message names the option.
    """
    if not args.replay or not args.shape:
        raise UnsupportedOptionError("a replay takes both: --replay TRACE --shape NAME, such as llama2-7b")
    for name in _FORBIDDEN:
        if getattr(args, name) not in (None, False, []):
            shown = "MODEL" if name == "model" else f"--{name.replace('_', '-')}"
            raise UnsupportedOptionError(f"a replay takes no {shown}: its model and its text come from the trace")
    if tuple(args.sources) not in (SOURCES, ("cache",)):
        raise UnsupportedOptionError(
            "a replay drafts from the cache alone, since its model's logits are not its own; leave out --sources"
        )
    if args.batch > 1:
        raise UnsupportedOptionError("a replay answers one prompt at a time; leave out --batch")


def replay_cases(args: argparse.Namespace) -> Iterator[BenchCase]:
    """Each trace on each shape; only one model is held at a time.

    Raises:
        TraceError: a trace cannot be read.
    """
    from pia.cli.loading import quiet_libraries

    quiet_libraries()
    from pia.bench.workload import Workload

    for shape in args.shape:
        case = None
        for trace in args.replay:
            case = _make(trace, shape, args, like=case)
            lengths, plainly = case.max_new_tokens, {"do_sample": False}
            workload = Workload(case.model, case.prompts, lengths, plainly, forcing=case.forcing)
            missing = {"assisted": _ASSISTANT}
            yield BenchCase(
                workload, case.new_cache, f"{shape} shape", Path(trace).stem, label=case.label, missing=missing
            )
        del case, workload  # before the next model is made


def _make(trace: str, shape: str, args: argparse.Namespace, *, like: Any) -> Any:
    """The model that writes a trace, its prompts, and what its draft cache knows; one like it lends its model."""
    import torch

    from pia.bench.forced import replay_case

    dtype = torch.bfloat16 if args.dtype == "auto" else getattr(torch, args.dtype)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    return replay_case(
        trace, shape, dtype=dtype, device=device, limit=args.questions, warm=args.warm_requests, context=args.context,
        like=like,
    )  # fmt: skip
