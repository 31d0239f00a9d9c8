"""Traces as JSON lines: what `TraceRecorder` writes, or text that a tokenizer turns into token ids."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pia.bench.trace_top import checked
from pia.drafting.token_ids import as_token_ids
from pia.drafting.top_tokens import TopTokens
from pia.errors import TraceError

_SUFFIXES = (".jsonl", ".ndjson", ".json")
_TokenArray = npt.NDArray[np.int32]
_Requests = tuple[list[_TokenArray], list[_TokenArray], dict[str, Any], list[_TokenArray], list[TopTokens | None]]


def is_lines(path: str | os.PathLike[str]) -> bool:
    """Whether a file is read as JSON lines."""
    return str(path).lower().endswith(_SUFFIXES)


def read_lines(path: str | os.PathLike[str], tokenizer: Any = None) -> _Requests:
    """Reads one request a line: `prompt_ids` and `output_ids`, or `prompt` and `output` as text.

    A prompt may also be `messages`, which go through the tokenizer's chat template. `predicted_ids`, or `predicted` as
    text, is what the caller expected the output to be. `top_ids` and `top_probs` are the likeliest tokens at each place
    of `output_ids`, and their probabilities. A last line that breaks off (the writer was killed) is left out.

    Returns:
        prompts, outputs, what the lines say about where they come from, predictions and likeliest tokens (none if no
        line has them).

    Raises:
        TraceError: a line is not what it should be; the message names the line.
        OSError: the file cannot be read.
    """
    prompts, outputs, predictions, tops = [], [], [], []
    origins: dict[str, set[str]] = {"model": set(), "tokenizer": set()}
    for number, fields in _objects(path):
        where = f"{path}, line {number}"
        prompt, output = _request(where, fields, tokenizer)
        prompts.append(prompt)
        outputs.append(output)
        predictions.append(_prediction(where, fields, tokenizer))
        tops.append(_top(where, fields, len(output)))
        for name, values in origins.items():
            values |= {str(fields[name])} if fields.get(name) else set()
    if len(origins["tokenizer"]) > 1:
        raise TraceError(f"{path} mixes requests of {len(origins['tokenizer'])} tokenizers; keep a file for each")
    meta = {name: ", ".join(sorted(values)) for name, values in origins.items() if values}
    has_tops = any(top is not None for top in tops)
    return prompts, outputs, meta, predictions if any(map(len, predictions)) else [], tops if has_tops else []


def _objects(path: str | os.PathLike[str]) -> list[tuple[int, Mapping[str, Any]]]:
    raw = Path(path).read_bytes()
    lines = raw.split(b"\n")
    found: list[tuple[int, Mapping[str, Any]]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except ValueError as error:
            if number == len(lines) and found:  # no newline at its end: the last record broke off
                break
            raise TraceError(f"{path}, line {number}: this is not JSON ({_reason(error)})") from None
        if not isinstance(fields, dict):
            raise TraceError(f"{path}, line {number}: a JSON object is needed, not {type(fields).__name__}")
        found.append((number, fields))
    return found


def _request(
    where: str, fields: Mapping[str, Any], tokenizer: Any
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    if "prompt_ids" in fields and "output_ids" in fields:
        return _ids(where, "prompt_ids", fields), _ids(where, "output_ids", fields)
    prompt = fields.get("messages", fields.get("prompt"))
    if prompt is None or not isinstance(fields.get("output"), str):
        raise TraceError(
            f"{where}: a request is prompt_ids and output_ids, or prompt and output as text; "
            f"here are only {', '.join(fields) or 'no fields'}"
        )
    if tokenizer is None:
        raise TraceError(f"{where} holds text; name its tokenizer with --tokenizer (Python: Trace.load(tokenizer=...))")
    from pia.text import encode

    try:
        prompt_ids: Any = encode(tokenizer, prompt)[0].numpy() if prompt else []
        output_ids: Any = tokenizer(fields["output"], add_special_tokens=False)["input_ids"]
    except (TypeError, ValueError, KeyError) as error:
        raise TraceError(f"{where}: the tokenizer cannot take this request ({_reason(error)})") from error
    return as_token_ids(prompt_ids), as_token_ids(output_ids)


def _prediction(where: str, fields: Mapping[str, Any], tokenizer: Any) -> npt.NDArray[np.int32]:
    """What the caller expected the output to be; nothing if the line does not say."""
    if fields.get("predicted_ids") is not None:
        return _ids(where, "predicted_ids", fields)
    text = fields.get("predicted")
    if not text:
        return np.empty(0, np.int32)
    if not isinstance(text, str):
        raise TraceError(f"{where}: predicted must be text, not {type(text).__name__}; token ids are predicted_ids")
    if tokenizer is None:
        raise TraceError(f"{where} holds text; name its tokenizer with --tokenizer (Python: Trace.load(tokenizer=...))")
    return as_token_ids(tokenizer(text, add_special_tokens=False)["input_ids"])


def _top(where: str, fields: Mapping[str, Any], num_places: int) -> TopTokens | None:
    """The likeliest tokens at each place of the output, if the line has them."""
    ids, probs = fields.get("top_ids"), fields.get("top_probs")
    if ids is None and probs is None:
        return None
    if ids is None or probs is None or "output_ids" not in fields:
        raise TraceError(f"{where}: top_ids and top_probs belong together, and to output_ids")
    try:
        return checked(ids, probs, num_places)
    except (TypeError, ValueError) as error:
        raise TraceError(f"{where}: {_reason(error)}") from None


def _ids(where: str, name: str, fields: Mapping[str, Any]) -> npt.NDArray[np.int32]:
    try:
        return as_token_ids(fields[name])
    except (TypeError, ValueError) as error:
        raise TraceError(f"{where}: {name} is not a list of token ids ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
