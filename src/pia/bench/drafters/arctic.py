"""Suffix decoding of Arctic Inference (arXiv 2411.04975): its own class, in tree mode."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from pia.bench.drafters.protocol import Proposal
from pia.errors import DrafterError

MODULE = "arctic_inference.suffix_decoding"
HOW_TO_GET = "pip install --no-deps arctic-inference"


class ArcticDrafter:
    """`SuffixDecodingCache`, unlimited, with trees of 64 levels: a global tree of answers, a local one a request.

    Args:
        factor: at most `factor * matched tokens + offset` nodes are drafted (and no more than the budget).
        offset: see `factor`.
        min_prob: no node is less likely.

    Raises:
        DrafterError: the package is not installed.
    """

    def __init__(self, *, factor: float = 1.0, offset: float = 0.0, min_prob: float = 0.1) -> None:
        try:
            self._cache: Any = import_module(MODULE).SuffixDecodingCache()
        except (ImportError, AttributeError) as error:
            raise DrafterError(
                f"Arctic Inference's suffix decoding is missing ({error}); get it: {HOW_TO_GET}"
            ) from error
        self._options = {
            "max_spec_factor": factor, "max_spec_offset": offset, "min_token_prob": min_prob, "use_tree_spec": True,
        }  # fmt: skip
        self._depth: int = self._cache.max_tree_depth
        self._request = 0
        self._text = np.empty(0, np.int32)
        self._length = 0

    def begin(self, prompt_ids: npt.NDArray[np.int32]) -> None:
        self._request += 1
        self._length = len(prompt_ids)
        self._text = np.empty(max(4096, 2 * self._length), np.int32)
        self._text[: self._length] = prompt_ids
        self._cache.start_request(self._request, prompt_ids)

    def propose(self, budget: int) -> Proposal:
        context = self._text[max(0, self._length - self._depth) : self._length]
        draft = self._cache.speculate(self._request, context, max_spec_tokens=budget, **self._options)
        return draft.token_ids, draft.parents, draft.probs

    def observe(self, token_ids: list[int]) -> None:
        end = self._length + len(token_ids)
        if end > len(self._text):
            self._text = np.resize(self._text, 2 * end)
        self._text[self._length : end] = token_ids
        self._length = end
        self._cache.add_active_response(self._request, token_ids)

    def learn(self, prompt_ids: npt.NDArray[np.int32], output_ids: npt.NDArray[np.int32]) -> None:
        self.begin(prompt_ids)
        self._cache.add_active_response(self._request, output_ids)
        self.end()

    def end(self) -> None:
        self._cache.stop_request(self._request)

    def num_bytes(self) -> int | None:
        tree: Any = getattr(self._cache, "_global_tree", None)  # it has no public door to this
        return tree.estimate_memory() if hasattr(tree, "estimate_memory") else None
