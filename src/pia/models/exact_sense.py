"""Whether exact decoding computes the right thing: equal bits would be worth nothing if a mask were wrong."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from pia.drafting.tree import DraftTree
from pia.models.distance import rms_distance
from pia.models.exact import ExactRunner

_PROMPT_LENGTH = 37
_LENGTH = _PROMPT_LENGTH + 8
_SIZE = 16
"""Tokens of the forward that is looked at, those in vain included."""


@torch.inference_mode()
def distance_from_text(model: Any) -> tuple[float, float]:
    """Relative errors, against a forward over the whole text without a cache, of exact and of ordinary decoding."""
    generator = torch.Generator().manual_seed(1)
    vocab_size = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(0, vocab_size, (1, _LENGTH), generator=generator).to(model.device)
    expected = model(input_ids=ids, use_cache=False).logits[0, _PROMPT_LENGTH:].double()
    scale = float(expected.std())
    errors = (rms_distance(logits, expected) / scale for logits in (_exact(model, ids), _ordinary(model, ids)))
    return next(errors), next(errors)


def _exact(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a chain behind the prompt, `[tokens, vocab]`."""
    runner = ExactRunner(model, lambda _: (_SIZE,))
    runner.prefill(ids[:, :_PROMPT_LENGTH])
    first, *others = ids[0, _PROMPT_LENGTH:].tolist()
    return runner.forward(first, DraftTree.chain(others))


def _ordinary(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The same, one token at a time with Transformers' own cache."""
    cache = DynamicCache()
    parts = [ids[:, :_PROMPT_LENGTH], *torch.split(ids[:, _PROMPT_LENGTH:], 1, dim=1)]
    logits = [model(input_ids=part, past_key_values=cache, use_cache=True).logits[0, -1:] for part in parts]
    return torch.cat(logits[1:])
