"""Lets a model's forwards run for real and yield a text that is given: real cost, and the text's own acceptance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from pia.errors import ModelError, TraceError
from pia.models.placement import input_device
from pia.models.positions import context_length

_FREE = -1
"""Positions after which the model goes its own way."""
_CERTAIN = 2e4
"""A logit that no other one reaches; finite in float16."""


class ForcedText:
    """Replaces one logit of each place of a forward, so that the recorded token is the likeliest there.

    The place of position p gets the token that the text has at p + 1. In a token tree several nodes share a position,
    and all of them get that token, although it follows only the nodes that lie on the text. That is right: the accept
    rule walks down from the root, reaches a node only if the likeliest token before it was that node's, and so never
    looks at the logits of a node that has left the text. Recycled drafts and Jacobi windows would: leave them out
    (`pia.bench.workload.REPLAY_SOURCES`).

    Only tensor operations on a buffer that stays where it is: the hook takes part in captured CUDA graphs and in
    programs of `torch.compile`, and a text can be changed under them. The buffer must not belong to the module, whose
    tensors a compiler may take for constants. With no text in force every logit is written back as it was, so the cost
    does not change.

    Args:
        model: a causal language model of Transformers that is given `position_ids`, or no cache.
    """

    def __init__(self, model: Any) -> None:
        self._length = context_length(model) or 1 << 16
        device = input_device(model)
        self._next = torch.full((self._length + 1,), _FREE, dtype=torch.long, device=device)
        self._hook = model.register_forward_hook(_Hook(self._next), with_kwargs=True)

    @property
    def max_length(self) -> int:
        """Tokens of the longest text."""
        return self._length

    @contextmanager
    def forcing(self, token_ids: Sequence[int]) -> Iterator[None]:
        """While it lasts, greedy decoding from any prefix of this text goes on as the text does.

        Raises:
            TraceError: the text is longer than the model's context.
        """
        if len(token_ids) > self._length:
            raise TraceError(f"a text of {len(token_ids)} tokens is longer than the model's context of {self._length}")
        following = torch.as_tensor(token_ids[1:], dtype=torch.long)
        self._next[: len(following)] = following.to(self._next.device)
        try:
            yield
        finally:
            self._next.fill_(_FREE)

    def remove(self) -> None:
        """Leaves the model as it was."""
        self._hook.remove()


class _Hook:
    """The forward hook: no state but the buffer `[max_length + 1]`, whose last entry stays free."""

    def __init__(self, following: torch.Tensor) -> None:
        self._next = following

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        logits = output.logits
        positions = _kept_positions(kwargs, logits).clamp(0, len(self._next) - 1)
        wanted = self._next[positions].expand(logits.shape[:2])[..., None]  # [rows, places, 1]
        places = wanted.clamp(min=0)
        logits.scatter_(-1, places, torch.where(wanted >= 0, _CERTAIN, logits.gather(-1, places)).to(logits.dtype))


def _kept_positions(kwargs: Mapping[str, Any], logits: torch.Tensor) -> torch.Tensor:
    """Positions of the places that have logits, `[rows or 1, places]`."""
    positions: torch.Tensor | None = kwargs.get("position_ids")
    if positions is None:
        if kwargs.get("past_key_values") is not None:
            raise ModelError("a model whose text is forced must be given position_ids with its cache")
        return torch.arange(logits.shape[1], device=logits.device)[None]
    kept = kwargs.get("logits_to_keep", 0)
    return positions[:, slice(-kept, None) if isinstance(kept, int) else kept]
