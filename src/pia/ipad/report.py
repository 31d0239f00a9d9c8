"""The report of a shrink: one HTML file that needs nothing beside it, and the same in Markdown."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pia.bench.plot_style import has_matplotlib
from pia.drafting.atomic_file import replacing
from pia.ipad.figures import change, count_text, number, percent, round_rows, table
from pia.ipad.record import ShrinkRecord
from pia.ipad.report_plots import TITLES, draw_plots

HTML, MARKDOWN = "report.html", "report.md"
_NO_PLOTS = "No plots: Matplotlib is not installed (`pip install matplotlib`)."
_CAPTIONS = {
    "quality": "Each round after its distillation; the dotted line is the original.",
    "layers": "What the layers were worth before the first cut.",
    "experts": "Each row is a layer, whose experts compare with each other; crosses are on those that went.",
    "units": "Columns are units of the original; the colour says in which round they went, alone or with their layer.",
    "loss": "The loss of distillation; a round begins at each dotted line, right after a cut.",
}
_STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .25rem .7rem; border-bottom: 1px solid #e6e6e6; text-align: right }
td:first-child, th:first-child { text-align: left }
div.wide { overflow-x: auto }
figure { margin: 1rem 0 } figcaption { color: #666; font-size: .9rem }
img { max-width: 100%; height: auto }
pre { background: #f6f6f6; padding: .7rem; overflow-x: auto }"""


def write_report(record: ShrinkRecord, folder: Path) -> list[Path]:
    """Writes report.html and report.md, and the plots of the latter as .png; each file whole or not at all.

    Returns:
        paths of what was written.

    Raises:
        OSError: a file can't be written.
    """
    folder = Path(folder)
    plots = _plots(record)
    images = {f"report_{name}.png": _saved(figure, "png") for name, figure in plots.items()}
    vectors = {name: _saved(figure, "svg") for name, figure in plots.items()}
    files = {**images, HTML: html(record, vectors).encode(), MARKDOWN: markdown(record, list(plots)).encode()}
    for name, content in files.items():
        with replacing(folder / name) as file:
            file.write(content)
    return [folder / name for name in files]


def html(record: ShrinkRecord, plots: Mapping[str, bytes]) -> str:
    """The page; plots are SVG images inside it.

    Args:
        record: of the shrink.
        plots: SVG files by the name of the plot.
    """
    head, rows = round_rows(record)
    blocks = [
        f"<h1>{escape(_title(record))}</h1>",
        f"<p>{escape(_summary(record))}</p>",
        *(f"<p>{escape(note)}</p>" for note in record.notes),
        "<h2>Rounds</h2>",
        f'<div class="wide">{_html_table(head, rows)}</div>',
        *_html_plots(plots),
        "<h2>How it was made</h2>",
        f"<pre>{escape(record.command)}</pre>" if record.command else "",
        _html_table(["", ""], _facts(record)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(_title(record))}</title><style>\n{_STYLE}\n</style></head><body>\n"
        + "\n".join(block for block in blocks if block)
        + "\n</body></html>\n"
    )


def markdown(record: ShrinkRecord, plots: Sequence[str]) -> str:
    """The same as text.

    Args:
        record: of the shrink.
        plots: names of those drawn, each in a file report_NAME.png beside the text.
    """
    shown = [f"## {TITLES[name]}\n\n![{TITLES[name]}](report_{name}.png)\n\n{_CAPTIONS[name]}" for name in plots]
    blocks = [
        f"# {_title(record)}",
        _summary(record),
        *record.notes,
        "## Rounds",
        table(*round_rows(record)),
        *(shown or [_NO_PLOTS]),
        "## How it was made",
        f"```sh\n{record.command}\n```" if record.command else "",
        table(["", ""], [[name, f"`{value}`"] for name, value in _facts(record)]),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _title(record: ShrinkRecord) -> str:
    return f"{Path(record.model).name or record.model}, shrunk"


def _summary(record: ShrinkRecord) -> str:
    before, after = record.original, record.last
    if not record.rounds:
        return "No round was kept: the model is as it was."
    parts = [
        f"{count_text(before.non_embedding)} non-embedding parameters became {count_text(after.non_embedding)} "
        f"({percent(after.non_embedding / before.non_embedding)})"
    ]
    if after.perplexity is not None and before.perplexity is not None:
        parts.append(f"held-out perplexity {number(before.perplexity)} became {number(after.perplexity)} "
                     f"{change(after.perplexity, before.perplexity)}")  # fmt: skip
    if after.tokens_per_second is not None and before.tokens_per_second is not None:
        parts.append(f"plain decoding runs at {number(after.tokens_per_second)} tokens/s in place of "
                     f"{number(before.tokens_per_second)} "
                     f"{change(after.tokens_per_second, before.tokens_per_second)}")  # fmt: skip
    return "; ".join(parts) + "."


def _facts(record: ShrinkRecord) -> list[list[str]]:
    facts = {"family": record.family, "seed": record.seed, "data": record.data_fingerprint, **record.config}
    facts |= {f"{name} version": version for name, version in record.versions.items()}
    return [[name, str(value)] for name, value in facts.items() if value not in ("", None)]


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    header = line(head, "th") if any(head) else ""
    return "<table>" + header + "".join(line(row, "td") for row in rows) + "</table>"


def _html_plots(plots: Mapping[str, bytes]) -> list[str]:
    if not plots:
        return [f"<p>{_NO_PLOTS.replace('`', '')}</p>"]
    return [
        f"<h2>{escape(TITLES[name])}</h2>\n<figure>"
        f'<img alt="{escape(TITLES[name])}" src="data:image/svg+xml;base64,{base64.b64encode(content).decode()}">'
        f"<figcaption>{escape(_CAPTIONS[name])}</figcaption></figure>"
        for name, content in plots.items()
    ]


def _plots(record: ShrinkRecord) -> dict[str, Any]:
    return draw_plots(record) if has_matplotlib() else {}


def _saved(figure: Any, kind: str) -> bytes:
    """The file of a figure, the same for the same figures: no date, no random names."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with rc_context({"svg.hashsalt": "pia"}):
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()
