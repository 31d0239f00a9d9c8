"""Say what PIA runs on: versions, processor, threads, accelerator. Worth adding to a bug report."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pia import __version__
from pia.cli import options

HELP = "say what PIA runs on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `pia env`."""
    parser.add_argument("--model", metavar="MODEL", help="also examine this model and measure what its forwards cost")
    options.add_loading(parser)
    options.add_engine(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs `pia env`."""
    from pia.cli.loading import load_model, quiet_libraries

    quiet_libraries()
    from pia.bench.machine import describe_machine
    from pia.drafting.cache_file import FORMAT_VERSION

    model = load_model(args.model, args.dtype, args.device)[0] if args.model else None
    facts = {"pia": __version__, "cache_format": FORMAT_VERSION, **describe_machine(model)}
    facts |= {**_attention(), **_programs()}
    if model is not None:
        facts |= _examine(model, args.engine)
    if args.json:
        print(json.dumps(facts))
    else:
        _show(facts)
    return 0


def _attention() -> dict[str, Any]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return {"attention_implementations": sorted({"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()})}


def _programs() -> dict[str, Any]:
    """Where compiled programs are kept, and how much there is of them."""
    from pia.models.static.store import programs_folder

    folder = programs_folder()
    size = sum(path.stat().st_size for path in folder.rglob("*.pt2"))
    return {"programs": f"{folder} ({size >> 20} MiB)"}


def _examine(model: Any, wanted: Any) -> dict[str, Any]:
    """How a model can be verified, proved on the spot, and what a forward over q tokens costs."""
    from pia.models.profile import capability_of, curve_of, engine_of

    capability = capability_of(model, self_check=True)
    facts: dict[str, Any] = {"mode": capability.mode.label, "reason": capability.reason}
    if not capability.can_verify_chains:
        return facts
    if not capability.is_recurrent:
        engine = engine_of(model, capability, wanted)
        facts |= {"engine": engine.name, "engine_reason": engine.reason}
    curve = curve_of(model, capability, wanted)
    points = zip(curve.sizes, curve.seconds, strict=True)
    return facts | {"forward_ms": {q: round(seconds * 1e3, 3) for q, seconds in points}}


def _show(facts: dict[str, Any]) -> None:
    from rich.table import Table

    from pia.cli.terminal import new_console

    costs = facts.pop("forward_ms", None)
    console = new_console()
    table = Table(show_header=False)
    for name, value in facts.items():
        shown = ", ".join(value) if isinstance(value, list) else "none" if value is None else str(value)
        table.add_row(name.replace("_", " "), shown)
    console.print(table, markup=False)
    if costs:
        _show_costs(console, costs)


def _show_costs(console: Any, costs: dict[int, float]) -> None:
    """c(q): what it costs to verify more tokens at once."""
    from rich.table import Table

    table = Table(title="one forward over q tokens")
    for column in ("q", "ms", "against q = 1"):
        table.add_column(column, justify="right")
    for q, milliseconds in costs.items():
        table.add_row(str(q), f"{milliseconds:.2f}", f"{milliseconds / costs[1]:.2f}")
    console.print(table)
