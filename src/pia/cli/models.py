"""Print the families of models that PIA is tested with, or examine one model.

A row says what one forward pass verifies: a token tree, a chain of drafts, or nothing (plain: one token at a time).
Without MODEL every row printed has a test that proves it. With MODEL the model is loaded and proves its own row.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from pia.cli import options

HELP = "say which models PIA accelerates, and how"

_MEANING = """
verifies: what one forward pass checks, a token tree, a chain of drafts, or nothing (plain decoding).
masks: one for all layers, one with the sliding window in it, or one by type of layer.
batches: rows of different lengths share forward passes; where not, a batch is left to Transformers.
Other models are examined when they are first used; `pia models MODEL` says what comes of it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `pia models`."""
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="examine this model: name on the Hub, local folder, or `demo`"
    )
    options.add_loading(parser)
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs `pia models`."""
    facts = _known() if args.model is None else _examine(args)
    if args.json:
        print(json.dumps(facts))
    elif args.model is not None:
        _show_model(facts)
    else:
        _show_families(facts["families"])
        _show_conversions(facts["conversions"])
    return 0


def _known() -> dict[str, Any]:
    """The families that tests prove, and the legacy ones that can be made into such."""
    from pia.models.convert.registry import converters
    from pia.models.families import all_families

    return {
        "families": [family.as_dict() for family in all_families()],
        "conversions": [{"family": converter.family, "becomes": converter.target} for converter in converters()],
    }


def _examine(args: argparse.Namespace) -> dict[str, Any]:
    from pia.cli.loading import load_weights

    model = load_weights(args.model, args.dtype, args.device)
    from pia.models.verdict import examine

    return {"model": args.model, **examine(model)}


def _show_model(facts: dict[str, Any]) -> None:
    from rich.table import Table

    from pia.cli.terminal import new_console

    console = new_console()
    table = Table(show_header=False)
    for name in ("model", "architecture", "mode", "masks", "can_batch", "reason", "positions", "like"):
        table.add_row("batches" if name == "can_batch" else name, _shown(facts[name]))
    console.print(table, markup=False)
    console.print(f"Verdict: {facts['verdict']}.", markup=False, highlight=False)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {place}" for name, place in value.items()) or "no limits"
    if isinstance(value, list):
        return ", ".join(value) or "no tested family: the self-check alone decided"
    return {True: "yes", False: "no", None: "none"}.get(value, str(value))


def _show_families(families: list[dict[str, Any]]) -> None:
    """The table, with notes below it, since many rows share one and a terminal is narrow."""
    from rich import box
    from rich.table import Table

    from pia.cli.terminal import new_console

    console = new_console()
    notes = list(dict.fromkeys(family["note"] for family in families if family["note"]))
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("family", "architecture", "verifies", "masks", "batches", "note"):
        table.add_column(column, no_wrap=True)
    for family in families:
        table.add_row(
            family["name"],
            _short(family["architecture"]),
            family["mode"],
            family["masks"] if family["mode"] == "tree" else "",
            "yes" if family["can_batch"] else "no",
            str(notes.index(family["note"]) + 1) if family["note"] else "",
        )
    console.print(table, markup=False)
    for number, note in enumerate(notes, start=1):
        console.print(f"{number}. {note}", markup=False, highlight=False)
    console.print(_MEANING, markup=False, highlight=False)


def _show_conversions(conversions: list[dict[str, str]]) -> None:
    print("\nCheckpoints made for remote code, and what `pia convert SRC DST` makes of them:")
    for row in conversions:
        print(f"  {row['family']}: {row['becomes']}")


def _short(architecture: str) -> str:
    """A class name without the ending that nearly all of them share."""
    return architecture.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
