"""Draws a report: speed by contender, what a step is made of, and forwards against the floor of the roofline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pia.bench.breakdown import PARTS
from pia.bench.labels import label_of
from pia.bench.machine import device_name
from pia.bench.plot_style import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    LIGHT_BLUE,
    ORANGE,
    PINK,
    VERMILION,
    new_figure,
    save,
    tidy,
)

Case = Mapping[str, Any]

_COLOURS = {
    "generate": FAINT,
    "prompt_lookup": LIGHT_BLUE,
    "assisted": BLUE,
    "plain": "#F4C9A8",
    "pia_cold": "#E8935A",
    "pia": VERMILION,
}
"""Theirs cool, PIA's warm; lightness tells apart what hue does not."""
_PART_COLOURS = {"draft": ORANGE, "forward": BLUE, "accept": GREEN, "keep": PINK, "other": "#bdbdbd"}
_BEHIND_TEXT = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}
_MOST_OF_OURS = 2.0
"""A step of Transformers' is drawn up to so many times PIA's longest: beyond that it would hide PIA's parts."""
_NUM_COLUMNS = 2
_PANEL_WIDTH = 6.4
_BAR_HEIGHT = 0.36


def draw_plots(cases: Sequence[Case], folder: Path) -> dict[str, list[str]]:
    """Draws each plot to .png and .svg.

    Args:
        cases: as they are in report.json.
        folder: where to.

    Returns:
        names of the files by that of the plot; plots for which there are no figures are left out.
    """
    plots: dict[str, tuple[Sequence[Case], Callable[[Any, Case], None], str]] = {
        "speed": (cases, _draw_speed, "Tokens per second (median round; slowest to fastest)"),
        "steps": ([case for case in cases if _step_rows(case)], _draw_steps, "Where the time of a decode step goes"),
        "roofline": (_with_curves(cases), _draw_curve, "One forward over q tokens, and the floor of a plain step"),
    }
    return {
        name: save(_draw(shown, draw, title), folder, name) for name, (shown, draw, title) in plots.items() if shown
    }


def _draw(cases: Sequence[Case], draw: Callable[[Any, Case], None], title: str) -> Any:
    """A panel for each case."""
    columns = min(_NUM_COLUMNS, len(cases))
    lines = -(-len(cases) // columns)
    num_bars = max(len(case["contenders"]) for case in cases)
    height = 1.5 + _BAR_HEIGHT * max(num_bars, 5)
    figure = new_figure(_PANEL_WIDTH * columns + 0.6, height * lines + 0.5)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for panel, case in zip(panels, cases, strict=False):
        draw(panel, case)
        panel.set_title(_title(case), loc="left", fontsize=9.5, color=INK)
    for panel in panels[len(cases) :]:
        panel.set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold", color=INK)
    return figure


def _title(case: Case) -> str:
    kind = "REPLAY, " if case["is_replay"] else ""
    batch = f", batch {case['batch']}" if case["batch"] > 1 else ""
    device = f"{device_name(case['machine'])}, {case['machine']['dtype']}"
    return f"{kind}{case['model']}, {case['prompt_set']}{batch}\n{device}"


def _draw_speed(panel: Any, case: Case) -> None:
    """Bars of tokens/s; the whiskers are the slowest and the fastest round."""
    rows = list(case["contenders"].items())
    longest = max(row["tokens_per_s"]["max"] for _, row in rows)
    for place, (name, row) in enumerate(rows):
        speed = row["tokens_per_s"]
        median = speed["median"]
        whiskers = [[max(0, median - speed["min"])], [max(0, speed["max"] - median)]]
        panel.barh(place, median, height=0.66, color=_COLOURS.get(name, FAINT))
        panel.errorbar(median, place, xerr=whiskers, color=INK, linewidth=1, capsize=3)
        panel.annotate(
            f"{median:.1f}  ({row['over_generate']:.2f} x)", (speed["max"], place), xytext=(7, 0),
            textcoords="offset points", va="center", fontsize=9, color=INK,
            fontweight="bold" if name == "pia" else "normal",
        )  # fmt: skip
    panel.set_yticks(range(len(rows)), [label_of(name) for name, _ in rows])
    panel.set_xlim(0, 1.32 * longest)
    panel.set_xlabel("tokens/s (x Transformers' generate)", color=INK)
    panel.invert_yaxis()
    tidy(panel, grid="x")


def _step_rows(case: Case) -> dict[str, Mapping[str, Any]]:
    """Contenders of which the time of a step is known; none if nothing of PIA's is."""
    rows = {name: row for name, row in case["contenders"].items() if row["step_ms"]}
    return rows if any(row["steps"] for row in rows.values()) else {}


def _draw_steps(panel: Any, case: Case) -> None:
    """Stacked bars of milliseconds; Transformers' own loop cannot be taken apart."""
    known = _step_rows(case)
    longest = _MOST_OF_OURS * max(row["step_ms"] for row in known.values() if row["steps"])
    rows = {name: row for name, row in known.items() if row["steps"] or row["step_ms"] <= longest}
    for place, row in enumerate(rows.values()):
        start = 0.0
        for part, value in row["steps"]["ms"].items() if row["steps"] else ():
            panel.barh(place, value, left=start, height=0.66, color=_PART_COLOURS[part])
            start += value
        if not row["steps"]:
            panel.barh(place, row["step_ms"], height=0.66, color="white", edgecolor=FAINT, hatch="///", linewidth=0.8)
        panel.annotate(
            _step_label(row), (row["step_ms"], place), xytext=(6, 0), textcoords="offset points", va="center",
            fontsize=9, color=INK,
        )  # fmt: skip
    panel.set_yticks(range(len(rows)), [label_of(name) for name in rows])
    panel.set_xlim(0, 1.5 * max(row["step_ms"] for row in rows.values()))
    panel.set_xlabel("ms a decode step" + _not_drawn(known, rows), loc="left", fontsize=9.5, color=INK)
    panel.invert_yaxis()
    tidy(panel, grid="x")
    _part_legend(panel, has_whole=any(not row["steps"] for row in rows.values()))


def _not_drawn(known: Mapping[str, Mapping[str, Any]], drawn: Mapping[str, Any]) -> str:
    """Steps that have no bar, in words."""
    left_out = [
        f"{label_of(name).removeprefix('generate, ')} {row['step_ms']:.1f}"
        for name, row in known.items()
        if name not in drawn
    ]
    return f" (not drawn: {', '.join(left_out)})" if left_out else ""


def _step_label(row: Mapping[str, Any]) -> str:
    tokens = f", {row['edl']:.2f} tokens" if row["edl"] is not None else ""
    return f"{row['step_ms']:.2f} ms{tokens}"


def _part_legend(panel: Any, *, has_whole: bool) -> None:
    """Below the axis, where no bar is."""
    from matplotlib.patches import Patch

    patches = [Patch(facecolor=_PART_COLOURS[part], label=part) for part in PARTS]
    if has_whole:
        patches.append(Patch(facecolor="white", edgecolor=FAINT, hatch="///", label="not taken apart"))
    panel.legend(
        handles=patches, loc="upper center", bbox_to_anchor=(0.4, -0.22), ncols=len(patches), frameon=False,
        fontsize=8.5, handlelength=1.2, columnspacing=1.0,
    )  # fmt: skip


def _with_curves(cases: Sequence[Case]) -> list[Case]:
    """One case for each model and device: prompts change nothing there."""
    found: dict[tuple[str, str, str], Case] = {}
    for case in cases:
        if case.get("curve") and case.get("roofline"):
            found.setdefault((case["model"], device_name(case["machine"]), case["machine"]["dtype"]), case)
    return list(found.values())


def _draw_curve(panel: Any, case: Case) -> None:
    """c(q) as measured, and the time in which the bytes of a plain step can be read."""
    curve, line = case["curve"], case["roofline"]
    sizes, times, floor = curve["sizes"], curve["ms"], line["floor_ms"]
    places = range(len(sizes))
    panel.plot(places, times, color=VERMILION, marker="o", linewidth=2, clip_on=False, zorder=3)
    for place, (size, time) in enumerate(zip(sizes, times, strict=True)):
        if size in (1, sizes[-1]) or size & (size - 1) == 0:
            panel.annotate(
                f"{time:.2f}\n({time / times[0]:.2f} x)", (place, time), xytext=(0, 7), textcoords="offset points",
                ha="center", fontsize=8, color=INK, zorder=4, bbox=_BEHIND_TEXT,
            )  # fmt: skip
    panel.axhline(floor, color=BLUE, linewidth=1.5, linestyle=(0, (5, 2)))
    is_high = floor > 0.2 * max(times)  # the curve is near: there is more room below
    panel.annotate(
        f"floor {floor:.2f} ms: {line['bytes'] / 1e6:,.0f} MB at {line['bandwidth_gb_s']:,.0f} GB/s",
        (places[-1], floor), xytext=(0, -5 if is_high else 4), textcoords="offset points", fontsize=8.5, color=BLUE,
        ha="right", va="top" if is_high else "bottom",
    )  # fmt: skip
    panel.set_xticks(places, [str(size) for size in sizes])
    panel.set_ylim(0, 1.22 * max(*times, floor))
    panel.set_xlabel(f"tokens fed, q (behind {curve['context']} tokens)", color=INK)
    panel.set_ylabel("ms a forward", color=INK)
    tidy(panel)
