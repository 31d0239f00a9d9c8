"""Logits processors and stopping criteria of a batch, taken apart by row.

Transformers calls them once a step for all rows, which have one length there. Rows that accept drafts do not keep in
step, so each gets processors of its own and is processed as if it were alone.

Of a caller's own processors nothing is known: they may treat row 2 in another way than row 0. So they are shown as many
rows as the call has, all of them the one that is to be processed, and asked for the one in its place.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from copy import copy, deepcopy
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation.logits_process import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    LogitsProcessorList,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
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
_SHARED = (torch.nn.Module, PreTrainedTokenizerBase, threading.Event, type(threading.Lock()), type(threading.RLock()))
"""What rows have in common: what is too large to be copied and is only used, and what threads talk by."""


def processors_for_row(processors: Any, row: int, num_rows: int, shift: int = 0) -> Any:
    """The processors of one row; a call with one row uses the caller's own.

    Args:
        processors: of the call.
        row: which row.
        num_rows: rows of the call.
        shift: by how many places the row's text has moved to the right, past padding that stood behind it.

    Raises:
        RowsInStepError: one of them can only work on all rows together.
    """
    if num_rows == 1:
        return processors
    return LogitsProcessorList([_processor_for_row(part, row, num_rows, shift) for part in processors])


def criteria_for_row(criteria: Iterable[Any], row: int, num_rows: int) -> list[Any]:
    """The stopping criteria of one row, each with a state of its own.

    Raises:
        RowsInStepError: one of them cannot be copied.
    """
    criteria = list(criteria)
    if num_rows == 1:
        return criteria
    return [_criterion_for_row(criterion, row, num_rows) for criterion in criteria]


def _criterion_for_row(criterion: Any, row: int, num_rows: int) -> Any:
    if isinstance(criterion, _WITHOUT_STATE):
        return criterion
    return _copied(criterion) if _is_of_transformers(criterion) else _CriterionOfRow(criterion, row, num_rows)


def _processor_for_row(processor: Any, row: int, num_rows: int, shift: int) -> Any:
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
    if type(processor) is RepetitionPenaltyLogitsProcessor:
        own = copy(processor)
        ignored = getattr(processor, "prompt_ignore_length", None)
        if ignored is not None:  # for all rows, or in a tensor for each: where its text begins
            own.prompt_ignore_length = shift + int(ignored if isinstance(ignored, int) else ignored[row])
        return own
    return _copied(processor) if _is_of_transformers(processor) else _ProcessorOfRow(processor, row, num_rows)


class _OfRow:
    """A row's own copy of what a caller has made.

    What is set on the caller's object while the call runs, such as a flag that another thread raises, reaches the copy.
    """

    def __init__(self, original: Any, row: int, num_rows: int) -> None:
        self._original, self._own = original, _copied(original)
        self._row, self._num_rows = row, num_rows
        self._known = dict(_attributes(original))

    def _up_to_date(self) -> Any:
        for name, value in list(_attributes(self._original).items()):
            if name not in self._known or self._known[name] is not value:
                self._known[name] = _attributes(self._own)[name] = value
        return self._own

    def _repeated(self, row: torch.Tensor) -> torch.Tensor:
        return row.repeat(self._num_rows, 1)


class _ProcessorOfRow(_OfRow):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        processed: torch.Tensor = self._up_to_date()(self._repeated(input_ids), self._repeated(scores))
        return processed[self._row : self._row + 1]


class _CriterionOfRow(_OfRow):
    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        stops = torch.as_tensor(self._up_to_date()(self._repeated(input_ids), scores, **kwargs))
        return stops.flatten()[self._row] if stops.numel() == self._num_rows else stops


def _is_of_transformers(part: Any) -> bool:
    return type(part).__module__.split(".")[0] == "transformers"


def _attributes(part: Any) -> dict[str, Any]:
    """Attributes of an object, or of the one that a method belongs to."""
    return getattr(getattr(part, "__self__", part), "__dict__", {})


def _constrained(processor: Any, row: int) -> Any:
    """A prefix constraint whose function is still asked for the row of the call, not for row 0."""
    allowed = processor._prefix_allowed_tokens_fn
    return PrefixConstrainedLogitsProcessor(partial(_ask_for, allowed, row), 1)


def _ask_for(allowed: Any, row: int, _: int, ids: Any) -> Any:
    return allowed(row, ids)


def _copied(part: Any) -> Any:
    try:
        return deepcopy(part, {id(value): value for value in _attributes(part).values() if isinstance(value, _SHARED)})
    except Exception as error:  # whatever a caller's own object may hold
        raise RowsInStepError(f"{type(part).__name__} cannot be copied, one for each row") from error
