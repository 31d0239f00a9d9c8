"""Importance of whole layers: how far they turn the residual stream, or what the model loses without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from pia.ipad.importance.batch import Batch, model_inputs, predicted_positions, token_weights
from pia.ipad.importance.points import HasPoints
from pia.ipad.stream import entering, leaving, pass_on

Array = np.ndarray[Any, Any]


def block_influence(model: Any, structure: HasPoints, batches: Sequence[Batch]) -> Array:
    """Mean over tokens of 1 - cosine between the stream before and after each layer (ShortGPT, arXiv 2403.03853).

    Returns:
        float64 `[layers]`; 0 for a layer that changes nothing.
    """
    layers = list(structure.layers(model))
    sums = torch.zeros(len(layers), dtype=torch.float64)
    num_tokens = 0.0
    weights = torch.empty(0)

    def see(index: int, before: torch.Tensor, after: torch.Tensor) -> None:
        turn = 1 - _cosine(before.detach().double(), after.detach().double())  # [rows, tokens]
        sums[index] += float((turn.clamp_(min=0) * weights.to(turn.device)).sum())

    with torch.no_grad(), _watching_layers(layers, see):
        for batch in batches:
            weights = token_weights(batch, model.device)
            num_tokens += float(weights.sum())
            model(**model_inputs(batch, model.device), use_cache=False)
    return (sums / num_tokens).numpy()


def leave_one_out(
    model: Any, structure: HasPoints, batches: Sequence[Batch], loss: Callable[[Batch], torch.Tensor] | None = None
) -> Array:
    """What each layer's absence costs: how much a loss grows, by default the KL from the whole model, per batch.

    Returns:
        float64 `[layers]`; may be negative for a loss of the caller's, where the model is better off without.
    """
    layers = list(structure.layers(model))
    costs = np.zeros(len(layers))
    with torch.no_grad():
        for batch in batches:
            cost = _cost_of_absence(model, batch, loss)
            for index, layer in enumerate(layers):
                with _skipping(layer):
                    costs[index] += cost()
    return costs / len(batches)


def _cost_of_absence(model: Any, batch: Batch, loss: Callable[[Batch], torch.Tensor] | None) -> Callable[[], float]:
    if loss is not None:
        whole = float(loss(batch))
        return lambda: float(loss(batch)) - whole
    inputs, positions = model_inputs(batch, model.device), predicted_positions(batch, model.device)

    def log_probs() -> torch.Tensor:
        logits = model(**inputs, use_cache=False).logits[:, :-1][positions]
        return functional.log_softmax(logits.double(), dim=-1)

    known = log_probs()
    return lambda: float(functional.kl_div(log_probs(), known, reduction="batchmean", log_target=True))


def _cosine(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """`[rows, tokens]`; 1 for equal streams, all zeros included."""
    lengths = torch.linalg.vector_norm(before, dim=-1) * torch.linalg.vector_norm(after, dim=-1)
    cosine = (before * after).sum(dim=-1) / lengths.clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where((before == after).all(dim=-1), torch.ones_like(cosine), cosine)


@contextmanager
def _watching_layers(layers: Sequence[Any], see: Callable[[int, torch.Tensor, torch.Tensor], None]) -> Iterator[None]:
    def hook_of(index: int) -> Callable[..., None]:
        return lambda _module, args, kwargs, output: see(index, entering(args, kwargs), leaving(output))

    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            stack.callback(layer.register_forward_hook(hook_of(index), with_kwargs=True).remove)
        yield


@contextmanager
def _skipping(layer: Any) -> Iterator[None]:
    """A layer passes the stream on as it came."""
    handle = layer.register_forward_hook(pass_on, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
