"""Prompt lookup decoding of Transformers: its own class, with its defaults."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from pia.bench.drafters.protocol import Proposal
from pia.errors import DrafterError

_NO_LIMIT = 1 << 30


class PromptLookupDrafter:
    """`PromptLookupCandidateGenerator`: the text after the first place where the last two tokens stood before.

    One chain of up to the whole budget. It learns nothing from other requests.

    Raises:
        DrafterError: this Transformers has no such class.
    """

    def __init__(self) -> None:
        self._torch: Any = import_module("torch")
        try:
            module = import_module("transformers.generation.candidate_generator")
            self._generator_class: Any = module.PromptLookupCandidateGenerator
        except (ImportError, AttributeError) as error:
            raise DrafterError(
                f"this Transformers has no prompt lookup ({error}); get one: pip install -U transformers"
            ) from error
        self._generators: dict[int, Any] = {}
        self._length = 0
        self._text: Any = None  # [1, capacity]

    def begin(self, prompt_ids: npt.NDArray[np.int32]) -> None:
        self._length = 0
        self._text = self._torch.empty((1, max(4096, 2 * len(prompt_ids))), dtype=self._torch.long)
        self.observe(prompt_ids.tolist())

    def propose(self, budget: int) -> Proposal:
        if budget not in self._generators:
            self._generators[budget] = self._generator_class(num_output_tokens=budget, max_length=_NO_LIMIT)
        candidates, _ = self._generators[budget].get_candidates(self._text[:, : self._length])
        draft = candidates[0, self._length :].tolist()
        return draft, range(-1, len(draft) - 1)

    def observe(self, token_ids: list[int]) -> None:
        end = self._length + len(token_ids)
        if end > self._text.shape[1]:
            self._text = self._torch.cat([self._text, self._torch.empty((1, end), dtype=self._torch.long)], dim=1)
        self._text[0, self._length : end] = self._torch.tensor(token_ids)
        self._length = end

    def learn(self, prompt_ids: npt.NDArray[np.int32], output_ids: npt.NDArray[np.int32]) -> None:
        pass
