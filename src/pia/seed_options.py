"""The seed's `decoding_kwargs`, read as options of today (seed 001)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pia.config import LookaheadConfig, Shape
from pia.errors import UnsupportedOptionError

_SHAPES: dict[str, Shape] = {"hier": "tree", "par": "branches", "one": "chain"}
_KNOWN = ("use_lookahead", "decoding_length", "branch_length", "decoding_mode", "corpora")


def from_decoding_kwargs(config: LookaheadConfig, decoding_kwargs: Mapping[str, Any] | None) -> LookaheadConfig | None:
    """Applies `decoding_kwargs` to a configuration; the caller's dictionary is only read.

    Args:
        config: what holds where the dictionary says nothing.
        decoding_kwargs: `use_lookahead` (default true: the model is accelerated), `decoding_length` (tokens fed in a
            step, the last accepted one included), `branch_length` (depth of a draft), `decoding_mode` ("hier", "par"
            or "one", also with "_mix"); and, new with PIA, `corpora` (names of attached corpora to draft from).

    Returns:
        the configuration, or `None` for plain decoding.

    Raises:
        UnsupportedOptionError: an unknown key or value.
    """
    given = dict(decoding_kwargs or {})
    unknown = sorted(set(given) - set(_KNOWN))
    if unknown:
        raise UnsupportedOptionError(f"unknown key {unknown[0]!r} in decoding_kwargs; known are {', '.join(_KNOWN)}")
    if not given.get("use_lookahead", True):
        return None
    changes: dict[str, Any] = {}
    if "decoding_length" in given:
        changes["budget"] = _whole("decoding_length", given["decoding_length"]) - 1
    if "branch_length" in given:
        changes["max_depth"] = _whole("branch_length", given["branch_length"])
    if "decoding_mode" in given:
        changes["shape"] = _shape(given["decoding_mode"])
    if "corpora" in given:
        changes["corpora"] = given["corpora"]
    return replace(config, **changes)


def _shape(mode: Any) -> Shape:
    shape = _SHAPES.get(str(mode).removesuffix("_mix"))
    if shape is None:
        raise UnsupportedOptionError(f'decoding_mode={mode!r} is unknown; choose "hier", "par" or "one"')
    return shape


def _whole(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnsupportedOptionError(f"{name} in decoding_kwargs must be a whole number of at least 1, got {value!r}")
    return value
