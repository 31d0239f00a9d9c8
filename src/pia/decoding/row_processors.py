"""Logits processors and stopping criteria of a batch, taken apart by row.

Transformers calls them once a step for all rows, which have one length there. Rows that accept drafts do not keep in
step, so each gets processors of its own and is processed as if it were alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy, deepcopy
from functools import partial
from typing import Any

from transformers.generation.logits_process import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    LogitsProcessorList,
    PrefixConstrainedLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.generation.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StopStringCriteria,
)

from pia.errors import RowsInStepError

_WITHOUT_STATE = (EosTokenCriteria, MaxLengthCriteria, MaxTimeCriteria, StopStringCriteria)


def processors_for_row(processors: Any, row: int, num_rows: int) -> Any:
    """The processors of one row; a call with one row uses the caller's own.

    Raises:
        RowsInStepError: one of them can only work on all rows together.
    """
    if num_rows == 1:
        return processors
    return LogitsProcessorList([_processor_for_row(processor, row, num_rows) for processor in processors])


def criteria_for_row(criteria: Iterable[Any], num_rows: int) -> list[Any]:
    """The stopping criteria of one row, each with a state of its own.

    Raises:
        RowsInStepError: one of them cannot be copied.
    """
    criteria = list(criteria)
    if num_rows == 1:
        return criteria
    return [criterion if isinstance(criterion, _WITHOUT_STATE) else _copied(criterion) for criterion in criteria]


def _processor_for_row(processor: Any, row: int, num_rows: int) -> Any:
    if isinstance(processor, UnbatchedClassifierFreeGuidanceLogitsProcessor):
        raise RowsInStepError("classifier-free guidance runs the model on all rows together")
    if isinstance(processor, EncoderRepetitionPenaltyLogitsProcessor):
        own = copy(processor)
        own.encoder_input_ids = processor.encoder_input_ids[row : row + 1]
        return own
    if isinstance(processor, EncoderNoRepeatNGramLogitsProcessor):
        own = copy(processor)
        own.batch_size, own.generated_ngrams = 1, processor.generated_ngrams[row : row + 1]
        return own
    if isinstance(processor, PrefixConstrainedLogitsProcessor):
        return _constrained(processor, row // processor._num_beams)
    return _copied(processor)


def _constrained(processor: Any, row: int) -> Any:
    """A prefix constraint whose function is still asked for the row of the call, not for row 0."""
    allowed = processor._prefix_allowed_tokens_fn
    return PrefixConstrainedLogitsProcessor(partial(_ask_for, allowed, row), 1)


def _ask_for(allowed: Any, row: int, _: int, ids: Any) -> Any:
    return allowed(row, ids)


def _copied(part: Any) -> Any:
    try:
        return deepcopy(part)
    except Exception as error:  # whatever a caller's own object may hold
        raise RowsInStepError(f"{type(part).__name__} cannot be copied, one for each row") from error
