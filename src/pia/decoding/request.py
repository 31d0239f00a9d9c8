"""One request's text and its end: token ids so far, and when to stop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria


class Stopping:
    """Applies stopping criteria after each emitted token, as plain decoding does after each forward.

    The two criteria that every request has are read once and checked on plain integers, since calling them costs
    more than the rest of the accept walk; all others are called as they are.

    Args:
        criteria: Transformers' prepared list.
    """

    def __init__(self, criteria: Iterable[Any]) -> None:
        self.max_length: int | None = None
        self.eos_ids: frozenset[int] = frozenset()
        self._custom = []
        for criterion in criteria:
            if type(criterion) is MaxLengthCriteria:
                self.max_length = min(criterion.max_length, self.max_length or criterion.max_length)
            elif type(criterion) is EosTokenCriteria:
                self.eos_ids |= frozenset(criterion.eos_token_id.tolist())
            else:
                self._custom.append(criterion)

    def check(self, request: Request, scores: tuple[torch.Tensor, ...] | None) -> str | None:
        """Reason to stop after the newest token, or `None`."""
        # A criterion may keep state of its own, so each sees every token whatever the others say.
        stops = [bool(torch.as_tensor(criterion(request.input_ids, scores)).all()) for criterion in self._custom]
        if request.token_ids[-1] in self.eos_ids:
            return "eos"
        if any(stops):
            return "stop"
        if self.max_length is not None and len(request.token_ids) >= self.max_length:
            return "length"
        return None


class Request:
    """Prompt and output of one request, as integers and as the tensor that processors and criteria read.

    Args:
        input_ids: prompt, `[1, length]`.
        stopping: when to end.
        num_padding: tokens on the left that only processors and criteria see, as in plain decoding.
    """

    def __init__(self, input_ids: torch.Tensor, stopping: Stopping, *, num_padding: int = 0) -> None:
        self.prompt_ids = input_ids[:, num_padding:]
        self.num_prompt_tokens = input_ids.shape[1]
        self.token_ids: list[int] = input_ids[0].tolist()
        self.stopping = stopping
        self.finish_reason: str | None = None
        room = (stopping.max_length or self.num_prompt_tokens + 1024) - self.num_prompt_tokens
        self._buffer = torch.cat([input_ids, input_ids.new_zeros((1, max(1, min(room, 4096))))], dim=1)
        self._num_buffered = self.num_prompt_tokens

    @property
    def input_ids(self) -> torch.Tensor:
        """All tokens so far, `[1, length]` (a view, valid until the next token)."""
        length = len(self.token_ids)
        if self._num_buffered < length:  # written when asked for: most requests never ask
            if length > self._buffer.shape[1]:
                self._buffer = torch.cat([self._buffer, self._buffer.new_zeros((1, length))], dim=1)
            new = self.token_ids[self._num_buffered :]
            self._buffer[0, self._num_buffered : length] = torch.tensor(new)
            self._num_buffered = length
        return self._buffer[:, :length]

    @property
    def output_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def num_left(self) -> int | None:
        """Tokens that may still be emitted; `None` when only a stop ends the request."""
        limit = self.stopping.max_length
        return None if limit is None else limit - len(self.token_ids)

    def append(self, token_id: int, scores: tuple[torch.Tensor, ...] | None) -> None:
        """Takes the next token and decides whether it is the last."""
        self.token_ids.append(token_id)
        self.finish_reason = self.stopping.check(self, scores)
