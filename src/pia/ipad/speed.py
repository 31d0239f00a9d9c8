"""Measures plain greedy decoding on this machine: one forward a token, contenders in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from pia.ipad.counts import HasConfig
from pia.ipad.kernels import kernels_of
from pia.ipad.latency_model import LatencyModel
from pia.ipad.shape import Shape
from pia.models.evaluating import evaluating

PROMPT_TOKENS = 32
NEW_TOKENS = 32
ROUNDS = 5


@dataclass(frozen=True)
class Speed:
    """Of one model."""

    tokens_per_second: float
    """Median of the rounds."""
    slowest: float
    fastest: float

    @property
    def seconds(self) -> float:
        """For a token."""
        return 1 / self.tokens_per_second


def measure_speeds(
    models: Mapping[Any, Any],
    *,
    prompt_tokens: int = PROMPT_TOKENS,
    new_tokens: int = NEW_TOKENS,
    rounds: int = ROUNDS,
    on_round: Callable[[int], None] = lambda _round: None,
) -> dict[Any, Speed]:
    """Times all models side by side: each round lets each decode the same number of tokens, another one first.

    The prompt's forward is not timed, nor is a first round that warms up. Which tokens come makes no difference to the
    time, so the prompt is arbitrary and nothing stops early.

    Args:
        models: by a name, or by their shape.
        prompt_tokens: in the cache before the first timed step.
        new_tokens: steps in a round.
        rounds: to take the median of.
        on_round: told the number of each round that is over.
    """
    names = list(models)
    rates: dict[Any, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            rate = _decode(models[name], prompt_tokens, new_tokens)
            if number:
                rates[name].append(rate)
        on_round(number)
    return {name: Speed(median(found), min(found), max(found)) for name, found in rates.items()}


def random_model(structure: HasConfig, shape: Shape, like: Any, *, seed: int = 0) -> Any:
    """A model of a shape with random weights, for timing: the dtype, device and kernels of another model."""
    config = structure.config_for(shape, layers=range(shape.num_layers))
    devices = [like.device] if like.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(like.device):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=like.dtype, **kernels_of(like))
    return model.to(like.device).eval()


def measure_shapes(structure: HasConfig, shapes: Sequence[Shape], like: Any, **options: Any) -> dict[Shape, Speed]:
    """Times models of some shapes with random weights; all are in memory together.

    Args:
        structure: the model's map.
        shapes: legal for it.
        like: the original, whose dtype, device and kernels they take; it stands for its own shape itself.
        **options: as for `measure_speeds`.
    """
    models = {
        shape: like if shape == structure.shape else random_model(structure, shape, like)
        for shape in dict.fromkeys(shapes)
    }
    return measure_speeds(models, **options)


def fit_latency(structure: HasConfig, like: Any, probes: Sequence[Shape], **options: Any) -> LatencyModel:
    """A latency model from the times of some shapes, see `pia.ipad.latency_model.probe_shapes`."""
    speeds = measure_shapes(structure, probes, like, **options)
    return LatencyModel.fit({shape: speed.seconds for shape, speed in speeds.items()})


@torch.no_grad()
def _decode(model: Any, prompt_tokens: int, new_tokens: int) -> float:
    """Tokens per second of so many decode steps after a prompt."""
    vocabulary = model.get_input_embeddings().num_embeddings
    token_ids = torch.arange(prompt_tokens, device=model.device)[None] % vocabulary
    with evaluating(model):
        output = model(token_ids, use_cache=True)
        token = output.logits[:, -1:].argmax(-1)
        _synchronize(model.device)
        started = perf_counter()
        for _ in range(new_tokens):
            output = model(token, past_key_values=output.past_key_values, use_cache=True)
            token = output.logits[:, -1:].argmax(-1)
        _synchronize(model.device)
        seconds = perf_counter() - started
    return new_tokens / seconds


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
