"""How well a model does on rows that no training saw."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from pia.errors import ShrinkError
from pia.ipad.data import Batch, Rows, make_batch
from pia.ipad.data.batches import grouped
from pia.ipad.decoder import Decoder
from pia.ipad.divergences import forward_kl
from pia.ipad.losses import MAX_LOGITS
from pia.models.evaluating import evaluating


@dataclass(frozen=True)
class Quality:
    """Means over the tokens of weight 1."""

    nll: float
    """Negative log-likelihood of the tokens, natural logarithm."""
    perplexity: float
    """exp(nll)."""
    kl: float | None
    """KL(teacher || model); None if there was no teacher."""
    agreement: float | None
    """Share of tokens where model and teacher would choose the same one; None if there was no teacher."""
    num_tokens: int


@torch.no_grad()
def measure(
    model: Any,
    rows: Rows,
    teacher: Any = None,
    *,
    batch_tokens: int = 8192,
    max_logits: int = MAX_LOGITS,
) -> Quality:
    """Measures on held-out rows; the same model and rows give the same figures.

    Args:
        model: a causal language model, in the arithmetic of its weights.
        rows: held out.
        teacher: a model to compare with.
        batch_tokens: most tokens of a forward, padding counted.
        max_logits: elements of the logits that are alive at once.

    Raises:
        ShrinkError: no token has weight 1.
    """
    decoder = Decoder(model)
    original = Decoder(teacher) if teacher is not None else None
    sums = torch.zeros(3, dtype=torch.float64)
    num_tokens = 0
    with evaluating(model):
        for batch in _batches(rows, batch_tokens, model.device):
            sums += _sums(decoder, original, batch, max_logits)
            num_tokens += len(batch.places)
    if not num_tokens:
        raise ShrinkError("no token of the held-out rows has weight 1: there is nothing to measure on")
    nll, kl, same = (sums / num_tokens).tolist()
    perplexity = math.exp(nll) if nll < 700 else math.inf
    has = original is not None
    return Quality(nll, perplexity, kl if has else None, same if has else None, num_tokens)


def _batches(rows: Rows, batch_tokens: int, device: torch.device) -> list[Batch]:
    """Rows by their length, and only tokens of weight 1 in them."""
    lengths = [len(row) for row in rows]
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    batches = [make_batch(rows, numbers) for numbers in grouped(order, lengths, batch_tokens)]
    return [Batch(b.rows, b.ids, (b.weights == 1).float()).to(device) for b in batches]


def _sums(decoder: Decoder, original: Decoder | None, batch: Batch, max_logits: int) -> torch.Tensor:
    """Over the tokens of a batch, float64: negative log-likelihood, KL, and how many choices are the same."""
    hidden = decoder.hidden(batch)
    theirs = original.hidden(batch) if original is not None else None
    targets = batch.targets
    sums = torch.zeros(3, dtype=torch.float64)
    step = max(1, max_logits // decoder.vocab_size)
    for start in range(0, len(hidden), step):
        part = slice(start, start + step)
        log_probs = torch.log_softmax(decoder.logits(hidden[part]), -1)
        found = [-log_probs.gather(-1, targets[part, None]).double().sum()]
        if original is not None and theirs is not None:
            log_teacher = torch.log_softmax(original.logits(theirs[part]), -1)
            found.append(forward_kl(log_teacher, log_probs).double().sum())
            found.append((log_teacher.argmax(-1) == log_probs.argmax(-1)).double().sum())
        sums[: len(found)] += torch.stack(found).cpu()
    return sums
