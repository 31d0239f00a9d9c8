"""Recorded outputs of a model: prompts and answers as token ids, in a compact .npz file or as JSON lines."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pia.bench.trace_top import MEMBERS, packed, unpacked
from pia.drafting.atomic_file import replacing
from pia.drafting.token_ids import as_token_ids
from pia.drafting.top_tokens import TopTokens
from pia.errors import TraceError

TokenArray = npt.NDArray[np.int32]

_PARTS = ("prompt", "output")
_MEMBERS = tuple(f"{part}_{what}" for part in _PARTS for what in ("tokens", "offsets"))


@dataclass(frozen=True)
class Trace:
    """Prompts and outputs of one model on one task, as token ids.

    Attributes:
        name: Shown in tables.
        prompts: One int32 array a request.
        outputs: Likewise, without end-of-text tokens.
        meta: Where it comes from.
        predictions: What the caller of each request expected its output to be, int32, none where empty; or no arrays
            at all.
        tops: The likeliest tokens at each place of an output, `[output, k]`, where they were recorded; or no entries.
    """

    name: str
    prompts: list[TokenArray]
    outputs: list[TokenArray]
    meta: Mapping[str, Any] = field(default_factory=dict)
    predictions: list[TokenArray] = field(default_factory=list)
    tops: list[TopTokens | None] = field(default_factory=list)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, tokenizer: Any = None) -> Trace:
        """Reads a trace: JSON lines if the name ends in .jsonl, .ndjson or .json, else .npz.

        An .npz file holds `prompt_tokens`, `prompt_offsets`, `output_tokens`, `output_offsets` (request i is
        `prompt_tokens[prompt_offsets[i]:prompt_offsets[i + 1]]`, likewise its output) and `meta`, a JSON object;
        perhaps also `predicted_tokens` and `predicted_offsets`, and the likeliest tokens at each place of the outputs:
        `top_tokens` and `top_probs`, as many entries for each output token as `top_widths` says for its request.

        Args:
            path: The file.
            tokenizer: Turns JSON lines of text into token ids.

        Raises:
            TraceError: If the file holds no trace.
            OSError: If it cannot be read.
        """
        from pia.bench.trace_lines import is_lines, read_lines

        if is_lines(path):
            return cls(Path(path).stem, *read_lines(path, tokenizer))
        return cls(Path(path).stem, *_read_npz(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an .npz trace, replacing an old file only once the new one is complete.

        Raises:
            OSError: If the file cannot be written; an old one is left as it was.
        """
        arrays: dict[str, Any] = {"meta": json.dumps(dict(self.meta))}
        parts = {"prompt": self.prompts, "output": self.outputs}
        if any(map(len, self.predictions)):
            parts["predicted"] = self.predictions
        for part, sequences in parts.items():
            arrays[f"{part}_tokens"] = _narrow(np.concatenate([np.empty(0, np.int32), *sequences]))
            arrays[f"{part}_offsets"] = np.cumsum([0, *map(len, sequences)], dtype=np.int64)
        if any(top is not None for top in self.tops):
            arrays |= packed(self.tops)
            arrays["top_tokens"] = _narrow(arrays["top_tokens"])
        with replacing(Path(path)) as file:
            np.savez_compressed(file, **arrays)

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[tuple[TokenArray, TokenArray]]:
        return zip(self.prompts, self.outputs, strict=True)

    @property
    def num_output_tokens(self) -> int:
        """Output tokens of all requests."""
        return sum(map(len, self.outputs))

    def part(self, start: int, stop: int) -> Trace:
        """Requests `start` to `stop`, exclusive."""
        span = slice(start, stop)
        return replace(
            self,
            prompts=self.prompts[span],
            outputs=self.outputs[span],
            predictions=self.predictions[span],
            tops=self.tops[span],
        )

    def with_request(self, prompt_ids: Sequence[int], output_ids: Sequence[int], top: TopTokens | None = None) -> Trace:
        """This trace with one request more at its end, perhaps with the likeliest tokens at its places."""
        prompt, output = as_token_ids(prompt_ids), as_token_ids(output_ids)
        predictions = [*self.predictions, np.empty(0, np.int32)] if self.predictions else []
        tops = [*(self.tops or [None] * len(self)), top] if self.tops or top is not None else []
        return Trace(self.name, [*self.prompts, prompt], [*self.outputs, output], self.meta, predictions, tops)


def _read_npz(
    path: str | os.PathLike[str],
) -> tuple[list[TokenArray], list[TokenArray], dict[str, Any], list[TokenArray], list[TopTokens | None]]:
    """Prompts, outputs, `meta`, predictions and likeliest tokens of a file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            missing = [name for name in _MEMBERS if name not in arrays]
            if missing:
                raise TraceError(f"{path} is not a trace: it lacks {', '.join(missing)}")
            prompts, outputs = (_split(arrays[f"{part}_tokens"], arrays[f"{part}_offsets"]) for part in _PARTS)
            meta = json.loads(str(arrays["meta"])) if "meta" in arrays else {}
            has_predictions = "predicted_tokens" in arrays and "predicted_offsets" in arrays
            predictions = _split(arrays["predicted_tokens"], arrays["predicted_offsets"]) if has_predictions else []
            tops = unpacked(arrays, list(map(len, outputs))) if all(name in arrays for name in MEMBERS) else []
    except (TraceError, OSError):
        raise
    except (ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise TraceError(
            f"{path} is damaged, or is no .npz trace ({_short(error)}); record it again, or copy it again"
        ) from error
    if len(prompts) != len(outputs):
        raise TraceError(f"{path} is damaged: it has {len(prompts)} prompts and {len(outputs)} outputs")
    if predictions and len(predictions) != len(prompts):
        raise TraceError(f"{path} is damaged: it has {len(prompts)} prompts and {len(predictions)} predictions")
    return prompts, outputs, meta, predictions, tops


def _split(tokens: npt.NDArray[Any], offsets: npt.NDArray[Any]) -> list[TokenArray]:
    """Cuts a row of tokens into requests.

    Raises:
        ValueError: If the offsets do not rise from 0 to the number of tokens.
    """
    if tokens.ndim != 1 or offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) == 0:
        raise ValueError("tokens and offsets must be flat rows of whole numbers")
    if offsets[0] != 0 or offsets[-1] != len(tokens) or (np.diff(offsets.astype(np.int64)) < 0).any():
        raise ValueError("offsets do not rise from 0 to the number of tokens")
    return np.split(as_token_ids(tokens), offsets[1:-1]) if len(offsets) > 1 else []


def _narrow(tokens: TokenArray) -> npt.NDArray[Any]:
    """The same ids in 16 bits where they fit."""
    return tokens.astype(np.uint16) if len(tokens) == 0 or tokens.max() < 1 << 16 else tokens


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 100 else text[:100].rstrip() + " ..."
