"""Forward passes of a batch of requests: prefill, a step over token trees, and keeping the accepted paths.

`SlabRunner` calls an unmodified attention-only model with explicit masks and positions on top of PIA's own KV slab.
`StockRunner` takes exactly the calls that Transformers' own sampling loop takes, one token at a time, for everything
else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch.nn.utils.rnn import pad_sequence

from pia.drafting.tree import DraftTree
from pia.errors import PromptError
from pia.models.adapters import Adapter, adapter_of
from pia.models.attention_gqa import GroupedAttention
from pia.models.kv import SlabCache
from pia.models.layout import batch_layout
from pia.models.masks import TreeMasks, slot_positions
from pia.models.placement import input_device, layers_by_device
from pia.models.prefill import default_chunk_size, distinct_prompts, has_prompt_form, prefill_groups


class Runner(Protocol):
    """What the decoding loop needs of a model, for the requests of one batch (often one)."""

    can_draft: bool
    """Several tokens may be fed in one step."""
    can_branch: bool
    """They may form a tree; else a chain."""
    is_asynchronous: bool
    """The model runs on a device of its own, so that the host has time while it does."""

    @property
    def cache(self) -> Any:
        """The model's KV cache (or state), as Transformers knows it."""
        ...

    def prefill(self, prompts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Feeds the prompts, `[length]` each, one a row.

        Returns:
            the logits after their last tokens, `[rows, vocab]`.
        """
        ...

    def forward(
        self, token_ids: Sequence[int], trees: Sequence[DraftTree], meanwhile: Callable[[], None] | None = None
    ) -> torch.Tensor:
        """Feeds, for each row, the last accepted token and its tree's nodes.

        Args:
            token_ids: each row's last accepted token.
            trees: each row's tree.
            meanwhile: called while the device works: after the launch, and before its results are waited for. Runners
                that are not asynchronous are not given it. A step that cannot use it may leave it out.

        Returns:
            logits, `[rows, q, vocab]`: row b's first entries belong to its token and to the nodes of its tree.
        """
        ...

    def keep(self, kept: Sequence[Sequence[int]]) -> None:
        """Keeps these entries of each row's last forward (ascending, 0 first) and forgets the others."""
        ...

    def retire(self, row: int) -> None:
        """Takes a row out of the batch; the last row moves to its place."""
        ...


class SlabRunner:
    """Runs an attention-only model whose masks and positions PIA makes itself.

    Args:
        model: a causal language model of Transformers.
        can_branch: the model takes an explicit 4-D mask, so trees can be verified. Otherwise a chain is fed and the
            model makes its own causal mask; then there is one row only.
        max_length: the most KV slots a request can need; `None` when unknown.
        prefill_chunk_size: tokens per prefill forward; `None` for one forward over a short prompt, and over a long one
            for as many as bound the memory.
        num_rows: requests in the batch.
    """

    can_draft = True

    def __init__(
        self,
        model: Any,
        *,
        can_branch: bool = True,
        max_length: int | None = None,
        prefill_chunk_size: int | None = None,
        num_rows: int = 1,
    ) -> None:
        assert can_branch or num_rows == 1, "rows of different lengths need masks of PIA's own"
        self.model = model
        self.can_branch = can_branch
        self.cache = SlabCache(num_layers(model.config), max_length, num_rows, layers_by_device(model))
        self.device = input_device(model)
        self._masks = TreeMasks(model) if can_branch else None
        self._adapter = self._adapter_of(model)
        self._grouped = GroupedAttention(model)
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._chunk_size = prefill_chunk_size
        self.is_asynchronous = self.device.type == "cuda"

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[torch.Tensor]) -> torch.Tensor:
        distinct, which = distinct_prompts(prompts)
        lengths = [len(prompt) for prompt in distinct]
        self.cache.reserve(max(lengths))
        logits: list[torch.Tensor] = []
        for rows in prefill_groups(lengths):
            with self.cache.filling(rows):
                logits += self._fill(distinct[rows])
        self.cache.spread(lengths, which)
        self._wait()
        return torch.stack([logits[number] for number in which])

    @torch.inference_mode()
    def forward(
        self, token_ids: Sequence[int], trees: Sequence[DraftTree], meanwhile: Callable[[], None] | None = None
    ) -> torch.Tensor:
        logits = self._launch(token_ids, trees)
        if meanwhile is not None:
            meanwhile()
        self._wait()
        return logits

    @torch.inference_mode()
    def keep(self, kept: Sequence[Sequence[int]]) -> None:
        self.cache.keep(kept)

    @torch.inference_mode()
    def retire(self, row: int) -> None:
        self.cache.retire(row)

    @staticmethod
    def _adapter_of(model: Any) -> Adapter | None:
        """What has to be told which positions the slots stand for; to look for it takes a millisecond."""
        return adapter_of(model)

    def _launch(self, token_ids: Sequence[int], trees: Sequence[DraftTree]) -> torch.Tensor:
        """Starts the forward of a step; on a CPU it is done with that."""
        ids, depths, visible = map(torch.from_numpy, batch_layout(token_ids, trees))
        starts = torch.tensor(self.cache.lengths)
        positions = depths + starts[:, None]
        self.cache.begin_step()
        # Where every row feeds one token behind a text of one length, the model's own mask is right, and cheaper.
        is_simple = ids.shape[1] == 1 and len(set(self.cache.lengths)) == 1
        if is_simple or self._masks is None:
            return self._call(ids, positions, None)
        num_slots = max(self.cache.lengths) + ids.shape[1]
        mask = self._masks(starts, depths, visible, num_slots)
        with self._arranged(starts, depths, num_slots):
            return self._call(ids, positions, mask)

    def _wait(self) -> None:
        """Waits for the device, so that the statistics show where the time goes."""
        if self.is_asynchronous:
            torch.cuda.current_stream(self.device).synchronize()

    def _arranged(self, starts: torch.Tensor, depths: torch.Tensor, num_slots: int) -> AbstractContextManager[None]:
        """Tells a model that reckons with slots itself which positions they stand for."""
        if self._adapter is None:
            return nullcontext()
        slots = slot_positions(starts, depths, num_slots).to(self.device)
        return self._adapter.arranged(slots, (starts[:, None] + depths).to(self.device))

    def _fill(self, prompts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Feeds prompts padded on the right, where no token of theirs sees it; returns their last logits, `[vocab]`."""
        ids = pad_sequence(list(prompts), batch_first=True)
        size = self._chunk_size or default_chunk_size(self.model, ids.shape[1])
        ends = [len(prompt) - 1 for prompt in prompts]
        last: dict[int, torch.Tensor] = {}
        for start in range(0, ids.shape[1], size):
            places = [end - start for end in ends if start <= end < start + size]
            logits = self._call_prompt(ids[:, start : start + size], start, sorted(set(places)))
            last |= {row: logits[end - start][row] for row, end in enumerate(ends) if end - start in logits}
        return [last[row] for row in range(len(prompts))]

    def _call_prompt(self, ids: torch.Tensor, start: int, places: list[int]) -> dict[int, torch.Tensor]:
        """Feeds a piece of prompts from a position on; returns the logits `[rows, vocab]` at these places of it."""
        length = ids.shape[1]
        options: dict[str, Any] = {}
        if self.model._supports_logits_to_keep():
            only_last = places in ([], [length - 1])
            options["logits_to_keep"] = 1 if only_last else torch.tensor(places, device=self.device)
        try:
            logits = self._feed_piece(ids, start, options)
        except IndexError as error:  # learned positions end somewhere
            raise PromptError(
                f"the prompt reaches position {start + length - 1}, for which {type(self.model).__name__} "
                f"has no embedding ({error}); shorten it"
            ) from error
        return {place: logits[:, n if options else place] for n, place in enumerate(places)}

    def _feed_piece(self, ids: torch.Tensor, start: int, options: dict[str, Any]) -> torch.Tensor:
        """Feeds a prompt's beginning under the model's own mask, and what follows as a chain behind it is fed."""
        depths = torch.arange(ids.shape[1]).expand_as(ids)
        if start == 0 or self._masks is None or has_prompt_form(self.model):
            return self._call(ids, depths + start, None, **options)
        starts, visible = torch.full((len(ids),), start), torch.ones((1, *depths.shape[1:] * 2), dtype=torch.bool)
        mask = self._masks(starts, depths, visible.tril().expand(len(ids), -1, -1), start + ids.shape[1])
        with self._arranged(starts, depths, start + ids.shape[1]):
            return self._call(ids, depths + start, mask, **options)

    def _call(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | dict[str, torch.Tensor | None] | None,
        **options: Any,
    ) -> torch.Tensor:
        """One forward; returns the logits `[rows, q, vocab]`."""
        if self._takes_positions:
            options["position_ids"] = positions.to(self.device)
        with self._grouped.used():
            output = self.model(
                input_ids=ids.to(self.device),
                attention_mask=mask,
                past_key_values=self.cache,
                use_cache=True,
                **options,
            )
        logits: torch.Tensor = output.logits
        return logits


class StockRunner:
    """Runs any model one token at a time, through the same calls as Transformers' sampling loop, for one request.

    Args:
        model: a causal language model of Transformers.
        generation_config: as prepared by `generate`.
        model_kwargs: what `generate` prepared for its forward passes (cache, masks, positions, ...).
        input_ids: the prompt as `generate` knows it, padding included, `[1, length]`.
    """

    can_draft = False
    can_branch = False
    is_asynchronous = False

    def __init__(
        self, model: Any, generation_config: Any, model_kwargs: dict[str, Any], input_ids: torch.Tensor
    ) -> None:
        self.model = model
        self._config = generation_config
        self._kwargs = dict(model_kwargs)
        self._ids = input_ids

    @property
    def cache(self) -> Any:
        return self._kwargs.get("past_key_values") or self._kwargs.get("cache_params")

    @torch.no_grad()
    def prefill(self, prompts: Sequence[torch.Tensor]) -> torch.Tensor:
        return self._logits(self.model._prefill(self._ids, self._config, self._kwargs))

    @torch.no_grad()
    def forward(
        self, token_ids: Sequence[int], trees: Sequence[DraftTree], meanwhile: Callable[[], None] | None = None
    ) -> torch.Tensor:
        assert not any(map(len, trees)), "a stock runner takes one token at a time"
        self._ids = torch.cat([self._ids, self._ids.new_tensor([token_ids])], dim=-1)
        length = 1 if self._kwargs.get("use_cache", True) else None
        inputs = self.model.prepare_inputs_for_generation(self._ids, next_sequence_length=length, **self._kwargs)
        return self._logits(self.model(**inputs, return_dict=True))[:, None]

    def keep(self, kept: Sequence[Sequence[int]]) -> None:
        assert list(map(list, kept)) == [[0]]

    def retire(self, row: int) -> None:
        raise AssertionError("a stock runner has one row")

    def _logits(self, output: Any) -> torch.Tensor:
        self._kwargs = self.model._update_model_kwargs_for_generation(output, self._kwargs)
        logits: torch.Tensor = output.logits[:, -1]
        return logits


def num_layers(config: Any) -> int:
    """Number of decoder layers, or 1 where the configuration does not say."""
    return int(getattr(config.get_text_config(decoder=True), "num_hidden_layers", 1) or 1)
