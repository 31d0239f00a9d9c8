"""The screen of `pia shrink --plan`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pia.cli.terminal import new_console

if TYPE_CHECKING:
    from pia.ipad.plan import Plan, PlannedRound

_SIZES = {
    "layers": "num_layers",
    "KV heads": "num_kv_heads",
    "FFN": "ffn_size",
    "hidden": "hidden_size",
    "experts": "num_experts",
}
_BAR = 24
"""Characters of the longest bar."""


def print_plan(plan: Plan) -> None:
    """Shows what a shrink would do: the rounds, what would go, and how much each layer matters."""
    console = new_console()
    console.print(_rounds_table(plan))
    console.print(_axes_table(plan))
    if plan.scores is not None:
        console.print(_layers_table(plan))
    for line in _remarks(plan):
        console.print(line, markup=False)


def _rounds_table(plan: Plan) -> Any:
    """Sizes that change, costs and speed of each round; those that stay as they are have no column."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    rows = [_cells(item, plan.original) for item in (plan.original, *plan.rounds)]
    names = _changing_sizes(plan)
    used = [name for name in rows[0] if name not in _SIZES or name in names]
    table = Table(title=f"To {plan.target} ({plan.family})", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for column in used:
        if any(row[column] for row in rows) or not column:
            table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(row[column.header] for column in table.columns if isinstance(column.header, str)))
    return table


def _changing_sizes(plan: Plan) -> list[str]:
    before, after = plan.original.shape, plan.final.shape
    return [name for name, field in _SIZES.items() if getattr(before, field) != getattr(after, field)]


def _cells(item: PlannedRound, first: PlannedRound) -> dict[str, str]:
    """By column."""
    cost = item.cost
    sizes = {name: str(getattr(item.shape, field)) for name, field in _SIZES.items()}
    speed = "" if item.speed is None else f"{item.speed.tokens_per_second:.1f}"
    ratio = item.speed.tokens_per_second / first.speed.tokens_per_second if item.speed and first.speed else None
    return {
        "": f"round {item.number}" if item.number else "original",
        **sizes,
        "parameters": millions(cost.parameters),
        "non-emb.": f"{cost.non_embedding / first.cost.non_embedding:.1%}",
        "MFLOPs/tok": f"{cost.flops_per_token / 1e6:,.1f}",
        "weights": memory(cost.weight_bytes),
        "KV/tok": memory(cost.kv_bytes_per_token),
        "tokens/s": speed,
        "faster": "" if ratio is None else f"{ratio:.2f} x",
    }


def _axes_table(plan: Plan) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    before, after, selection = plan.original.shape, plan.final.shape, plan.final.selection
    table = Table(title="What would go", box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for column in ("now", "then", "which"):
        table.add_column(column, justify="right" if column != "which" else "left")
    which = _listed([index for index in range(before.num_layers) if index not in selection.layers])
    rows: list[tuple[str, int, int, str]] = [
        ("layers", before.num_layers, after.num_layers, which),
        ("KV groups a layer", before.num_kv_heads, after.num_kv_heads, "the least important of each layer"),
        ("neurons a layer", before.ffn_size, after.ffn_size, "the least important of each layer"),
        ("hidden channels", before.hidden_size, after.hidden_size, "the same ones in every layer"),
        ("experts a layer", before.num_experts, after.num_experts, "the least important of each layer"),
    ]
    for name, now, then, note in rows:
        if now:
            table.add_row(name, str(now), str(then), note if then < now else "all stay")
    return table


def _layers_table(plan: Plan) -> Any:
    """A bar for each layer, and of what stays in it the share of importance."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    scores, selection = plan.scores, plan.final.selection
    assert scores is not None, "asked for only with scores"
    table = Table(title="Importance of layers", box=SIMPLE_HEAD)
    for column in ("layer", "importance", "", "then", "KV importance kept", "FFN importance kept"):
        table.add_column(column, justify="left" if column == "" else "right")
    largest = max(float(scores.layers.max()), 1e-300)
    for layer, value in enumerate(scores.layers):
        bar = bar_of(float(value) / largest)
        if layer not in selection.layers:
            table.add_row(str(layer), f"{value:.4g}", bar, "goes", "", "")
            continue
        row = selection.layers.index(layer)
        kept = (
            _share(scores.kv_groups[layer], selection.kv_groups[row]),
            _share(scores.ffn[layer], selection.ffn[row]),
        )
        table.add_row(str(layer), f"{value:.4g}", bar, "stays", *kept)
    return table


def bar_of(share: float) -> str:
    """A bar of blocks, for a share of the longest."""
    return "█" * max(0, round(share * _BAR)) or "▏"


def _share(values: Any, kept: Sequence[int]) -> str:
    total = float(values.sum())
    return f"{float(values[list(kept)].sum()) / total:.1%}" if total > 0 else "-"


def _listed(indices: Sequence[int]) -> str:
    return ", ".join(map(str, indices)) or "all stay"


def _remarks(plan: Plan) -> list[str]:
    lines = [
        f"Nothing was trained or written. MFLOPs/tok: with {plan.context:,} tokens in the cache. "
        "non-emb.: share of the non-embedding parameters."
    ]
    if plan.final.speed is not None:
        lines.append("tokens/s: plain decoding measured here, with random weights of each shape.")
    if plan.scores is None:
        lines.append("No text was given, so all units of a kind count the same; with --data they are measured.")
    else:
        lines.append("Each round scores anew after training, so later rounds may choose other units than shown.")
    return lines


def millions(count: float) -> str:
    """A number of parameters."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"


def memory(num_bytes: float) -> str:
    """Bytes in a unit that suits them."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:.0f} B"
