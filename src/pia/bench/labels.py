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

OURS = "pia"
"""The drafter of a replay that is PIA as it is used."""


def is_part(drafter: str) -> bool:
    """Whether a drafter of a replay is PIA with a single source."""
    return drafter.startswith(f"{OURS}-")


def label_of(name: str) -> str:
    """A contender's label; its name where it has none."""
    return LABELS.get(name, name)
