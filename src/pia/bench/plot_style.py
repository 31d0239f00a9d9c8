"""What all plots share: colours that colour-blind readers can tell apart, quiet axes, how they are saved."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

INK, FAINT = "#222222", "#8a8a8a"
GRID = "#e6e6e6"

BLUE, LIGHT_BLUE, GREEN = "#0072B2", "#56B4E9", "#009E73"
ORANGE, VERMILION, PINK, YELLOW = "#E69F00", "#D55E00", "#CC79A7", "#F0E442"
"""Of Okabe and Ito's palette."""


def has_matplotlib() -> bool:
    """Whether there is anything to draw with."""
    return find_spec("matplotlib") is not None


def new_figure(width: float, height: float) -> Any:
    """A figure of this many inches, that belongs to no window."""
    return import_module("matplotlib.figure").Figure(figsize=(width, height), dpi=150, layout="constrained")


def tidy(panel: Any, *, grid: str = "y") -> None:
    """Takes away what says nothing, and makes the rest quiet."""
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        panel.spines[side].set_color(FAINT)
    panel.tick_params(colors=INK, length=3)
    panel.grid(axis=grid, color=GRID, linewidth=0.7)
    panel.set_axisbelow(True)


def save(figure: Any, folder: Path, name: str) -> list[str]:
    """Writes a figure as .png and .svg; returns the names of the files."""
    names = [f"{name}.png", f"{name}.svg"]
    figure.savefig(folder / names[0])
    figure.savefig(folder / names[1], metadata={"Date": None})
    return names
