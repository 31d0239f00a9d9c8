"""Figures of a shrink as text, for its card and its report."""

from __future__ import annotations

from collections.abc import Sequence

from pia.ipad.record import RoundRecord, ShrinkRecord


def count_text(count: float) -> str:
    """A number of parameters."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count:,.0f}"


def number(value: float | None) -> str:
    """A figure with four digits; nothing where it was not measured."""
    if value is None:
        return ""
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"


def percent(share: float | None) -> str:
    """A share."""
    return "" if share is None else f"{share:.1%}"


def change(after: float | None, before: float | None) -> str:
    """How many times as much, in brackets."""
    return "" if after is None or not before else f"({after / before:.2f} x)"


def memory_text(num_bytes: int | None) -> str:
    """Bytes as megabytes."""
    return "" if num_bytes is None else f"{num_bytes / 1e6:,.1f} MB"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def round_rows(record: ShrinkRecord) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of all rounds, the original first; columns without figures are left out."""
    head = ["", "layers", "KV heads", "FFN", "hidden", "parameters", "non-embedding", "perplexity", "KL", "agreement",
            "tokens/s", "memory", "time"]  # fmt: skip
    rows = [_cells(item, record.original) for item in (record.original, *record.rounds)]
    used = [index for index in range(len(head)) if index == 0 or any(row[index] for row in rows)]
    return [head[index] for index in used], [[row[index] for index in used] for row in rows]


def _cells(item: RoundRecord, original: RoundRecord) -> list[str]:
    shape = item.shape
    return [
        f"round {item.number}" if item.number else "original",
        *(str(size) for size in (shape.num_layers, shape.num_kv_heads, shape.ffn_size, shape.hidden_size)),
        count_text(item.parameters),
        percent(item.non_embedding / original.non_embedding),
        f"{number(item.perplexity)} {change(item.perplexity, original.perplexity)}".strip(),
        number(item.kl),
        percent(item.agreement),
        number(item.tokens_per_second),
        memory_text(item.peak_bytes),
        "" if item.seconds is None else f"{item.seconds:,.0f} s",
    ]
