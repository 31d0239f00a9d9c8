"""The table of rounds that `pia shrink` fills line by line; it fits a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pia.ipad.record import RoundRecord
    from pia.ipad.shape import Shape

_SIZES = {
    "layers": "num_layers",
    "KV": "num_kv_heads",
    "FFN": "ffn_size",
    "hidden": "hidden_size",
    "exp": "num_experts",
}
_FIGURES = {"kept": 6, "perplexity": 16, "agrees": 6, "tokens/s": 15, "loss": 6}
"""With the width of each column."""


class RoundsTable:
    """Lines of text.

    Args:
        original: what all figures are compared with.
        shapes: of all rounds; sizes that stay as they are have no column.
    """

    def __init__(self, original: RoundRecord, shapes: Sequence[Shape]) -> None:
        self._original = original
        before = original.shape
        self._sizes = {
            name: field
            for name, field in _SIZES.items()
            if any(getattr(shape, field) != getattr(before, field) for shape in shapes)
        }
        widths = [max(len(name), len(str(getattr(before, field)))) for name, field in self._sizes.items()]
        self._widths = [8, *widths, *_FIGURES.values()]

    @property
    def head(self) -> str:
        """Names of the columns."""
        return self._joined(["", *self._sizes, *_FIGURES])

    def line(self, record: RoundRecord) -> str:
        """A model along the way."""
        original = self._original
        return self._joined(
            [
                f"round {record.number}" if record.number else "original",
                *(str(getattr(record.shape, field)) for field in self._sizes.values()),
                f"{record.non_embedding / original.non_embedding:.1%}",
                _beside(record.perplexity, original.perplexity, 3),
                "" if record.agreement is None else f"{record.agreement:.1%}",
                _beside(record.tokens_per_second, original.tokens_per_second, 1),
                f"{record.loss_curve[-1][1]:.3f}" if record.loss_curve else "",
            ]
        )

    def _joined(self, cells: Sequence[str]) -> str:
        first, *others = (cell.rjust(width) for cell, width in zip(cells, self._widths, strict=True))
        return "  ".join([cells[0].ljust(len(first)), *others]).rstrip()


def _beside(value: float | None, original: float | None, digits: int) -> str:
    """A figure, and its ratio to the original's."""
    if value is None:
        return ""
    text = _short(value, digits)
    return f"{text} ({_short(value / original, 2, below=10)} x)" if original else text


def _short(value: float, digits: int, below: float = 1000) -> str:
    """With so many digits behind the point, but none above a bound."""
    if value >= 1e6:
        return f"{value:.1e}"
    return f"{value:.{digits}f}" if value < below else f"{value:.0f}"
