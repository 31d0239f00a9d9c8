"""Draws a replay: tokens a forward against budget, and what they are worth under each cost curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pia.bench.labels import OURS, is_part
from pia.bench.plot_style import FAINT, INK, has_matplotlib, new_figure, tidy
from pia.errors import UnsupportedOptionError

_SUFFIXES = (".png", ".svg", ".pdf")
_COLOURS = {
    OURS: "#D55E00",
    "pia-cache": "#E69F00",
    "pia-recycled": "#CC79A7",
    "arctic": "#56B4E9",
    "arctic-wide": "#0072B2",
    "arctic-full": "#003F66",
    "pld": "#8a8a8a",
    "seed": "#009E73",
}
"""Of Okabe and Ito's palette, which colour-blind readers can tell apart."""
_MORE_COLOURS = ("#000000", "#B8A600", "#7B3FA0", "#5c5c5c")
_MARKERS = {OURS: "o", "arctic": "v", "arctic-wide": "s", "arctic-full": "^", "pld": "X", "seed": "D"}
_LABEL_GAP = 0.068
"""Least distance of two labels, in heights of a panel."""

Row = dict[str, Any]


def check_plot(path: str) -> None:
    """Says early what would go wrong late.

    Raises:
        UnsupportedOptionError: Matplotlib is missing, or the file's name or folder is none to draw to.
    """
    if Path(path).suffix.lower() not in _SUFFIXES:
        raise UnsupportedOptionError(f"cannot draw to {path!r}; end its name with {', '.join(_SUFFIXES)}")
    if not Path(path).resolve().parent.is_dir():
        raise UnsupportedOptionError(f"cannot draw to {path!r}: there is no such folder")
    if not has_matplotlib():
        raise UnsupportedOptionError("--plot needs Matplotlib; get it: pip install matplotlib")


def draw(rows: Sequence[Row], path: str) -> None:
    """Draws a row of panels for each trace: EDL at fixed budgets, then the modelled speed-up under each cost curve.

    Args:
        rows: of a replay study.
        path: .png, .svg or .pdf.

    Raises:
        UnsupportedOptionError: see `check_plot`.
    """
    check_plot(path)
    traces = list(dict.fromkeys(row["trace"] for row in rows))
    curves: list[str | None] = list(dict.fromkeys(curve for row in rows for curve in row["speedup"]))
    columns = [None, *curves] if any(row["budget"] != "auto" for row in rows) else curves
    size = (4.5 * len(columns), 0.95 + 3.1 * len(traces))
    figure = new_figure(*size)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    panels = figure.subplots(len(traces), len(columns), squeeze=False)
    for line, trace in zip(panels, traces, strict=True):
        for panel, curve in zip(line, columns, strict=True):
            _draw_panel(panel, [row for row in rows if row["trace"] == trace], curve)
        line[0].set_title(trace, loc="left", fontsize=11, fontweight="bold", color=INK)
    for panel, curve in zip(panels[0][1:], columns[1:], strict=True):
        panel.set_title(f"if forwards cost as on: {curve}", loc="left", fontsize=10, color=INK)
    for panel in panels[-1]:
        panel.set_xlabel("draft nodes a step (budget)", color=INK)
    figure.suptitle(_headline(rows), x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    figure.savefig(path)


def _headline(rows: Sequence[Row]) -> str:
    """The finding: PIA against the best of the others, over all traces and budgets."""
    ratios = []
    for row in rows:
        others = [
            other["edl"]
            for other in rows
            if other["drafter"] != OURS
            and not is_part(other["drafter"])
            and all(other[key] == row[key] for key in ("trace", "budget", "curve"))
        ]
        if row["drafter"] == OURS and row["budget"] != "auto" and others:
            ratios.append(row["edl"] / max(others))
    if not ratios:
        return "Tokens a forward and modelled speed-up, by draft budget"
    spread = " to ".join(dict.fromkeys(f"{ratio:.2f}" for ratio in (min(ratios), max(ratios))))
    return f"PIA yields {spread} x the tokens a forward of the best other drafter"


def _draw_panel(panel: Any, rows: Sequence[Row], curve: str | None) -> None:
    """One panel: EDL (no curve), or the speed-up under a curve; budgets from left to right, `auto` last."""
    budgets = sorted({row["budget"] for row in rows if row["budget"] != "auto"})
    has_auto = curve is not None and any(row["curve"] == curve for row in rows)
    ticks = [*map(str, budgets), *(["auto"] if has_auto else [])]
    ends = []
    for order, name in enumerate(_by_importance(rows)):
        points = _points([row for row in rows if row["drafter"] == name], budgets, curve)
        if points:
            style = _style(name, order)
            _draw_line(panel, points, len(budgets), style)
            ends.append((points[-1][0], points[-1][1], name, style["color"]))
    panel.set_xlim(-0.35, len(ticks) - 1 + 0.35 + 0.42 * max(len(ticks) - 1, 1))
    panel.set_xticks(range(len(ticks)), ticks)
    panel.spines["bottom"].set_bounds(-0.35, len(ticks) - 1 + 0.35)
    panel.set_ylabel("tokens a forward (EDL)" if curve is None else f"x plain decoding, modelled ({curve})", color=INK)
    panel.margins(y=0.12)
    if curve is not None:
        panel.axhline(1, color=FAINT, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
    _label(panel, ends, len(ticks) - 1)
    tidy(panel)


def _by_importance(rows: Sequence[Row]) -> list[str]:
    """Drafters, PIA last so that it lies on top."""
    names = list(dict.fromkeys(row["drafter"] for row in rows))
    return sorted(names, key=lambda name: name == OURS)


def _points(rows: Sequence[Row], budgets: list[int], curve: str | None) -> list[tuple[int, float]]:
    """Places and values, from left to right."""
    points = []
    for row in rows:
        if row["budget"] == "auto" and (curve is None or row["curve"] != curve):
            continue
        place = len(budgets) if row["budget"] == "auto" else budgets.index(row["budget"])
        points.append((place, row["edl"] if curve is None else row["speedup"][curve]))
    return sorted(points)


def _style(name: str, order: int) -> dict[str, Any]:
    is_ours = name == OURS
    return {
        "color": _COLOURS.get(name, _MORE_COLOURS[order % len(_MORE_COLOURS)]),
        "marker": _MARKERS.get(name, "P"),
        "linewidth": 2.8 if is_ours else 1.3,
        "markersize": 8 if is_ours else 5,
        "zorder": 5 if is_ours else 3,
        "clip_on": False,
    }


def _draw_line(panel: Any, points: list[tuple[int, float]], num_fixed: int, style: dict[str, Any]) -> None:
    """Fixed budgets joined by a line; `auto` stands apart, tied by a dotted one."""
    fixed = [point for point in points if point[0] < num_fixed]
    auto = [point for point in points if point[0] == num_fixed]
    if fixed:
        panel.plot(*zip(*fixed, strict=True), **style)
    if auto:
        panel.plot(
            *zip(*[*fixed[-1:], *auto], strict=True), **{**style, "linestyle": ":", "linewidth": 1, "marker": ""}
        )
        panel.plot(*zip(*auto, strict=True), **{**style, "linestyle": ""})


def _label(panel: Any, ends: list[tuple[int, float, str, str]], last: int) -> None:
    """Names beside the right end of each line, moved apart where they would overlap."""
    low, high = panel.get_ylim()
    gap = _LABEL_GAP * (high - low)
    ends = sorted(ends, key=lambda end: end[1])
    heights = [end[1] for end in ends]
    for _ in range(100):  # neighbours push each other away until all have room
        for i in range(len(heights) - 1):
            overlap = gap - (heights[i + 1] - heights[i])
            if overlap > 1e-9:
                heights[i] -= overlap / 2
                heights[i + 1] += overlap / 2
    for (place, value, name, colour), height in zip(ends, heights, strict=True):
        is_ours = name == OURS
        panel.annotate(
            f"{name} {value:.2f}", xy=(place, value), xytext=(last + 0.28, height), color=colour, va="center",
            fontsize=10 if is_ours else 8.5, fontweight="bold" if is_ours else "normal", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6, "shrinkA": 1, "shrinkB": 3},
        )  # fmt: skip
