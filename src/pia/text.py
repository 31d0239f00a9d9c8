"""Three layers of generation: token steps, text steps, the whole result. Each adds one concern to the one below."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pia.decoding.stats import Stats, Step
from pia.errors import PromptError, UnsupportedOptionError
from pia.generate_call import prepare, vocab_size
from pia.lookahead import Lookahead
from pia.models.placement import input_device
from pia.models.positions import context_length
from pia.output import Decoding
from pia.prediction import NO_PREDICTION, Prediction, prediction_ids

_DEFAULT_MAX_NEW_TOKENS = 256

Prompt = str | Sequence[Mapping[str, str]] | Sequence[int] | torch.Tensor
"""Text, chat messages (`{"role": ..., "content": ...}`), or token ids."""


@dataclass(frozen=True, slots=True)
class TextPiece:
    """The text that one token completed; empty while a character is still in parts."""

    text: str
    token_id: int
    source: str | None
    """The source that had drafted the token, if any did."""

    @property
    def is_drafted(self) -> bool:
        return self.source is not None


@dataclass(frozen=True, slots=True)
class TextStep:
    """A step and its text."""

    pieces: list[TextPiece]
    step: Step

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


@dataclass(frozen=True)
class Result:
    """A whole generation."""

    text: str
    token_ids: list[int]
    prompt_ids: list[int]
    stats: Stats

    @property
    def finish_reason(self) -> str | None:
        """Why it ended: "eos", "length" or "stop"."""
        return self.stats.finish_reason


def decode(
    model: Any,
    input_ids: torch.Tensor | Sequence[int],
    *,
    lookahead: Lookahead | None = None,
    predicted_output: Prediction | None = None,
    **generate_kwargs: Any,
) -> Generator[Step, None, None]:
    """Generates token step by token step.

    Args:
        model: a causal language model of Transformers.
        input_ids: prompt, `[1, length]` or `[length]`.
        lookahead: drafts and options; a new one by default. `Lookahead(budget=0)` decodes plainly.
        predicted_output: token ids that the output is expected to be, more or less, `[n]`; see `generate`.
        **generate_kwargs: whatever `model.generate` takes.

    Yields:
        the prefill's step, then one step for each forward. Closing the iterator early leaves no trace of the request.

    Raises:
        PromptError: the prompt is empty or holds ids the model does not have.
        PredictionError: the predicted output is not token ids of the model.
        UnsupportedOptionError: an option that cannot be honoured.
    """
    predicted = _predicted(model, predicted_output)
    return _start(model, _as_ids(input_ids), lookahead, predicted, generate_kwargs).steps


def stream(
    model: Any,
    tokenizer: Any,
    prompt: Prompt,
    *,
    lookahead: Lookahead | None = None,
    predicted_output: Prediction | None = None,
    **generate_kwargs: Any,
) -> Generator[TextStep, None, None]:
    """Generates text step by text step; arguments and errors as for `generate`."""
    decoding = _start_text(model, tokenizer, prompt, lookahead, predicted_output, generate_kwargs)
    return _texts(tokenizer, decoding)


def generate(
    model: Any,
    tokenizer: Any,
    prompt: Prompt,
    *,
    lookahead: Lookahead | None = None,
    predicted_output: Prediction | None = None,
    **generate_kwargs: Any,
) -> Result:
    """Generates a whole answer.

    Args:
        model: a causal language model of Transformers.
        tokenizer: its tokenizer.
        prompt: text, chat messages, or token ids.
        lookahead: drafts and options; a new one by default.
        predicted_output: what the answer is expected to be, more or less, as text or token ids: the file to be edited,
            a template, the previous answer. Drafts follow it and find their way back where the answer departs from it;
            the output is the same with it and without.
        **generate_kwargs: whatever `model.generate` takes; without a length or a `generation_config`, at most 256
        new tokens within the model's context.

    Raises:
        PromptError: the prompt is empty, foreign to the model, or fills its context.
        PredictionError: the predicted output is neither text nor token ids of the model.
        CacheMismatchError: the draft cache belongs to another tokenizer.
        UnsupportedOptionError: an option that cannot be honoured.
    """
    decoding = _start_text(model, tokenizer, prompt, lookahead, predicted_output, generate_kwargs)
    with closing(decoding.steps) as steps:
        for _ in steps:
            pass
    request = decoding.request
    text = tokenizer.decode(request.output_ids, skip_special_tokens=True)
    return Result(text, request.output_ids, request.token_ids[: request.num_prompt_tokens], decoding.stats)


def encode(tokenizer: Any, prompt: Prompt) -> torch.Tensor:
    """Token ids `[1, length]` of a prompt in any of its forms."""
    if isinstance(prompt, str):
        return _as_ids(tokenizer(prompt)["input_ids"])
    if not isinstance(prompt, torch.Tensor) and len(prompt) and isinstance(prompt[0], Mapping):
        encoded = tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, return_dict=True)
        return _as_ids(encoded["input_ids"])
    return _as_ids(prompt)  # type: ignore[arg-type]


class Detokenizer:
    """Turns tokens into text as they come, never showing part of a character.

    Args:
        tokenizer: decodes; special tokens are left out.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0  # decoding begins a little before the new tokens, since a token's text may depend on its left
        self._shown = 0

    def add(self, token_id: int) -> str:
        """Takes a token and returns the text that is complete with it."""
        self._ids.append(token_id)
        known, text = self._decode(self._shown), self._decode(len(self._ids))
        if text.endswith("\ufffd") or len(text) <= len(known):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return text[len(known) :]

    def flush(self) -> str:
        """What is left at the end, incomplete characters included."""
        return self._decode(len(self._ids))[len(self._decode(self._shown)) :]

    def _decode(self, end: int) -> str:
        text: str = self._tokenizer.decode(self._ids[self._start : end], skip_special_tokens=True)
        return text


def _texts(tokenizer: Any, decoding: Decoding) -> Generator[TextStep, None, None]:
    detokenizer = Detokenizer(tokenizer)
    with closing(decoding.steps) as steps:
        for step in steps:
            pieces = [
                TextPiece(detokenizer.add(token_id), token_id, source)
                for token_id, source in zip(step.token_ids, step.sources, strict=True)
            ]
            if step.finish_reason and (rest := detokenizer.flush()):
                pieces[-1] = replace(pieces[-1], text=pieces[-1].text + rest)
            yield TextStep(pieces, step)


def _start_text(
    model: Any,
    tokenizer: Any,
    prompt: Prompt,
    lookahead: Lookahead | None,
    predicted_output: Prediction | None,
    generate_kwargs: dict[str, Any],
) -> Decoding:
    input_ids = encode(tokenizer, prompt)
    lookahead = lookahead or Lookahead()
    lookahead.bind(tokenizer)
    kwargs = {"tokenizer": tokenizer, **generate_kwargs}
    limit, length = context_length(model), input_ids.shape[1]
    if limit is not None and length >= limit:
        raise PromptError(f"the prompt has {length} tokens and the model's context ends at {limit}; shorten the prompt")
    if not kwargs.keys() & {"max_new_tokens", "max_length", "generation_config"}:
        kwargs["max_new_tokens"] = min(_DEFAULT_MAX_NEW_TOKENS, limit - length) if limit else _DEFAULT_MAX_NEW_TOKENS
    return _start(model, input_ids, lookahead, _predicted(model, predicted_output, tokenizer), kwargs)


def _start(
    model: Any,
    input_ids: torch.Tensor,
    lookahead: Lookahead | None,
    predicted_ids: npt.NDArray[np.int32],
    generate_kwargs: dict[str, Any],
) -> Decoding:
    input_ids = input_ids.to(input_device(model))
    kwargs = {"attention_mask": torch.ones_like(input_ids), **generate_kwargs}
    call = prepare(model, input_ids, **kwargs)
    if call.num_rows > 1:
        raise UnsupportedOptionError(
            f"this is for one request, and the call has {call.num_rows} rows; start one for each, "
            "or give the batch to model.generate(..., custom_generate=lookahead)"
        )
    return (lookahead or Lookahead()).start(call, predicted_ids=[predicted_ids])


def _predicted(model: Any, given: Prediction | None, tokenizer: Any = None) -> npt.NDArray[np.int32]:
    if given is None:
        return NO_PREDICTION
    return prediction_ids(given, name="predicted_output", vocab_size=vocab_size(model), tokenizer=tokenizer)


def _as_ids(ids: torch.Tensor | Sequence[int]) -> torch.Tensor:
    tensor = torch.as_tensor(ids, dtype=torch.long)
    return tensor[None] if tensor.dim() == 1 else tensor
