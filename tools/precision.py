"""Measures on the embedded model how often rounding changes a token, and what exact decoding costs.

    python tools/precision.py [--questions 30] [--rounds 3] [--threads 1]

The answers to GSM8K's first test questions, as plain decoding gives them, are fed again in several ways; at every token
each way says what it would have chosen. Then whole answers are timed, the ways taking turns. Docs: docs/precision.md.
The very last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from time import process_time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import LogitsProcessor

from pia.assets import demo_cache_path, demo_questions, load_demo
from pia.bench.contenders import Accelerated, Contender, Stock
from pia.bench.machine import describe_machine
from pia.decoding.stats import Stats
from pia.drafting.cache import DraftCache
from pia.lookahead import Lookahead
from pia.text import encode

BUDGET = 15
"""Draft nodes a step: forwards of 16 tokens."""


@dataclass(frozen=True)
class Difference:
    """Two ways of decoding the same tokens."""

    one: str
    other: str
    num_tokens: int
    flipped: int
    """Tokens that the two would have chosen differently."""
    other_bits: int
    """Tokens with any logit that differs in a bit."""
    largest: float
    """Largest difference of a logit."""


class Dictation(LogitsProcessor):  # type: ignore[misc]
    """Makes a decoding loop write a given text, and notes what it would have written.

    Args:
        token_ids: the text.
        start: length of the prompt.
    """

    def __init__(self, token_ids: Sequence[int], start: int) -> None:
        self._ids, self._start = token_ids, start
        self.logits: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.logits.append(scores[0].clone())
        forced = torch.full_like(scores, -torch.inf)
        forced[0, self._ids[input_ids.shape[1] - self._start]] = 0.0
        return forced


def warmed() -> DraftCache:
    """The draft cache that comes with the model."""
    return DraftCache.load(demo_cache_path())


WAYS: dict[str, Callable[[], dict[str, Any]]] = {
    "generate, DynamicCache": dict,
    "generate, StaticCache": lambda: {"cache_implementation": "static"},
    "plain": lambda: {"custom_generate": Lookahead(budget=0)},
    "tree": lambda: {"custom_generate": Lookahead(warmed(), budget=BUDGET)},
    "chain": lambda: {"custom_generate": Lookahead(warmed(), budget=BUDGET, shape="chain")},
    "exact plain": lambda: {"custom_generate": Lookahead(budget=0, exact=True)},
    "exact drafted": lambda: {"custom_generate": Lookahead(warmed(), budget=BUDGET, exact=True)},
}
PAIRS = (
    ("generate, DynamicCache", "generate, StaticCache"),
    ("generate, DynamicCache", "plain"),
    ("plain", "tree"),
    ("plain", "chain"),
    ("exact plain", "exact drafted"),
)


def dictated(model: Any, prompt: torch.Tensor, answer: list[int], arguments: dict[str, Any]) -> torch.Tensor:
    """Logits `[tokens, vocab]` that a way of decoding has at each token of the answer."""
    dictation = Dictation(answer, prompt.shape[1])
    generate(model, prompt, len(answer), logits_processor=[dictation], eos_token_id=None, **arguments)
    return torch.stack(dictation.logits)


def generate(model: Any, prompt: torch.Tensor, num_tokens: int, **arguments: Any) -> list[int]:
    """Greedy continuation of a prompt `[1, length]`."""
    out = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=num_tokens, do_sample=False, **arguments
    )
    return out[0, prompt.shape[1] :].tolist()  # type: ignore[no-any-return]


def differences(model: Any, prompts: Sequence[torch.Tensor], num_tokens: int) -> Iterator[Difference]:
    """How the ways differ on the same answers, pair by pair."""
    answers = [generate(model, prompt, num_tokens) for prompt in prompts]
    logits = {}
    for name, arguments in WAYS.items():
        options = arguments()
        parts = [dictated(model, *text, options) for text in zip(prompts, answers, strict=True)]
        logits[name] = torch.cat(parts)
    for one, other in PAIRS:
        a, b = logits[one], logits[other]
        flipped = int((a.argmax(-1) != b.argmax(-1)).sum())
        yield Difference(one, other, len(a), flipped, int((a != b).any(-1).sum()), float((a - b).abs().max()))


@dataclass
class Timing:
    """All answers of one way of decoding."""

    answers: list[list[list[int]]] = field(default_factory=list)
    """Tokens, by round and prompt."""
    seconds: list[float] = field(default_factory=list)
    """CPU seconds by round."""
    stats: list[Stats] = field(default_factory=list)

    def speed(self, number: int) -> float:
        """Tokens per CPU second in a round."""
        return sum(map(len, self.answers[number])) / self.seconds[number]


def timings(model: Any, prompts: Sequence[torch.Tensor], num_tokens: int, rounds: int) -> dict[str, Timing]:
    """Times whole answers, ordinary and exact; the ways take turns, prompt by prompt.

    In CPU time, which other work on the machine hardly changes; that is the time of one thread.
    """
    contenders: list[Contender] = [
        Stock("generate"),
        Accelerated("plain", DraftCache, budget=0),
        Accelerated("drafted", warmed),
        Accelerated("exact plain", DraftCache, budget=0, exact=True),
        Accelerated("exact drafted", warmed, exact=True),
    ]
    found = {contender.name: Timing() for contender in contenders}
    options = {"max_new_tokens": num_tokens, "do_sample": False}
    for number in range(rounds):
        for contender in contenders:
            contender.reset(model, prompts[0])
            found[contender.name].answers.append([])
            found[contender.name].seconds.append(0.0)
        for index, prompt in enumerate(prompts):
            for contender in contenders[index % 5 :] + contenders[: index % 5]:
                started = process_time()
                run = contender.run(model, prompt, options)
                timing = found[contender.name]
                timing.seconds[number] += process_time() - started
                timing.answers[number].append(run.token_ids)
                timing.stats += [run.stats] if run.stats else []
    return found


def speeds(found: dict[str, Timing]) -> dict[str, dict[str, Any]]:
    """Medians over the rounds, and how many answers drafts left as they were."""
    figures: dict[str, dict[str, Any]] = {}
    for name, timing in found.items():
        base = "exact plain" if name.startswith("exact") else "plain"
        rounds = range(len(timing.seconds))
        stats = Stats.total(timing.stats)
        pairs = zip(timing.answers[0], found[base].answers[0], strict=True)
        figures[name] = {
            "tokens_per_s": round(median(map(timing.speed, rounds)), 1),
            "over_plain": round(median(timing.speed(n) / found["plain"].speed(n) for n in rounds), 3),
            "edl": round(stats.edl, 2),
            "nodes": round(stats.num_drafted / max(1, stats.num_steps), 1),
            "same_as": base,
            "same": sum(one == other for one, other in pairs),
        }
    return figures


def show(console: Console, dtype: str, pairs: Sequence[Difference], timed: dict[str, dict[str, Any]]) -> None:
    """Prints two tables."""
    table = Table("one way", "another", "tokens", "chosen differently", "other bits", "largest difference", title=dtype)
    for pair in pairs:
        share = f"{pair.flipped} ({100 * pair.flipped / pair.num_tokens:.2f} %)"
        bits = f"{100 * pair.other_bits / pair.num_tokens:.1f} %"
        table.add_row(pair.one, pair.other, str(pair.num_tokens), share, bits, f"{pair.largest:.2g}")
    if pairs:
        console.print(table)
    table = Table(
        "", "tokens/CPU s", "against plain", "tokens a forward", "drafted a forward", "same answers", title=dtype
    )
    for name, row in timed.items():
        same = f"{row['same']} as {row['same_as']}"
        table.add_row(name, str(row["tokens_per_s"]), str(row["over_plain"]), str(row["edl"]), str(row["nodes"]), same)
    if timed:
        console.print(table)


def main() -> int:
    """Measures every dtype."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=32, help="answers compared; 0 compares none")
    parser.add_argument("--timed", type=int, default=12, help="answers timed")
    parser.add_argument("--tokens", type=int, default=160, help="most tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3, help="of timing; 0 times none")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtypes", default="float32,bfloat16,float16")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, tokenizer = load_demo()
    asked = demo_questions(max(args.questions, args.timed))
    prompts = [encode(tokenizer, [{"role": "user", "content": question["question"]}]) for question in asked]
    figures: dict[str, Any] = {}
    for dtype in args.dtypes.split(","):
        model.to(getattr(torch, dtype))
        pairs = list(differences(model, prompts[: args.questions], args.tokens)) if args.questions else []
        timed = speeds(timings(model, prompts[: args.timed], args.tokens, args.rounds)) if args.rounds else {}
        show(Console(), dtype, pairs, timed)
        figures[dtype] = {"differences": [asdict(pair) for pair in pairs], "speeds": timed}
    print(json.dumps({**figures, "machine": describe_machine(model)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
