"""The default loss of Taylor scores: that of distillation, with a gradient from the first round on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from pia.ipad.importance.batch import Batch, model_inputs, predicted_positions, token_ids


def sampled_teacher_loss(model: Any, teacher: Any = None, *, seed: int = 0) -> Callable[[Batch], torch.Tensor]:
    """Cross-entropy with next tokens that are drawn from the teacher's distribution, a token at each position.

    Over draws its mean is KL(teacher || model) plus the teacher's entropy, so it is the loss of distillation. But KL
    itself has no gradient where the student still equals the teacher, as it does in the first round: there only its
    curvature says what a unit is worth, and that is the mean square of this loss' gradient (the Fisher information).

    Args:
        model: the student.
        teacher: the model to be distilled from; the student itself by default.
        seed: of the draws. A batch gets the same ones wherever it stands in the set.

    Returns:
        a function that gives the loss of a batch: a sum over the positions, so that a row's share does not depend on
        what is batched with it.
    """

    def loss(batch: Batch) -> torch.Tensor:
        inputs = model_inputs(batch, model.device)
        is_predicted = predicted_positions(batch, model.device)
        logits = model(**inputs, use_cache=False).logits[:, :-1]
        if teacher is None:
            known = logits.detach()
        else:
            with torch.no_grad():
                known = teacher(**model_inputs(batch, teacher.device), use_cache=False).logits[:, :-1].to(logits.device)
        drawn = _draw(known[is_predicted], _generator(batch, seed))
        return functional.cross_entropy(logits[is_predicted].float(), drawn, reduction="sum")

    return loss


def _draw(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A token for each row of `[positions, vocabulary]`: the draws are made on the CPU, the same on every device."""
    probs = torch.softmax(logits.detach().double(), dim=-1)
    points = torch.rand(len(probs), 1, generator=generator, dtype=torch.float64).to(probs.device)
    tokens = torch.searchsorted(probs.cumsum(dim=-1), points).squeeze(-1)
    return tokens.clamp_(max=logits.shape[-1] - 1)


def _generator(batch: Batch, seed: int) -> torch.Generator:
    """Random numbers that depend on the seed and on the batch's own tokens."""
    tokens = token_ids(batch).cpu().to(torch.int64).contiguous().numpy().tobytes()
    digest = hashlib.sha256(seed.to_bytes(8, "little", signed=True) + tokens).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
