"""Proves that a model continues its recurrent state rightly: chains, a snapshot put back, accepted tokens fed again."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from pia.drafting.tree import DraftTree
from pia.models.distance import rms_distance
from pia.models.placement import input_device
from pia.models.recurrent import RecurrentRunner
from pia.models.runner import StockRunner

_PROMPT_LENGTH = 11
_ROUNDS = ((2, 4), (0, 3), (1, 1), (1, 3), (0, 0))
"""Accepted and drafted tokens of each step: a draft accepted in part, another on top of what is then pending, one
accepted in full, one more in part, and a step without a draft."""


@torch.no_grad()
def recurrent_errors(model: Any) -> tuple[float, float]:
    """How far verified chains are from plain decoding.

    Returns:
        the relative error of the logits of chains against decoding as `generate` does it, and, in 16 bits, how far
        that is off a forward without a cache. In full precision the latter is no excuse, and is zero: some families
        decode by another formula than they prefill.
    """
    text = _example_text(model)
    plain = _plain_rows(model, text)
    scale = float(plain.double().std())
    error = rms_distance(_chain_rows(model, text), plain) / scale
    if model.dtype in (torch.float32, torch.float64):
        return error, 0.0
    whole = model(input_ids=torch.tensor([text], device=input_device(model)), use_cache=False).logits[0]
    return error, rms_distance(plain, whole[_PROMPT_LENGTH - 1 :]) / scale


def _chain_rows(model: Any, text: list[int]) -> torch.Tensor:
    """Logits `[rows, vocab]` from the prompt's last token on, out of chains that leave the text after a while."""
    runner = RecurrentRunner(model)
    wrong = [text[0], text[1], text[2], text[3]]
    position = _PROMPT_LENGTH
    rows = [runner.prefill([torch.tensor(text[:position])])]
    for num_accepted, num_drafted in _ROUNDS:
        right = text[position + 1 : position + 1 + num_accepted]
        logits = runner.forward([text[position]], [DraftTree.chain([*right, *wrong[: num_drafted - num_accepted]])])[0]
        rows.append(logits[: num_accepted + 1])
        runner.keep([range(num_accepted + 1)])
        position += num_accepted + 1
    return torch.cat(rows)


def _plain_rows(model: Any, text: list[int]) -> torch.Tensor:
    """The same rows one token at a time, through the calls that `generate` itself makes."""
    prompt = torch.tensor([text[:_PROMPT_LENGTH]], device=input_device(model))
    runner = StockRunner(model, *_as_generate_prepares(model, text[:_PROMPT_LENGTH]), prompt)
    rows = [runner.prefill([prompt[0]])]
    rows += [runner.forward([token_id], [DraftTree.empty()])[0] for token_id in text[_PROMPT_LENGTH:]]
    return torch.cat(rows)


def _as_generate_prepares(model: Any, prompt: list[int]) -> tuple[Any, dict[str, Any]]:
    """The configuration and the model inputs that `generate` would decode with."""
    received: list[tuple[Any, dict[str, Any]]] = []

    def receive(
        model: Any, input_ids: Any, logits_processor: Any, stopping_criteria: Any, generation_config: Any, **inputs: Any
    ) -> Any:
        received.append((generation_config, inputs))
        return input_ids

    ids = torch.tensor([prompt], device=input_device(model))
    config = GenerationConfig(max_new_tokens=64, do_sample=False, pad_token_id=0)
    # The class's own method: on an accelerated model the instance's would come back to us.
    type(model).generate(
        model, ids, attention_mask=torch.ones_like(ids), generation_config=config, custom_generate=receive
    )
    return received[0]


def _example_text(model: Any) -> list[int]:
    """Fixed pseudo-random token ids: a prompt, and what the rounds feed."""
    vocab_size = model.get_input_embeddings().weight.shape[0]
    length = _PROMPT_LENGTH + sum(accepted + 1 for accepted, _ in _ROUNDS)
    return [int(token_id) for token_id in np.random.default_rng(7).integers(0, vocab_size, length)]
