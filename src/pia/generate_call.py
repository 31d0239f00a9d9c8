"""What Transformers' `generate` hands to a custom decoding method, and what of it PIA can honour."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence, Sized
from functools import cached_property
from numbers import Integral
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.cache_utils import DynamicCache
from transformers.generation.stopping_criteria import StoppingCriteriaList, StopStringCriteria

from pia.decoding.chooser import TokenChooser
from pia.decoding.request import Request, Stopping
from pia.decoding.row_processors import criteria_for_row, processors_for_row
from pia.errors import PromptError, UnsupportedOptionError
from pia.models.inputs_probe import passing_reason
from pia.models.own_prompt import OwnPrompt

_CACHES = ("past_key_values", "cache_params")
"""What models call the cache that Transformers makes for them."""
_KNOWN_INPUTS = {"attention_mask", "position_ids", "use_cache", "logits_to_keep", "cache_position", *_CACHES}
"""Model inputs that PIA makes itself."""


class GenerateCall:
    """One prepared call of `generate`: prompt, processors, criteria, configuration and model inputs.

    The class itself serves as `custom_generate`, so that `model.generate(..., custom_generate=GenerateCall)`
    prepares everything through Transformers' public door and decodes nothing.

    Raises:
        PromptError: the prompt is empty or holds ids that the model does not have.
        UnsupportedOptionError: an option asks for another way of decoding.
    """

    def __init__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> None:
        self.model = model
        self.input_ids = input_ids
        self.logits_processor = logits_processor
        self.stopping_criteria = stopping_criteria
        self.config = generation_config
        self.model_kwargs = model_kwargs
        _refuse_other_decoding(model, generation_config)
        if model_kwargs.get("inputs_embeds") is None:
            _check_prompt(model, input_ids)

    def new_chooser(self, row: int = 0, generator: torch.Generator | None = None) -> TokenChooser:
        """The rule that picks a row's tokens: processors, sampling, and what to record."""
        returns_dict = bool(self.config.return_dict_in_generate)
        return TokenChooser(
            processors_for_row(self.logits_processor, row, self.num_rows, shift=self._padding(row)[1]),
            do_sample=bool(self.config.do_sample),
            keep_scores=returns_dict and bool(self.config.output_scores),
            keep_logits=returns_dict and bool(self.config.output_logits),
            generator=generator,
        )

    def new_request(self, row: int = 0, *, strip_padding: bool) -> Request:
        """A row's text. With `strip_padding` the model does not see the padding; processors do, as in plain decoding.

        They find it on the left, since behind the text it would come between the prompt and what follows.
        """
        left, right = self._padding(row) if strip_padding else (0, 0)
        ids = self.input_ids[row : row + 1].roll(right, dims=1)
        criteria = criteria_for_row(self.stopping_criteria, row, self.num_rows)
        return Request(ids, Stopping(criteria), num_padding=left + right)

    @property
    def num_rows(self) -> int:
        """Requests in this call."""
        return int(self.input_ids.shape[0])

    @cached_property
    def own_prompt(self) -> OwnPrompt | None:
        """The prompt, if it is more than token ids from position 0 on: the model must feed it its own way."""
        if not (self._extra_inputs or self.given_cache is not None or self._has_own_positions()):
            return None
        return OwnPrompt(self.model, self.input_ids, self.config, self.model_kwargs)

    @property
    def given_cache(self) -> Any:
        """The cache that the caller passed, to be filled and perhaps found filled; `None` if Transformers made it."""
        cache = self._cache
        is_given = getattr(cache, "_is_user_defined", False) or (isinstance(cache, DynamicCache) and _holds_text(cache))
        return cache if is_given else None

    @property
    def num_hidden(self) -> int:
        """How many KV slots more than tokens the prompt takes: embeddings, or cached text that is not in the prompt."""
        return 0 if self.own_prompt is None else self.own_prompt.num_slots - int(self.input_ids.shape[1])

    def plain_reason(self, *, is_recurrent: bool = False) -> str | None:
        """Why Transformers' own cache, masks and positions must stay as they are for this call, or `None`.

        With `is_recurrent` the model keeps a state, which padding would run through in some families.
        """
        cache = self._cache
        if not self.model_kwargs.get("use_cache", True):
            return "use_cache=False leaves nothing to verify a draft against"
        if cache is not None and type(cache) is not DynamicCache:
            return f"the caller chose a {type(cache).__name__}"
        if getattr(cache, "offloading", False):
            return "the caller chose an offloaded cache"
        if self.own_prompt is not None:
            return self._own_prompt_reason(self.own_prompt, is_recurrent)
        if is_recurrent and any(self._padding(0)):
            return "the prompt is padded, and padding may leave a trace in a recurrent state"
        return next(filter(None, map(self._odd_mask, range(self.num_rows))), None)

    @property
    def _cache(self) -> Any:
        return next((self.model_kwargs[name] for name in _CACHES if self.model_kwargs.get(name) is not None), None)

    @property
    def _extra_inputs(self) -> list[str]:
        given = (name for name, value in self.model_kwargs.items() if not _is_nothing(value))
        return sorted(name for name in given if name not in _KNOWN_INPUTS)

    def _own_prompt_reason(self, prompt: OwnPrompt, is_recurrent: bool) -> str | None:
        own = "a cache of the caller's own" if self.given_cache is not None else "position_ids other than 0, 1, 2 ..."
        what = ", ".join(self._extra_inputs) or own
        if is_recurrent:
            return f"the model is given {what}, and keeps a recurrent state"
        if self.num_rows > 1:
            return f"the model is given {what} for several rows"
        return prompt.plain_reason()

    def _padding(self, row: int) -> tuple[int, int]:
        """How many tokens of a row the attention mask hides on the left and on the right."""
        mask = self.model_kwargs.get("attention_mask")
        if mask is None:
            return 0, 0
        seen = mask[row].nonzero().flatten().tolist()
        return (seen[0], len(mask[row]) - 1 - seen[-1]) if seen else (len(mask[row]), 0)

    def _odd_mask(self, row: int) -> str | None:
        mask = self.model_kwargs.get("attention_mask")
        if mask is None:
            return None
        left, right = self._padding(row)
        if left == self.input_ids.shape[1]:
            return "the attention mask hides the whole prompt"
        return "the attention mask has holes" if bool((mask[row, left : len(mask[row]) - right] == 0).any()) else None

    def _has_own_positions(self) -> bool:
        """Whether some row's text is not at the positions 0, 1, 2 ..., in all dimensions if it has several."""
        positions = self.model_kwargs.get("position_ids")
        if positions is None:
            return False
        length = self.input_ids.shape[1]
        if positions.shape[-1] != length:
            return True
        for row in range(self.num_rows):
            left, right = self._padding(row)
            given = positions[..., min(row, positions.shape[-2] - 1), left : length - right]
            if not torch.equal(given, torch.arange(given.shape[-1], device=given.device).expand_as(given)):
                return True
        return False


def _is_nothing(value: Any) -> bool:
    """Whether an input says nothing, as what Transformers hands on of the images of a text without any."""
    return value is None or (isinstance(value, Mapping) and not value)


def _holds_text(cache: DynamicCache) -> bool:
    states = [layer for layer in cache.layers if hasattr(layer, "has_previous_state")]
    if states:
        return any(any(layer.has_previous_state.values()) for layer in states)
    return bool(cache.get_seq_length() > 0)


class _HeldCall(GenerateCall):
    """A call that is decoded after `generate` has returned; it remembers how a wrapper had changed the model."""

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        self._passing_reason = passing_reason(model)

    def check_model(self) -> None:
        """Raises `UnsupportedOptionError` if the model is no longer what it was while `generate` ran."""
        if passing_reason(self.model) != self._passing_reason:
            raise UnsupportedOptionError(
                f"{self._passing_reason}; it does so only while its own generate runs, so its steps cannot be had one "
                "by one: call model.generate(..., custom_generate=lookahead), with a streamer for the tokens"
            )


def row_generators(call: GenerateCall, seeds: Sequence[int] | None) -> list[torch.Generator | None]:
    """What each row draws its random numbers from; `None` is torch's own generator.

    Raises:
        UnsupportedOptionError: there is not one whole number for each row.
    """
    if seeds is None:
        if call.num_rows == 1 or not call.config.do_sample:
            return [None] * call.num_rows
        seeds = torch.randint(2**63 - 1, (call.num_rows,)).tolist()
    if not isinstance(seeds, Sized) or len(seeds) != call.num_rows or not all(map(_is_seed, seeds)):
        raise UnsupportedOptionError(
            "seeds must be a list of whole numbers of at most 64 bits, "
            f"one for each of the {call.num_rows} rows of the call"
        )
    return [torch.Generator(call.input_ids.device).manual_seed(int(seed)) for seed in seeds]


def _is_seed(seed: Any) -> bool:
    """Whether torch takes this as a seed."""
    return isinstance(seed, Integral) and not isinstance(seed, bool) and -(2**63) <= int(seed) < 2**64


def caller_argument(name: str) -> Any:
    """An argument of the `generate` call we are in that Transformers does not pass on, or `None`.

    Transformers 5 drops `streamer`, `assistant_model` and `synced_gpus` on the way to a callable. A streamer that is
    silently lost leaves its reader waiting for ever, so we look it up where it is: in the frame of `generate`.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "generate" and "custom_generate" in frame.f_locals:
            return frame.f_locals.get(name)
        frame = frame.f_back  # type: ignore[assignment]
    return None


def with_stop_criterion(model: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `generate` with `stop_strings` turned into a stopping criterion.

    Transformers drops the tokenizer that stop strings need on the way to a custom decoding method, and then asks for
    it.

    Raises:
        PromptError: there are stop strings and no tokenizer.
    """
    kwargs = dict(kwargs)
    tokenizer = kwargs.pop("tokenizer", None)
    config: GenerationConfig | None = kwargs.get("generation_config")
    strings = kwargs.get("stop_strings") or getattr(config or model.generation_config, "stop_strings", None)
    if strings is None:
        return kwargs
    if tokenizer is None:
        raise PromptError("stop_strings need the tokenizer: pass tokenizer=... to generate as well")
    config = GenerationConfig.from_dict((config or model.generation_config).to_dict())
    config.stop_strings = None
    given = kwargs.get("stopping_criteria") or []
    kwargs.pop("stop_strings", None)
    return {
        **kwargs,
        "generation_config": config,
        "stopping_criteria": StoppingCriteriaList([*given, StopStringCriteria(tokenizer, strings)]),
    }


def prepare(model: Any, input_ids: torch.Tensor, **kwargs: Any) -> GenerateCall:
    """Prepares a call as `model.generate(input_ids, **kwargs)` would, and decodes nothing.

    Raises:
        PromptError: the prompt is empty or foreign to the model.
        UnsupportedOptionError: an option that PIA cannot honour, a `streamer` (the caller has the steps themselves), or
            a wrapper such as PEFT's prompt tuning, which changes the model for the time of its `generate` alone.
    """
    if kwargs.get("streamer") is not None:
        raise UnsupportedOptionError("a streamer has no use here: the steps themselves are the stream; leave it out")
    if input_ids.numel() == 0:  # Transformers would begin a text of its own
        raise PromptError("the prompt is empty; give at least one token")
    kwargs = {**with_stop_criterion(model, kwargs), "custom_generate": _HeldCall}
    # The class's method, since on an accelerated model the instance's own would decode. A compiled model has none.
    unbound = getattr(type(model), "generate", None)
    call: _HeldCall = unbound(model, input_ids, **kwargs) if unbound else model.generate(input_ids, **kwargs)
    call.check_model()
    return call


def _refuse_other_decoding(model: Any, config: Any) -> None:
    """Refuses by name what is not greedy search or sampling."""
    asked = {
        "num_beams": (config.num_beams or 1) > 1,
        "penalty_alpha": bool(config.penalty_alpha),
        "prompt_lookup_num_tokens": config.prompt_lookup_num_tokens is not None,
        "assistant_model": caller_argument("assistant_model") is not None,
        "assistant_early_exit": getattr(config, "assistant_early_exit", None) is not None,
        "dola_layers": getattr(config, "dola_layers", None) is not None,
        "constraints": getattr(config, "constraints", None) is not None,
        "force_words_ids": getattr(config, "force_words_ids", None) is not None,
        "num_beam_groups": (getattr(config, "num_beam_groups", None) or 1) > 1,
        "output_attentions": bool(config.return_dict_in_generate and config.output_attentions),
        "output_hidden_states": bool(config.return_dict_in_generate and config.output_hidden_states),
        "synced_gpus": bool(caller_argument("synced_gpus")),
    }
    refused = [name for name, is_asked in asked.items() if is_asked]
    if refused:
        raise UnsupportedOptionError(
            f"PIA decodes greedily or by sampling and cannot honour {', '.join(refused)}: leave it out, "
            "or call generate without PIA (no custom_generate; on an accelerated model "
            'decoding_kwargs={"use_lookahead": False})'
        )
    if model.config.is_encoder_decoder:
        raise UnsupportedOptionError(
            f"{type(model).__name__} is an encoder-decoder model; PIA decodes decoder-only models"
        )


def _check_prompt(model: Any, input_ids: torch.Tensor) -> None:
    if input_ids.numel() == 0:
        raise PromptError("the prompt is empty; give at least one token")
    num_embeddings = vocab_size(model)
    least, most = int(input_ids.min()), int(input_ids.max())
    if least < 0 or most >= num_embeddings:
        bad = least if least < 0 else most
        raise PromptError(
            f"the prompt holds token id {bad}, but the model's vocabulary has ids 0 .. {num_embeddings - 1}; "
            "use the tokenizer that belongs to the model"
        )


def vocab_size(model: Any) -> int:
    """Number of token ids the model has embeddings for."""
    return int(model.get_input_embeddings().weight.shape[0])
