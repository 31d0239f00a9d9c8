"""Verification on models with a recurrent state: one chain a step, with the accepted part of a draft fed again.

A recurrent state (Mamba, linear attention, short convolutions) is a sum over all tokens fed; it can neither branch
nor be shortened. So a step verifies one chain. If all of it is accepted, the state is the one wanted. Else the state
from before the step is put back, and the tokens that were accepted are fed again in front of the next step's own
(lazy replay), which costs no forward of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from pia.drafting.tree import DraftTree
from pia.models.placement import input_device
from pia.models.snapshot import StateSnapshot
from pia.models.twin import verifying_twin

_CACHE_ARGUMENTS = ("past_key_values", "cache_params", "state")


class RecurrentRunner:
    """Runs a model that keeps a recurrent state, for one request.

    The model makes all masks itself (there is no padding) and is told its positions, since some families restart at
    zero otherwise.

    Args:
        model: a causal language model of Transformers whose forward continues a cached state with several tokens.
        prefill_chunk_size: tokens per prefill forward; `None` for one forward.
    """

    can_draft = True
    can_branch = False

    def __init__(self, model: Any, *, prefill_chunk_size: int | None = None) -> None:
        self.model = model
        self._verifier = verifying_twin(model)  # made for each request: modules may be replaced between them
        self.device = input_device(model)
        self.is_asynchronous = self.device.type == "cuda"
        self._chunk_size = prefill_chunk_size
        name = cache_argument(model)
        assert name is not None, "a model with a recurrent state takes it as an argument"
        self._cache_name = name
        # Where Transformers has no cache for a model, the model's forward makes one of its own.
        self._cache = DynamicCache(config=model.config) if model._supports_default_dynamic_cache() else None
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._can_skip_logits = model._supports_logits_to_keep()
        self._snapshot = StateSnapshot()
        self._length = 0  # tokens that the state has seen
        self._pending: list[int] = []
        self._fed: list[int] = []

    @property
    def num_pending(self) -> int:
        """Accepted tokens that the state has not seen: the next forward feeds them again, in front."""
        return len(self._pending)

    @property
    def cache(self) -> Any:
        """The model's state after all tokens kept. Tokens still to be replayed are fed now."""
        if self._pending:
            self._continue(self._pending, 1)
            self._pending = []
        return self._cache

    @torch.no_grad()  # not inference mode: the caller may go on with this cache, and states are written in place
    def prefill(self, prompts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Feeds the only prompt, `[length]`; returns the logits after its last token, `[1, vocab]`."""
        (prompt,) = prompts
        for ids in torch.split(prompt, self._chunk_size or len(prompt)):
            logits = self._feed(self.model, ids.tolist(), 1)
        return logits

    @torch.no_grad()
    def forward(
        self, token_ids: Sequence[int], trees: Sequence[DraftTree], meanwhile: Callable[[], None] | None = None
    ) -> torch.Tensor:
        """Feeds what is pending, the last accepted token and a chain.

        Returns:
            logits of the token and the chain, `[1, 1 + nodes, vocab]`.
        """
        (tree,) = trees
        if len(tree):
            self._snapshot.take(self._cache)
        self._fed = [*self._pending, *token_ids, *tree.token_ids.tolist()]
        return self._continue(self._fed, 1 + len(tree), meanwhile)[None]

    def keep(self, kept: Sequence[Sequence[int]]) -> None:
        """Keeps the first tokens of the last forward, as many as are named."""
        (rows,) = kept
        num_kept = len(self._pending) + len(rows)
        if num_kept == len(self._fed):
            self._pending = []
            return
        self._snapshot.restore()
        self._length -= len(self._fed)
        self._pending = self._fed[:num_kept]

    def retire(self, row: int) -> None:
        raise AssertionError("a recurrent state is of one request")

    def undo(self) -> None:
        """Forgets the last forward, which must have had a draft, and what was pending (for measuring)."""
        self.keep([[]])
        self._pending = []

    @torch.no_grad()
    def _continue(
        self, token_ids: list[int], num_logits: int, meanwhile: Callable[[], None] | None = None
    ) -> torch.Tensor:
        """Feeds tokens that plain decoding would feed one by one."""
        return self._feed(self._verifier if len(token_ids) > 1 else self.model, token_ids, num_logits, meanwhile)

    def _feed(
        self, model: Any, token_ids: list[int], num_logits: int, meanwhile: Callable[[], None] | None = None
    ) -> torch.Tensor:
        """One forward; returns the logits of the last `num_logits` tokens, `[num_logits, vocab]`."""
        size = len(token_ids)
        inputs: dict[str, Any] = {self._cache_name: self._cache, "use_cache": True, "return_dict": True}
        if self._takes_positions:
            inputs["position_ids"] = torch.arange(self._length, self._length + size, device=self.device)[None]
        if self._can_skip_logits and num_logits < size:
            inputs["logits_to_keep"] = num_logits
        output = model(input_ids=torch.tensor([token_ids], device=self.device), **inputs)
        self._cache = getattr(output, self._cache_name)
        self._length += size
        if meanwhile is not None:
            meanwhile()
        if self.is_asynchronous:  # so that the statistics show where the time goes
            torch.cuda.current_stream(self.device).synchronize()
        logits: torch.Tensor = output.logits[0, -num_logits:]
        return logits


def cache_argument(model: Any) -> str | None:
    """What a model's forward calls its cache, or `None` if it has none."""
    parameters = inspect.signature(model.forward).parameters
    return next((name for name in _CACHE_ARGUMENTS if name in parameters), None)
