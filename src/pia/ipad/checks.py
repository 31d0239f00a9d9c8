"""Checks of settings, by tables: what each may be, and what to say where it is something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pia.errors import ShrinkError

Bound = tuple[Callable[[Any], bool], str]
"""Whether a number is right, and the way out where it is not."""


def check_choices(settings: Any, choices: Mapping[str, Sequence[str]]) -> None:
    """Refuses a setting that is none of its choices.

    Raises:
        ShrinkError: there is one.
    """
    for name, known in choices.items():
        if getattr(settings, name) not in known:
            raise ShrinkError(f"{name} is {getattr(settings, name)!r}; choose one of {', '.join(known)}")


def check_bounds(settings: Any, bounds: Mapping[str, Bound], *, optional: Sequence[str] = ()) -> None:
    """Refuses a setting that is no number, or one that is out of its range.

    Args:
        settings: with these attributes.
        bounds: by name.
        optional: those that may be None.

    Raises:
        ShrinkError: there is one.
    """
    for name, (is_right, way_out) in bounds.items():
        value = getattr(settings, name)
        if value is None and name in optional:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not is_right(value):
            raise ShrinkError(f"{name} is {value!r}; {way_out}")
