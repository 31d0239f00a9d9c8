"""Prompts that are more than token ids: the model feeds them its own way, and trees are verified behind them.

Images, embeddings, type ids, or text that the caller's cache holds already: whatever the prefill takes, it goes through
Transformers' own path, into PIA's KV slab. From then on a request is text like any other, and what remains to be known
is what Transformers would feed in a decode step. We ask it, without running the model: its answer must be one token
with a position that grows by one from step to step, and nothing that changes otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.utils import ModelOutput

from pia.models.inputs_probe import filled_cache, is_default
from pia.models.positions import position_limits
from pia.models.runner import SlabRunner

_MADE_BY_US = frozenset({"input_ids", "position_ids", "past_key_values", "attention_mask", "use_cache"})
_OF_EACH_TOKEN = frozenset({"token_type_ids", "mm_token_type_ids"})
"""Inputs `[1, tokens]` that Transformers continues with one value."""
_OF_THE_PROMPT = frozenset({"image_grid_thw", "video_grid_thw", "second_per_grid_ts", "logits_to_keep"})
"""Inputs that say something of the prompt only, whether or not they are passed on with every step."""


@dataclass(frozen=True)
class StepInputs:
    """What a decode step takes besides its tokens.

    Attributes:
        positions: of the first token after the prompt, `[1, 1]`, or `[kinds, 1, 1]` where a token has several.
        of_each_token: further inputs with one value for every token fed, `[1, 1]` each.
    """

    positions: torch.Tensor
    of_each_token: dict[str, torch.Tensor]


@dataclass(frozen=True)
class OwnPrompt:
    """One request's prompt as `generate` prepared it.

    Attributes:
        input_ids: `[1, length]`; empty if the prompt is embeddings.
        config: the generation configuration.
        inputs: the model's inputs (cache, mask, positions, images, ...).
    """

    model: Any
    input_ids: torch.Tensor
    config: Any
    inputs: dict[str, Any] = field(repr=False)

    @property
    def num_slots(self) -> int:
        """KV slots in use once the prompt is fed."""
        embeds = self.inputs.get("inputs_embeds")
        mask, positions = self.inputs.get("attention_mask"), self.inputs.get("position_ids")
        known = [given for given in (mask, positions) if given is not None]
        if known:
            return int(known[0].shape[-1])
        return self.num_cached + int((self.input_ids if embeds is None else embeds).shape[1])

    @property
    def num_cached(self) -> int:
        """Slots that the caller's cache holds already."""
        cache = self.inputs.get("past_key_values")
        return 0 if cache is None else int(cache.get_seq_length())

    def plain_reason(self) -> str | None:
        """Why this prompt must be decoded plainly, or `None`."""
        mask = self.inputs.get("attention_mask")
        if mask is not None and (mask.dim() != 2 or not bool(mask.all())):
            return "the attention mask has holes"
        reason = self._cache_reason() or self._limits_reason()
        if reason is not None:
            return reason
        try:
            self.step_inputs()
        except _UnclearStepError as error:
            return str(error)
        except Exception as error:  # it may refuse in any way it likes; that is an answer too
            return f"its inputs for a decode step cannot be had ({type(error).__name__}: {str(error)[:120]})"
        return None

    def step_inputs(self) -> StepInputs:
        """What Transformers would feed after the prompt, found out without running the model."""
        first, second = self._step(1), self._step(2)
        positions = first.get("position_ids")
        if positions is None or positions.shape[-1] != 1 or not torch.equal(second["position_ids"], positions + 1):
            raise _UnclearStepError("its positions do not go on by one from token to token")
        of_each_token = {name: first[name] for name in sorted(_OF_EACH_TOKEN & first.keys()) if first[name] is not None}
        for name, value in of_each_token.items():
            if value.shape != (1, 1) or not torch.equal(value, second[name]):
                raise _UnclearStepError(f"its {name} change from token to token")
        return StepInputs(positions, of_each_token)

    def _step(self, number: int) -> dict[str, Any]:
        """What the `number`th step after the prompt would be fed."""
        cache = filled_cache(self.model, self.num_slots + number - 1)
        inputs = {**self.inputs, "past_key_values": cache}
        for _ in range(number):
            inputs = self.model._update_model_kwargs_for_generation(ModelOutput(), inputs)
        token = self.input_ids.new_ones((1, number))
        ids = torch.cat([self.input_ids, token], dim=1)
        fed: dict[str, Any] = self.model.prepare_inputs_for_generation(ids, next_sequence_length=1, **inputs)
        self._check_step(fed, cache)
        if fed.get("mm_token_type_ids") is not None:  # older releases pass on those of the whole text
            fed["mm_token_type_ids"] = fed["mm_token_type_ids"][:, -1:]
        return fed

    def _check_step(self, fed: dict[str, Any], cache: DynamicCache) -> None:
        ids, mask = fed.get("input_ids"), fed.get("attention_mask")
        if ids is None or ids.shape != (1, 1) or fed.get("past_key_values") is not cache:
            raise _UnclearStepError("it feeds its decode steps something else than a token")
        if mask is not None and (mask.dim() != 2 or not bool(mask.all())):
            raise _UnclearStepError("it makes a mask of its own for decode steps")
        for name in sorted(fed.keys() - _MADE_BY_US - _OF_EACH_TOKEN - _OF_THE_PROMPT):
            if not is_default(self.model, name, fed[name]):
                raise _UnclearStepError(f"every step is given {name}")

    def _limits_reason(self) -> str | None:
        """Why a model whose positions depend on the length of the text cannot go on from this prompt, or `None`."""
        limits, given = position_limits(self.model), self.inputs.get("position_ids")
        if limits.reason is None:
            return None
        if limits.refill_at is not None:
            return f"{limits.reason}, and the prompt is more than the text"
        expected = torch.arange(self.input_ids.shape[1])[None]
        is_plain = given is None or (given.shape == expected.shape and torch.equal(given.cpu(), expected))
        return None if is_plain and self.num_slots == expected.shape[1] else f"{limits.reason}, by other positions"

    def _cache_reason(self) -> str | None:
        """Why the caller's cache cannot be taken over, or `None`."""
        cache = self.inputs.get("past_key_values")
        if cache is None or not (getattr(cache, "_is_user_defined", False) or self.num_cached):
            return None  # made by Transformers for this call, and left empty
        odd = [layer for layer in cache.layers if type(layer) is not DynamicLayer]
        if odd:
            return f"the caller's cache has layers of another kind ({type(odd[0]).__name__})"
        if self.num_cached == 0:
            return None
        shapes = {tuple(layer.keys.shape[:1]) + tuple(layer.keys.shape[2:3]) for layer in cache.layers}
        if shapes != {(1, self.num_cached)}:
            return "the layers of the caller's cache are not of one length"
        embeds = self.inputs.get("inputs_embeds")
        if embeds is not None:
            return "the caller's cache holds text and the prompt is embeddings"
        if self.num_slots not in (self.input_ids.shape[1], self.num_cached + self.input_ids.shape[1]):
            return "the cache's text and the prompt do not fit together"
        return None if self.num_cached < self.num_slots else "the cache holds the whole prompt already"


class _UnclearStepError(Exception):
    """What a decode step is fed is not what trees can be verified with."""


class OwnPromptRunner(SlabRunner):
    """Verifies trees behind a prompt that the model has fed itself.

    Args:
        prompt: the prompt; `plain_reason` must be `None`.
        can_branch: as of `SlabRunner`.
        max_length: the most KV slots the request can need; `None` when unknown.
    """

    def __init__(self, prompt: OwnPrompt, *, can_branch: bool = True, max_length: int | None = None) -> None:
        super().__init__(prompt.model, can_branch=can_branch, max_length=max_length)
        self._prompt = prompt
        self._step_inputs = prompt.step_inputs()

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[torch.Tensor]) -> torch.Tensor:
        prompt = self._prompt
        self.cache.reserve(prompt.num_slots)
        self._take_over(prompt.inputs.get("past_key_values"))
        inputs = {**prompt.inputs, "past_key_values": self.cache}
        output = self.model._prefill(prompt.input_ids, prompt.config, inputs)
        if self.cache.length != prompt.num_slots:
            raise AssertionError(f"a prompt of {prompt.num_slots} slots filled {self.cache.length}")
        self.cache.set_lengths([prompt.num_slots])
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def hand_back(self, cache: DynamicCache, num_tokens: int) -> None:
        """Fills a cache with what plain decoding of so many new tokens would have left in it."""
        if num_tokens == 0:
            return
        length = self._prompt.num_slots + num_tokens - 1  # the last token has not been fed
        cache.layers = []
        for number, layer in enumerate(self.cache.layers):
            cache.update(layer.keys[:, :, :length].clone(), layer.values[:, :, :length].clone(), number)

    def _take_over(self, cache: DynamicCache | None) -> None:
        """Copies what the caller's cache holds."""
        for number, layer in enumerate(cache.layers if cache is not None else ()):
            if layer.is_initialized:
                self.cache.update(layer.keys, layer.values, number)

    def _call(self, ids: torch.Tensor, positions: torch.Tensor, mask: Any, **options: Any) -> torch.Tensor:
        step = self._step_inputs
        own_positions = positions.to(step.positions.device) - self._prompt.num_slots + step.positions
        expanded = {name: value.expand(1, ids.shape[1]) for name, value in step.of_each_token.items()}
        return super()._call(ids, own_positions, mask, **expanded, **options)
