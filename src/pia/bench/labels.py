"""What contenders are called, in tables and in plots."""

from __future__ import annotations

LABELS = {
    "generate": "generate",
    "prompt_lookup": "generate, prompt lookup",
    "assisted": "generate, assisted",
    "plain": "PIA without drafts",
    "pia_cold": "PIA, cache empty at start",
    "pia": "PIA, cache warmed",
}
"""By name of the contender."""


def label_of(name: str) -> str:
    """A contender's label; its name where it has none."""
    return LABELS.get(name, name)
