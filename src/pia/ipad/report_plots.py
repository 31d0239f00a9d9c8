"""Draws a shrink: quality against size, importance of layers, which units went, and the loss over the rounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pia.bench.plot_style import BLUE, FAINT, INK, LIGHT_BLUE, VERMILION, new_figure, tidy
from pia.ipad.record import RoundRecord, ShrinkRecord

TITLES = {
    "quality": "Held-out perplexity against size",
    "layers": "Importance of layers, as first measured",
    "experts": "Importance of experts, as first measured",
    "units": "When units went",
    "loss": "Training loss over the rounds",
}
_MAX_COLUMNS = 512
"""Units side by side in the map of units; more are shown by every second, every third, and so on."""


def draw_plots(record: ShrinkRecord) -> dict[str, Any]:
    """Figures of Matplotlib by name, see `TITLES`; those for which there are no figures are left out."""
    measured = [item for item in (record.original, *record.rounds) if item.perplexity is not None]
    wanted: dict[str, tuple[bool, Callable[[ShrinkRecord], Any]]] = {
        "quality": (len(measured) > 1, _draw_quality),
        "layers": (record.scores is not None, _draw_layers),
        "experts": (record.scores is not None and record.scores.experts is not None, _draw_experts),
        "units": (bool(record.rounds), _draw_units),
        "loss": (any(item.loss_curve for item in record.rounds), _draw_loss),
    }
    return {name: draw(record) for name, (is_there, draw) in wanted.items() if is_there}


def _draw_quality(record: ShrinkRecord) -> Any:
    """A point for each round, and speeds beside it where they were measured."""
    items = [item for item in (record.original, *record.rounds) if item.perplexity is not None]
    has_speed = all(item.tokens_per_second for item in items)
    figure = new_figure(9.6 if has_speed else 6.4, 3.6)
    panels = figure.subplots(1, 2 if has_speed else 1, squeeze=False)[0]
    sizes = [100 * item.non_embedding / record.original.non_embedding for item in items]
    _curve(panels[0], sizes, items, "non-embedding parameters kept, %")
    panels[0].invert_xaxis()
    if has_speed:
        _curve(panels[1], [item.tokens_per_second or 0.0 for item in items], items, "tokens/s, plain decoding")
    return figure


def _curve(panel: Any, places: list[float], items: list[RoundRecord], label: str) -> None:
    values = [item.perplexity for item in items]
    panel.plot(places, values, color=BLUE, marker="o", markersize=5, linewidth=1.6)
    panel.axhline(values[0], color=FAINT, linewidth=1, linestyle=":")
    for place, value, item in zip(places, values, items, strict=True):
        text = str(item.number) if item.number else "original"
        panel.annotate(text, (place, value), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8,
                       color=INK)  # fmt: skip
    panel.set_xlabel(label)
    panel.set_ylabel("held-out perplexity")
    panel.margins(x=0.08, y=0.18)
    tidy(panel, grid="both")


def _draw_layers(record: ShrinkRecord) -> Any:
    assert record.scores is not None, "drawn only with scores"
    values = record.scores.layers
    stays = set(record.last.selection.layers)
    figure = new_figure(max(4.8, min(12.0, 0.3 * len(values) + 2.4)), 2.9)
    panel = figure.subplots()
    for label, colour, indices in (
        ("stays", BLUE, [index for index in range(len(values)) if index in stays]),
        ("went", VERMILION, [index for index in range(len(values)) if index not in stays]),
    ):
        if indices:
            panel.bar(indices, values[indices], color=colour, width=0.72, label=label)
    panel.set_xlabel("layer")
    panel.set_ylabel("importance")
    panel.set_xticks(_ticks(len(values)))
    tidy(panel)
    panel.legend(frameon=False, fontsize=9)
    return figure


def _draw_experts(record: ShrinkRecord) -> Any:
    """A heat map, layers downwards and experts across; a cross on each that went, alone or with its layer."""
    assert record.scores is not None and record.scores.experts is not None, "drawn only with scores of experts"
    values = record.scores.experts
    num_layers, num_experts = values.shape
    figure = new_figure(max(4.8, min(12.0, 0.3 * num_experts + 2.4)), max(2.4, min(12.0, 0.24 * num_layers + 1.4)))
    panel = figure.subplots()
    shares = values / np.maximum(values.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    image = panel.imshow(shares, aspect="auto", interpolation="nearest", cmap="Blues", vmin=0.0)
    gone = np.argwhere(leaving_rounds(record, "experts") > 0)
    if len(gone):
        panel.plot(gone[:, 1], gone[:, 0], linestyle="", marker="x", markersize=4, color=VERMILION, label="went")
        panel.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    panel.set_xlabel("expert")
    panel.set_ylabel("layer")
    panel.set_xticks(_ticks(num_experts))
    panel.set_yticks(_ticks(num_layers))
    panel.tick_params(colors=INK, length=2, labelsize=8)
    bar = figure.colorbar(image, ax=panel, pad=0.01)
    bar.set_label("share of its layer's importance", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def _draw_units(record: ShrinkRecord) -> Any:
    """A map for each kind of unit that shrank: layers downwards, units across, the colour is the round of leaving."""
    maps = _leaving_maps(record)
    heights = [1.0 + 0.16 * max(rows.shape[0], 3) for _, rows in maps]
    figure = new_figure(9.6, min(14.0, sum(heights) + 0.5))
    panels = figure.subplots(len(maps), 1, squeeze=False, height_ratios=heights)[:, 0]
    colours = _colours(len(record.rounds))
    image = None
    for panel, (name, rows) in zip(panels, maps, strict=True):
        num_layers, num_units = rows.shape
        image = panel.imshow(
            rows[:, :: -(-num_units // _MAX_COLUMNS)],
            aspect="auto",
            interpolation="nearest",
            cmap=colours,
            extent=(-0.5, num_units - 0.5, num_layers - 0.5, -0.5),
            vmin=-0.5,
            vmax=len(record.rounds) + 0.5,
        )
        panel.set_title(name, loc="left", fontsize=9.5, color=INK)
        panel.set_xticks(_ticks(num_units))
        panel.set_yticks(_ticks(num_layers) if num_layers > 1 else [])
        panel.set_ylabel("layer" if num_layers > 1 else "")
        panel.tick_params(colors=INK, length=2, labelsize=8)
    bar = figure.colorbar(image, ax=list(panels), shrink=0.9, pad=0.01)
    numbers = [number for number in _ticks(len(record.rounds) + 1) if number]
    bar.set_ticks([0, *numbers], labels=["stays", *(f"round {number}" for number in numbers)])
    bar.ax.tick_params(labelsize=8)
    return figure


def _leaving_maps(record: ShrinkRecord) -> list[tuple[str, Any]]:
    """Name, and for each unit (a row for each layer) the round in which it went; 0 for what stayed."""
    whole, last = record.original.selection, record.last.selection
    kinds = [("KV groups", "kv_groups"), ("FFN neurons", "ffn"), ("experts", "experts")]
    maps = [(name, leaving_rounds(record, field)) for name, field in kinds if getattr(whole, field)]
    if len(last.hidden) < len(whole.hidden):
        maps.append(("hidden channels", leaving_rounds(record, "hidden")))
    return maps


def leaving_rounds(record: ShrinkRecord, field: str) -> Any:
    """For each unit of the original the round in which it went, with its layer or alone; 0 for what stayed.

    Returns:
        `[layers, units]`; `[1, units]` for hidden channels, which all layers share.
    """
    whole = record.original.selection
    rows = [whole.hidden] if field == "hidden" else getattr(whole, field)
    gone = np.zeros((len(rows), max(map(len, rows))), dtype=int)
    for item in reversed(record.rounds):  # what an early round lacks, the later ones lack too: the first one wins
        stays = np.zeros_like(gone, dtype=bool)
        if field == "hidden":
            stays[0, list(item.selection.hidden)] = True
        else:
            for layer, units in zip(item.selection.layers, getattr(item.selection, field), strict=True):
                stays[layer, list(units)] = True
        gone[~stays] = item.number
    return gone


def _colours(num_rounds: int) -> Any:
    """Pale for what stays; from early to late rounds the more vivid."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    shades = colormaps["plasma_r"](np.linspace(0.15, 0.95, max(1, num_rounds)))
    return ListedColormap([(0.93, 0.94, 0.95, 1.0), *map(tuple, shades)])


def _draw_loss(record: ShrinkRecord) -> Any:
    """Rounds one after the other; a line where a new one begins."""
    figure = new_figure(9.6, 3.0)
    panel = figure.subplots()
    start = 0
    for item in record.rounds:
        if not item.loss_curve:
            continue
        steps = [start + step for step, _ in item.loss_curve]
        panel.plot(steps, [loss for _, loss in item.loss_curve], color=BLUE, linewidth=1.2)
        panel.axvline(start, color=LIGHT_BLUE, linewidth=0.8, linestyle=":")
        panel.annotate(str(item.number), (start, 1), xycoords=("data", "axes fraction"), xytext=(3, -9),
                       textcoords="offset points", fontsize=8, color=FAINT)  # fmt: skip
        start = steps[-1] + 1
    panel.set_xlabel("step (numbers above: rounds)")
    panel.set_ylabel("loss")
    tidy(panel)
    return figure


def _ticks(count: int) -> list[int]:
    return list(range(0, count, max(1, -(-count // 16))))
