"""Compile a model's steps for this processor, once: `--engine auto` then finds the programs on the disk.

It takes minutes and needs a C++ compiler. Outputs stay what they are; the programs hold weights of their own, so
memory for these is needed twice. They are made for one model with its weights, dtype, number of threads, processor
and releases of PyTorch and Transformers; when one of these changes, PIA goes on with the model as it is.
"""

from __future__ import annotations

import argparse
from typing import Any

from pia.cli import options

HELP = "compile a model's steps for this processor"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `pia compile`."""
    options.add_model(parser)
    parser.add_argument("--force", action="store_true", help="compile again what is there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs `pia compile`."""
    from pia.cli.loading import load_weights, quiet_libraries

    quiet_libraries()
    from pia.cli.terminal import note
    from pia.models.profile import capability_of, engine_of
    from pia.models.static.store import files_of

    model = load_weights(args.model, _dtype(args), args.device)
    capability = capability_of(model, self_check=True)
    _require_compilable(args.model, model, capability)
    files = files_of(model)
    if files.are_there and not args.force:
        note("the programs are there already; --force compiles them again")
    else:
        _build(args.model, model, files)
    engine = engine_of(model, capability, "auto")
    print(f"{files.folder}\nengine {engine.name}: {engine.reason}")
    return 0


def _dtype(args: argparse.Namespace) -> str:
    """The demo model runs in float32 everywhere."""
    given: str = args.dtype
    return "float32" if args.model == "demo" and given == "auto" else given


def _require_compilable(name: str, model: Any, capability: Any) -> None:
    from pia.errors import ModelError
    from pia.models.placement import input_device
    from pia.models.static.support import why_not_static

    if input_device(model).type != "cpu":
        raise ModelError(f"{name} is not on the CPU, for which programs are kept; elsewhere use --engine compile")
    reason = why_not_static(model, capability)
    if reason is not None:
        raise ModelError(f"{name} cannot be compiled: {reason}")


def _build(name: str, model: Any, files: Any) -> None:
    """Compiles, and says how long it took.

    Raises:
        ModelError: PyTorch's compiler refuses.
    """
    from time import perf_counter

    from pia.cli.terminal import note
    from pia.errors import ModelError
    from pia.models.static.programs import build_programs

    started = perf_counter()
    try:
        build_programs(model, files, say=note)
    except Exception as error:  # compilers refuse in any way they like
        raise ModelError(f"{name} cannot be compiled: {type(error).__name__}: {str(error)[:300]}") from error
    note(f"compiled in {perf_counter() - started:.0f} s, {files.size >> 20} MiB")
