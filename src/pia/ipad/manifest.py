"""The manifest beside a shrunk model: what was cut and why, for programs.

`pia_shrink.json` is one object:

* `format`: 1; `made_by`: "pia" and its version.
* `model`, `family`, `command`, `seed`, `data_fingerprint`, `config`, `versions`, `notes`: of the run.
* `original`, `result`: `shape`, `parameters`, `non_embedding`, `perplexity`, `kl`, `agreement`, `tokens_per_second`
  (null where not measured).
* `kept`: units of the original that are in the result: `layers`, `kv_groups`, `ffn`, `hidden`, `experts`; those inside
  layers have a row for each layer that stayed.
* `rounds`: for each its figures as above, `number`, `seconds`, `peak_bytes`, and `cut`: the units of the original that
  this round removed. `cut.layers` and `cut.hidden` are lists; `cut.kv_groups`, `cut.ffn` and `cut.experts` map the
  index of a layer in the original (as text) to a list. Units inside a layer that went as a whole are not listed.
* `scores`: of the first round, by kind: `least`, `median`, `most`, `sum`, and for `layers` the `values`; null if none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pia.drafting.atomic_file import replacing
from pia.ipad.record import RoundRecord, ShrinkRecord
from pia.ipad.scores import Scores
from pia.ipad.selection import Indices, Selection

FILE_NAME = "pia_shrink.json"
FORMAT = 1
_FIGURES = ("parameters", "non_embedding", "perplexity", "kl", "agreement", "tokens_per_second")


def write_manifest(record: ShrinkRecord, folder: Path) -> Path:
    """Writes the manifest into a folder, whole or not at all.

    Raises:
        OSError: it can't be written; an old one is left as it was.
    """
    path = Path(folder) / FILE_NAME
    with replacing(path) as file:
        file.write((json.dumps(manifest(record), indent=1) + "\n").encode())
    return path


def manifest(record: ShrinkRecord) -> dict[str, Any]:
    """What the file holds, see this module."""
    content = record.to_json()
    kept = ("model", "family", "command", "seed", "data_fingerprint", "config", "versions", "notes")
    before = [record.original, *record.rounds]
    return {
        "format": FORMAT,
        "made_by": f"pia {record.versions.get('pia', '')}".strip(),
        **{name: content[name] for name in kept},
        "original": _figures(record.original),
        "result": _figures(record.last),
        "kept": record.last.selection.to_json(),
        "rounds": [_round(one, other) for one, other in zip(before, record.rounds, strict=False)],
        "scores": None if record.scores is None else _summary(record.scores),
    }


def removed(before: Selection, after: Selection) -> dict[str, Any]:
    """The units of the original that are in one selection and not in the next."""

    def rows(name: str) -> dict[str, list[int]]:
        old, new = (dict(zip(one.layers, getattr(one, name), strict=False)) for one in (before, after))
        gone = {str(layer): _without(old[layer], new[layer]) for layer in after.layers if layer in new}
        return {layer: units for layer, units in gone.items() if units}

    return {
        "layers": _without(before.layers, after.layers),
        "kv_groups": rows("kv_groups"),
        "ffn": rows("ffn"),
        "hidden": _without(before.hidden, after.hidden),
        "experts": rows("experts"),
    }


def _without(units: Indices, kept: Sequence[int]) -> list[int]:
    stays = set(kept)
    return [unit for unit in units if unit not in stays]


def _figures(item: RoundRecord) -> dict[str, Any]:
    return {"shape": item.to_json()["shape"], **{name: getattr(item, name) for name in _FIGURES}}


def _round(before: RoundRecord, after: RoundRecord) -> dict[str, Any]:
    return {
        "number": after.number,
        **_figures(after),
        "seconds": after.seconds,
        "peak_bytes": after.peak_bytes,
        "cut": removed(before.selection, after.selection),
    }


def _summary(scores: Scores) -> dict[str, Any]:
    kinds = {name: values for name, values in vars(scores).items() if values is not None}
    rows: dict[str, Any] = {
        name: {
            "least": float(values.min()),
            "median": float(np.median(values)),
            "most": float(values.max()),
            "sum": float(values.sum()),
        }
        for name, values in kinds.items()
    }
    rows["layers"]["values"] = scores.layers.tolist()
    return rows
