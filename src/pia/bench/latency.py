"""Latency of requests: contenders answer the same prompts in turns, so that a busy machine is unfair to none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from pia.bench.contenders import Contender, Run
from pia.bench.report import Report


def measure(
    model: Any,
    prompts: Sequence[torch.Tensor],
    contenders: Sequence[Contender],
    *,
    rounds: int = 3,
    reference: str = "generate",
    batch_size: int = 1,
    seed: int = 0,
    on_answer: Callable[[int, str], None] = lambda _round, _name: None,
    **options: Any,
) -> Report:
    """Lets all contenders answer all prompts, some rounds over.

    Each round starts every contender afresh: what it learns from a prompt helps with the later ones of the same round,
    and no round sees its own answers again. The order of the contenders rotates from prompt to prompt.

    Args:
        model: a causal language model that is not accelerated.
        prompts: token ids, `[1, length]` each.
        contenders: ways to answer.
        rounds: how often; figures are medians over the rounds.
        reference: name of the contender whose answers all others must equal.
        batch_size: prompts a call, neighbours together.
        seed: random numbers of call i start from `seed + i`, for every contender.
        on_answer: told the round and the contender's name after each call.
        **options: of `generate`, the same for all.
    """
    runs: dict[str, list[list[Run]]] = {contender.name: [] for contender in contenders}
    for number in range(rounds):
        for contender in contenders:
            contender.reset(model, prompts[0])
            runs[contender.name].append([])
        batches = [prompts[start : start + batch_size] for start in range(0, len(prompts), batch_size)]
        for index, contender in _turns(len(batches), contenders):
            torch.manual_seed(seed + index)
            runs[contender.name][-1] += contender.run(model, batches[index], options)
            on_answer(number, contender.name)
    return Report(runs, reference, batch_size)


def _turns(num_calls: int, contenders: Sequence[Contender]) -> Iterator[tuple[int, Contender]]:
    """Call by call, each time another contender first."""
    for index in range(num_calls):
        first = index % len(contenders)
        for contender in [*contenders[first:], *contenders[:first]]:
            yield index, contender
