"""Latency of requests: contenders answer the same prompts in turns, so that a busy machine is unfair to none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter

import torch

from pia.bench.contenders import Contender, Run
from pia.bench.report import Report
from pia.bench.workload import Workload

MAX_FIRST_TOKENS = 20
"""Prompts for which the time to the first token is taken."""


def measure(
    workload: Workload,
    contenders: Sequence[Contender],
    *,
    rounds: int = 3,
    reference: str = "generate",
    batch_size: int = 1,
    seed: int = 0,
    on_answer: Callable[[int, str], None] = lambda _round, _name: None,
) -> Report:
    """Lets all contenders answer all prompts, some rounds over.

    Each round starts every contender afresh: what it learns from a prompt helps with the later ones of the same round,
    and no round sees its own answers again. The order of the contenders rotates from prompt to prompt.

    Args:
        workload: the model and its prompts.
        contenders: ways to answer.
        rounds: how often; figures are medians over the rounds.
        reference: name of the contender whose answers all others must equal.
        batch_size: prompts a call, neighbours together.
        seed: random numbers of call i start from `seed + i`, for every contender.
        on_answer: told the round and the contender's name after each call.
    """
    runs: dict[str, list[list[Run]]] = {contender.name: [] for contender in contenders}
    setup_s: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    num_prompts = len(workload.prompts)
    for number in range(rounds):
        for contender in contenders:
            started = perf_counter()
            contender.reset(workload.model, workload.prompts[0])
            setup_s[contender.name].append(perf_counter() - started)
            runs[contender.name].append([])
        batches = [range(start, min(start + batch_size, num_prompts)) for start in range(0, num_prompts, batch_size)]
        for index, contender in _turns(len(batches), contenders):
            torch.manual_seed(seed + index)
            runs[contender.name][-1] += workload.answer(contender, batches[index])
            on_answer(number, contender.name)
    return Report(runs, reference, batch_size, setup_s)


def first_token_times(workload: Workload, contenders: Sequence[Contender]) -> dict[str, list[float]]:
    """Seconds that a call takes which asks for a single token: preparation, prefill, the first choice.

    Contenders take turns and have answered before, so that nothing is set up meanwhile.

    Returns:
        by contender, one time for each of the first prompts.
    """
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for index, contender in _turns(min(MAX_FIRST_TOKENS, len(workload.prompts)), contenders):
        times[contender.name].append(workload.answer(contender, [index], max_new_tokens=1)[0].seconds)
    return times


def _turns(num_calls: int, contenders: Sequence[Contender]) -> Iterator[tuple[int, Contender]]:
    """Call by call, each time another contender first."""
    for index in range(num_calls):
        first = index % len(contenders)
        for contender in [*contenders[first:], *contenders[:first]]:
            yield index, contender
