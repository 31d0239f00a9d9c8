"""A predicted output as a caller may give it, text or token ids, made ready for the drafts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pia.drafting.token_ids import as_token_ids
from pia.errors import PredictionError

Prediction = str | Sequence[int] | npt.NDArray[np.integer[Any]] | torch.Tensor
"""Text, or token ids `[n]` (a tensor may also be `[1, n]`)."""

NO_PREDICTION: npt.NDArray[np.int32] = np.empty(0, np.int32)


def prediction_rows(given: Any, num_rows: int, *, vocab_size: int) -> list[npt.NDArray[np.int32]]:
    """Token ids `[n]` of each row's predicted output, as `predicted_output_ids` gives them.

    Args:
        given: for one row its token ids; for a batch one prediction, or `None`, for each row.
        num_rows: rows of the call.
        vocab_size: ids from here on are unknown to the model.

    Raises:
        PredictionError: there is not one for each row, or one is unfit.
    """
    name = "predicted_output_ids"
    if given is None:
        return [NO_PREDICTION] * num_rows
    if num_rows == 1:
        return [prediction_ids(given, name=name, vocab_size=vocab_size)]
    if isinstance(given, str) or not hasattr(given, "__len__") or len(given) != num_rows:
        raise PredictionError(f"{name} must hold one prediction, or None, for each of the {num_rows} rows of the call")
    return [prediction_ids(row, name=f"{name}[{n}]", vocab_size=vocab_size) for n, row in enumerate(given)]


def prediction_ids(
    given: Prediction | None, *, name: str, vocab_size: int, tokenizer: Any = None
) -> npt.NDArray[np.int32]:
    """Token ids `[n]` of a predicted output; none where nothing is given.

    Text is tokenised without special tokens. How it would join the prompt does not matter: a token that differs there
    is an edit like any other, and drafts find their way behind it.

    Args:
        given: text or token ids.
        name: of the argument, for messages.
        vocab_size: ids from here on are unknown to the model.
        tokenizer: for text.

    Raises:
        PredictionError: it is neither text nor token ids, there is no tokenizer for text, or an id is not the model's.
    """
    if given is None:
        return NO_PREDICTION
    if isinstance(given, str):
        if tokenizer is None:
            raise PredictionError(
                f"{name} is text, which needs a tokenizer here; give its token ids, or use pia.generate"
            )
        given = tokenizer(given, add_special_tokens=False, verbose=False)["input_ids"]
    ids = _flat(given, name)
    if len(ids) and (ids.min() < 0 or ids.max() >= vocab_size):
        bad = ids.min() if ids.min() < 0 else ids.max()
        raise PredictionError(
            f"{name} holds token id {bad}, but the model's vocabulary has ids 0 .. {vocab_size - 1}; "
            "use the tokenizer that belongs to the model"
        )
    return ids


def _flat(given: Any, name: str) -> npt.NDArray[np.int32]:
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu().numpy() if given.dtype != torch.bfloat16 else given.tolist()
    if isinstance(given, np.ndarray) and given.ndim == 2 and len(given) == 1:
        given = given[0]
    if not isinstance(given, np.ndarray | Sequence) or isinstance(given, bytes | bytearray):
        raise PredictionError(f"{name} must be text or token ids, not {type(given).__name__}")
    try:
        return as_token_ids(given)
    except (ValueError, TypeError) as error:
        raise PredictionError(f"{name} must be text or a flat row of token ids: {error}") from None
