"""What a measurement is about: a model and the prompts that it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

from pia.bench.contenders import Contender, Run

REPLAY_SOURCES = ("cache",)
"""What drafts are made from where a text is forced on a model. Behind a node that has left the text its logits still
name the recorded token, and elsewhere they are random: drafts from the forward itself would know what is to come."""


@dataclass(frozen=True)
class Workload:
    """A model, its prompts, and how it is to answer them."""

    model: Any
    """A causal language model that is not accelerated."""
    prompts: Sequence[torch.Tensor]
    """Token ids, `[1, length]` each."""
    max_new_tokens: Sequence[int]
    """Of each prompt's answer; in a batch the longest counts."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `generate`, the same for all contenders."""
    forcing: Callable[[int], AbstractContextManager[Any]] | None = None
    """Of a replay: within it the model writes what was recorded for prompt i."""

    @property
    def is_replay(self) -> bool:
        return self.forcing is not None

    def answer(self, contender: Contender, indices: Sequence[int], max_new_tokens: int | None = None) -> list[Run]:
        """Lets a contender answer these prompts in one call.

        Args:
            contender: who answers.
            indices: of the prompts.
            max_new_tokens: where not all of the answer is wanted.
        """
        assert len(indices) == 1 or not self.is_replay, "recorded texts are forced on one prompt at a time"
        most = max_new_tokens or max(self.max_new_tokens[index] for index in indices)
        options = {**self.options, "max_new_tokens": most}
        with ExitStack() as stack:
            if self.forcing is not None:
                stack.enter_context(self.forcing(indices[0]))
            return contender.run(self.model, [self.prompts[index] for index in indices], options)

    @property
    def longest(self) -> int:
        """The prompt that needs the most room, answer included."""
        return max(range(len(self.prompts)), key=lambda i: self.prompts[i].shape[1] + self.max_new_tokens[i])
