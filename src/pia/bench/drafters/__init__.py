"""What `pia replay` compares: PIA's draft cache, its peers as they are, and classes of the user's."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

from pia.bench.drafters.protocol import Drafter
from pia.config import SOURCES
from pia.errors import DrafterError


@dataclass(frozen=True)
class Kind:
    """A kind of drafter.

    Attributes:
        name: Shown in tables.
        new: Makes one that has learned nothing; raises `DrafterError` where its package is missing.
        needs: Module that must be there.
        has_probs: Whether it estimates path probabilities, as an automatic budget needs; None where that shows later.
        is_usual: Whether it is measured where none is named.
    """

    name: str
    new: Callable[[], Drafter]
    needs: str | None = None
    has_probs: bool | None = True
    is_usual: bool = True

    @property
    def is_installed(self) -> bool:
        """Whether what it needs is there, as far as that shows without importing it."""
        return self.needs is None or find_spec(self.needs) is not None


def built_in(*, max_depth: int = 32) -> Mapping[str, Kind]:
    """The drafters that PIA knows by name.

    Args:
        max_depth: most tokens that PIA drafts in a row; peers keep their own bounds.
    """
    wide = {"factor": 4.0, "offset": 4.0, "min_prob": 0.01}
    full = {"factor": 64.0, "offset": 64.0, "min_prob": 0.0}  # the whole budget at every step
    kinds = [
        Kind("pia", lambda: _new("native:PiaDrafter", max_depth=max_depth)),
        *(_alone(source, max_depth) for source in SOURCES),
        Kind("arctic", lambda: _new("arctic:ArcticDrafter"), "arctic_inference"),
        Kind("arctic-wide", lambda: _new("arctic:ArcticDrafter", **wide), "arctic_inference"),
        Kind("arctic-full", lambda: _new("arctic:ArcticDrafter", **full), "arctic_inference"),
        Kind("pld", lambda: _new("prompt_lookup:PromptLookupDrafter"), "transformers", has_probs=False),
        Kind("seed", lambda: _new("trie:TrieDrafter"), has_probs=False),
        Kind("token-recycling", _token_recycling, is_usual=False),
    ]
    return {kind.name: kind for kind in kinds}


def find(name: str, *, max_depth: int = 32) -> Kind:
    """The kind of drafter that a name stands for: one of `built_in`, or `package.module:Class`.

    Raises:
        DrafterError: the name is unknown, or there is no such class.
    """
    kinds = built_in(max_depth=max_depth)
    if name in kinds:
        return kinds[name]
    if ":" not in name:
        raise DrafterError(f"unknown drafter {name!r}; choose from {', '.join(kinds)}, or give package.module:Class")
    return Kind(name, _user_class(name), has_probs=None)


def _alone(source: str, max_depth: int) -> Kind:
    """PIA drafting from one of its sources alone."""
    options = {"max_depth": max_depth, "sources": (source,)}
    return Kind(f"pia-{source}", lambda: _new("native:PiaDrafter", **options), is_usual=False)


def _token_recycling() -> Drafter:
    from pia.bench.drafters.protocol import SourceDrafter
    from pia.bench.drafters.token_recycling import TokenRecycling

    return SourceDrafter(TokenRecycling())


def _new(where: str, **options: Any) -> Drafter:
    module, _, name = where.partition(":")
    drafter: Drafter = getattr(import_module(f"{__name__}.{module}"), name)(**options)
    return drafter


def _user_class(path: str) -> Callable[[], Drafter]:
    """Imports a class by name, also from the working folder."""
    module_name, _, class_name = path.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found: Any = getattr(import_module(module_name), class_name)
    except ModuleNotFoundError as error:
        raise DrafterError(f"there is no module {error.name!r} (for the drafter {path})") from error
    except (AttributeError, ValueError) as error:
        raise DrafterError(
            f"the module {module_name!r} has no class {class_name!r} (for the drafter {path})"
        ) from error
    missing = [name for name in ("begin", "propose", "observe") if not callable(getattr(found, name, None))]
    if not inspect.isclass(found) or missing:
        raise DrafterError(
            f"{path} is no drafter: a class with begin, propose and observe is needed"
            + (f", and it lacks {', '.join(missing)}" if missing else "")
        )
    return cast("Callable[[], Drafter]", found)
