"""The likeliest tokens that a trace may hold beside its outputs: how they are checked and stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pia.drafting.token_ids import as_token_ids
from pia.drafting.top_tokens import TopTokens

MEMBERS = ("top_tokens", "top_probs", "top_widths")
"""Of an .npz trace: ids and probabilities of all requests, `[sum of width x output]`, and each request's width: the k
of its places, 0 where nothing was recorded."""


def checked(ids: Any, probs: Any, num_places: int) -> TopTokens:
    """Likeliest tokens of the places of an output.

    Args:
        ids: `[places, k]`.
        probs: their probabilities, likeliest first, `[places, k]`.
        num_places: tokens of the output.

    Raises:
        ValueError: they are not what they should be; the message goes on from the name of a file or a line.
    """
    try:
        tokens, shares = np.asarray(ids), np.asarray(probs, np.float64)
    except (TypeError, ValueError):
        raise ValueError("top_ids and top_probs must have as many entries for each token") from None
    if num_places == 0:
        tokens, shares = tokens.reshape(0, 0), shares.reshape(0, 0)
    if tokens.ndim != 2 or tokens.shape != shares.shape or len(tokens) != num_places:
        raise ValueError(
            f"top_ids {list(tokens.shape)} and top_probs {list(shares.shape)} must be a row for each of the "
            f"{num_places} output tokens, all of one length"
        )
    if not ((shares >= 0) & (shares <= 1)).all() or (np.diff(shares, axis=1) > 0).any():
        raise ValueError("top_probs must be probabilities between 0 and 1, the likeliest first")
    return TopTokens(as_token_ids(tokens.ravel()).reshape(tokens.shape), shares.astype(np.float16))


def as_lists(top: TopTokens) -> dict[str, Any]:
    """The fields of a JSON line. Probabilities have the few digits that tell one float16 from the next."""
    probs = [[float(str(prob)) for prob in row] for row in top.probs]
    return {"top_ids": top.ids.tolist(), "top_probs": probs}


def packed(tops: Sequence[TopTokens | None]) -> dict[str, npt.NDArray[Any]]:
    """The members of an .npz trace."""
    some = [top for top in tops if top is not None]
    ids = np.concatenate([np.empty(0, np.int32), *(top.ids.ravel() for top in some)])
    probs = np.concatenate([np.empty(0, np.float16), *(top.probs.ravel() for top in some)])
    widths = np.array([0 if top is None else top.num_each for top in tops], np.int32)
    return dict(zip(MEMBERS, (ids, probs, widths), strict=True))


def unpacked(members: Mapping[str, npt.NDArray[Any]], lengths: Sequence[int]) -> list[TopTokens | None]:
    """Likeliest tokens by request, from the members of an .npz trace and the lengths of its outputs.

    Raises:
        ValueError: they do not fit each other.
    """
    ids, probs, widths = (members[name] for name in MEMBERS)
    if widths.shape != (len(lengths),) or widths.dtype.kind not in "iu" or (widths < 0).any():
        raise ValueError("top_widths must be a whole number for each request")
    ends = np.cumsum([0, *(int(width) * length for width, length in zip(widths, lengths, strict=True))])
    if ids.shape != (ends[-1],) or probs.shape != ids.shape:
        raise ValueError("top_tokens and top_probs do not hold top_widths entries for each output token")
    return [
        checked(ids[start:end].reshape(length, width), probs[start:end].reshape(length, width), length)
        if width
        else None
        for start, end, length, width in zip(ends, ends[1:], lengths, widths.tolist(), strict=False)
    ]
