"""Where drafts come from, and which of them are accepted: cells for tables in the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pia.decoding.stats import Stats
from pia.drafting.tree import SOURCE_NAMES


def by_source(stats: Stats | None) -> dict[str, dict[str, float]]:
    """Drafted and accepted nodes per decode forward by source, ready for JSON; empty without drafts."""
    if stats is None:
        return {}
    return {name: {key: round(value, 4) for key, value in part.items()} for name, part in stats.by_source().items()}


def source_cells(rows: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A table of the contenders that draft: accepted tokens a forward by source, and of how many drafted.

    Args:
        rows: with `label` and `by_source`.

    Returns:
        the names of the columns behind the label, and the rows with their labels.
    """
    drafting = [row for row in rows if row.get("by_source")]
    names = source_names(drafting)
    return [*names, "all"], [[row["label"], *_cells(row["by_source"], names)] for row in drafting]


def source_names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The sources that any of these drafted from, in their usual order."""
    found = {name for row in rows for name in row["by_source"]}
    return [name for name in SOURCE_NAMES if name in found]


def _cells(parts: Mapping[str, Mapping[str, float]], names: list[str]) -> list[str]:
    total = {key: sum(part[key] for part in parts.values()) for key in ("accepted", "drafted")}
    return [_cell(parts.get(name)) for name in names] + [_cell(total)]


def _cell(part: Mapping[str, float] | None) -> str:
    return "" if part is None else f"{part['accepted']:.2f} of {part['drafted']:.1f}"
