"""PIA: painless inference acceleration. The model you have, the same output, fewer forward passes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Lookahead": "pia.lookahead",
    "LookaheadOutput": "pia.output",
    "LookaheadConfig": "pia.config",
    "JacobiConfig": "pia.config",
    "accelerate": "pia.acceleration",
    "restore": "pia.acceleration",
    "decode": "pia.text",
    "stream": "pia.text",
    "generate": "pia.text",
    "Result": "pia.text",
    "TextStep": "pia.text",
    "Step": "pia.decoding.stats",
    "Stats": "pia.decoding.stats",
    "DraftCache": "pia.drafting.cache",
    "Corpus": "pia.drafting.corpus",
    "build_corpus": "pia.drafting.corpus",
    "DraftTree": "pia.drafting.tree",
    "TraceRecorder": "pia.recording",
    "register_families": "pia.models.modeling",
    "PiaError": "pia.errors",
}

_PARTS = ("ipad",)
"""Packages that are used by their own names, as in `pia.ipad.shrink`."""

__all__ = ["__version__", *_HOMES, *_PARTS]

if TYPE_CHECKING:
    from pia import ipad as ipad
    from pia.acceleration import accelerate as accelerate
    from pia.acceleration import restore as restore
    from pia.config import JacobiConfig as JacobiConfig
    from pia.config import LookaheadConfig as LookaheadConfig
    from pia.decoding.stats import Stats as Stats
    from pia.decoding.stats import Step as Step
    from pia.drafting.cache import DraftCache as DraftCache
    from pia.drafting.corpus import Corpus as Corpus
    from pia.drafting.corpus import build_corpus as build_corpus
    from pia.drafting.tree import DraftTree as DraftTree
    from pia.errors import PiaError as PiaError
    from pia.lookahead import Lookahead as Lookahead
    from pia.models.modeling import register_families as register_families
    from pia.output import LookaheadOutput as LookaheadOutput
    from pia.recording import TraceRecorder as TraceRecorder
    from pia.text import Result as Result
    from pia.text import TextStep as TextStep
    from pia.text import decode as decode
    from pia.text import generate as generate
    from pia.text import stream as stream


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `import pia` costs nothing."""
    if name in _PARTS:
        return import_module(f"pia.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'pia' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
