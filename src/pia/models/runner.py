"""One request's forward passes: prefill, a step over a token tree, and keeping the accepted path.

`SlabRunner` calls an unmodified attention-only model with an explicit mask and explicit positions on top of PIA's
own KV slab. `StockRunner` takes exactly the calls that Transformers' own sampling loop takes, one token at a time,
for everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from pia.drafting.tree import DraftTree
from pia.errors import PromptError
from pia.models.kv import SlabCache


class Runner(Protocol):
    """What the decoding loop needs of a model, for one request."""

    can_draft: bool
    """Several tokens may be fed in one step."""
    can_branch: bool
    """They may form a tree; else a chain."""

    @property
    def cache(self) -> Any:
        """The model's KV cache (or state), as Transformers knows it."""
        ...

    def prefill(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Feeds the prompt `[1, length]`; returns the logits after its last token, `[1, vocab]`."""
        ...

    def forward(self, token_id: int, tree: DraftTree) -> torch.Tensor:
        """Feeds the last accepted token (row 0) and the tree's nodes (rows 1..).

        Returns:
            logits, `[1 + nodes, vocab]`.
        """
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps these rows of the last forward (ascending, row 0 first) and forgets the others."""
        ...


class SlabRunner:
    """Runs an attention-only model whose masks and positions PIA makes itself.

    Args:
        model: a causal language model of Transformers.
        can_branch: the model takes an explicit 4-D mask, so trees can be verified. Otherwise a chain is fed and the
            model makes its own causal mask.
        max_length: the most KV slots this request can need; `None` when unknown.
        prefill_chunk_size: tokens per prefill forward; `None` for one forward.
    """

    can_draft = True

    def __init__(
        self,
        model: Any,
        *,
        can_branch: bool = True,
        max_length: int | None = None,
        prefill_chunk_size: int | None = None,
    ) -> None:
        self.model = model
        self.can_branch = can_branch
        self.cache = SlabCache(num_layers(model.config), max_length)
        self.device = model.device
        self.dtype = model.dtype
        self._chunk_size = prefill_chunk_size
        self._is_cuda = self.device.type == "cuda"
        self._start = 0

    @torch.inference_mode()
    def prefill(self, input_ids: torch.Tensor) -> torch.Tensor:
        options = {"logits_to_keep": 1} if self.model._supports_logits_to_keep() else {}
        position_ids = torch.arange(input_ids.shape[1], device=self.device)[None]
        size = self._chunk_size or input_ids.shape[1]
        for ids, positions in zip(torch.split(input_ids, size, 1), torch.split(position_ids, size, 1), strict=True):
            logits = self._call_prompt(ids.to(self.device), positions, options)
        return logits[-1:]

    @torch.inference_mode()
    def forward(self, token_id: int, tree: DraftTree) -> torch.Tensor:
        self._start = start = self.cache.length
        num_nodes = len(tree)
        if num_nodes == 0:
            ids = torch.tensor([[token_id]], device=self.device)
            return self._call(ids, torch.tensor([[start]], device=self.device), None)
        ids = torch.tensor([[token_id, *tree.token_ids.tolist()]], device=self.device)
        depths, visible = layout(tree)
        positions = torch.from_numpy(depths + start)[None].to(self.device)
        return self._call(ids, positions, self._mask(visible, start) if self.can_branch else None)

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        self.cache.keep(self._start, rows)

    def _call_prompt(self, ids: torch.Tensor, positions: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        try:
            return self._call(ids, positions, None, **options)
        except IndexError as error:  # learned positions end somewhere
            raise PromptError(
                f"the prompt reaches position {int(positions[0, -1])}, for which {type(self.model).__name__} "
                f"has no embedding ({error}); shorten it"
            ) from error

    def _mask(self, visible: np.ndarray, start: int) -> torch.Tensor:
        """Additive mask `[1, 1, q, start + q]`: all of the prefix, and of the tree a node's own path.

        Additive, because eager attention takes a boolean mask for zeros and ones and answers nonsense without a word.
        """
        q = visible.shape[0]
        mask = torch.zeros((1, 1, q, start + q), dtype=self.dtype, device=self.device)
        hidden = torch.from_numpy(~visible).to(self.device)
        mask[0, 0, :, start:].masked_fill_(hidden, torch.finfo(self.dtype).min)
        return mask

    def _call(
        self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None, **options: Any
    ) -> torch.Tensor:
        """One forward; returns the logits `[q, vocab]`."""
        output = self.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            **options,
        )
        if self._is_cuda:  # so that the statistics show where the time goes
            torch.cuda.synchronize(self.device)
        logits: torch.Tensor = output.logits[0]
        return logits


class StockRunner:
    """Runs any model one token at a time, through the same calls as Transformers' sampling loop.

    Args:
        model: a causal language model of Transformers.
        generation_config: as prepared by `generate`.
        model_kwargs: what `generate` prepared for its forward passes (cache, masks, positions, ...).
    """

    can_draft = False
    can_branch = False

    def __init__(self, model: Any, generation_config: Any, model_kwargs: dict[str, Any]) -> None:
        self.model = model
        self._config = generation_config
        self._kwargs = dict(model_kwargs)
        self._ids = torch.empty((1, 0), dtype=torch.long)

    @property
    def cache(self) -> Any:
        return self._kwargs.get("past_key_values") or self._kwargs.get("cache_params")

    @torch.no_grad()
    def prefill(self, input_ids: torch.Tensor) -> torch.Tensor:
        self._ids = input_ids
        return self._logits(self.model._prefill(input_ids, self._config, self._kwargs))

    @torch.no_grad()
    def forward(self, token_id: int, tree: DraftTree) -> torch.Tensor:
        assert len(tree) == 0, "a stock runner takes one token at a time"
        self._ids = torch.cat([self._ids, self._ids.new_tensor([[token_id]])], dim=-1)
        length = 1 if self._kwargs.get("use_cache", True) else None
        inputs = self.model.prepare_inputs_for_generation(self._ids, next_sequence_length=length, **self._kwargs)
        return self._logits(self.model(**inputs, return_dict=True))

    def keep(self, rows: Sequence[int]) -> None:
        assert list(rows) == [0]

    def _logits(self, output: Any) -> torch.Tensor:
        self._kwargs = self.model._update_model_kwargs_for_generation(output, self._kwargs)
        logits: torch.Tensor = output.logits[0, -1:]
        return logits


def layout(tree: DraftTree) -> tuple[np.ndarray, np.ndarray]:
    """Where root and nodes stand and what they see: their own path.

    Returns:
        depths, int64 `[1 + nodes]`, and visibility, bool `[1 + nodes, 1 + nodes]`.
    """
    size = len(tree) + 1
    depths = np.zeros(size, dtype=np.int64)
    visible = np.eye(size, dtype=bool)
    for row, parent in enumerate(tree.parents.tolist(), start=1):
        visible[row] |= visible[parent + 1]
        depths[row] = depths[parent + 1] + 1
    return depths, visible


def num_layers(config: Any) -> int:
    """Number of decoder layers, or 1 where the configuration does not say."""
    return int(getattr(config.get_text_config(decoder=True), "num_hidden_layers", 1) or 1)
