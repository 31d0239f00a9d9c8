"""A report on disk: report.json, report.md and plots."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pia import __version__
from pia.bench.plot_style import has_matplotlib
from pia.bench.report_markdown import markdown
from pia.bench.report_plots import draw_plots
from pia.errors import UnsupportedOptionError

_JSON, _MARKDOWN = "report.json", "report.md"


class ReportFolder:
    """Collects cases and writes them to a folder, which is made where it is not there.

    Args:
        path: of the folder.
        append: keep the cases of the report that is there; one that is measured again takes the old one's place.

    Raises:
        UnsupportedOptionError: what is there cannot be added to.
        OSError: the folder cannot be made.
    """

    def __init__(self, path: str, *, append: bool = False) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        old = self.path / _JSON
        self._cases = _read_cases(old) if append and old.exists() else []

    def add(self, case: dict[str, Any]) -> None:
        """Takes a case of `pia.bench.case_result`; it is on disk at once, lest a later one's failure lose it."""
        self._cases = [other for other in self._cases if _key(other) != _key(case)] + [case]
        content = {"pia": __version__, "date": _today(), "cases": self._cases}
        (self.path / _JSON).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def finish(self) -> list[str]:
        """Draws the plots and writes the text; returns the paths of all files."""
        plots = draw_plots(self._cases, self.path) if has_matplotlib() else {}
        (self.path / _MARKDOWN).write_text(markdown(self._cases, plots, date=_today()), encoding="utf-8")
        names = [_MARKDOWN, _JSON, *(name for files in plots.values() for name in files)]
        return [str(self.path / name) for name in names]


def _today() -> str:
    return datetime.now(timezone.utc).date().isoformat()


def _key(case: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two cases the same measurement."""
    machine = case["machine"]
    asked = (case["model"], case["prompt_set"], case["batch"], case["is_replay"], case["is_sampled"])
    return (*asked, machine["device"], machine["dtype"], machine["gpu"] or machine["cpu"])


def _read_cases(path: Path) -> list[dict[str, Any]]:
    try:
        cases: list[dict[str, Any]] = json.loads(path.read_bytes())["cases"]
        for case in cases:
            _key(case)
    except (ValueError, KeyError, TypeError) as error:
        raise UnsupportedOptionError(f"{path} is no report to add to ({error}); leave out --append") from error
    return cases
