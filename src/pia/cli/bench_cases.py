"""The cases of `pia bench`: what is measured, one after the other."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pia.cli.bench_prompts import cache_maker, encode_prompt, read_prompt_sets

if TYPE_CHECKING:
    from pia.bench.contenders import Stock
    from pia.bench.workload import Workload


@dataclass(frozen=True)
class BenchCase:
    """A model on a prompt set."""

    workload: Workload
    new_cache: Callable[[], Any]
    """Makes the warmed draft cache."""
    model_name: str
    prompt_set: str
    label: str | None = None
    """Of a replay: what is real in it and what is not."""
    assisted: Stock | None = None
    missing: dict[str, str] = field(default_factory=dict)
    """Contenders that are not there, and why."""


def model_cases(args: argparse.Namespace, decoding: dict[str, Any]) -> Iterator[BenchCase]:
    """The model of the command line on each of its prompt sets.

    Args:
        args: the command line.
        decoding: arguments of `generate` that say how tokens are chosen.
    """
    from pia.bench.workload import Workload
    from pia.cli.loading import load_model

    sets = read_prompt_sets(args)  # before the model is loaded, which takes longer
    model, tokenizer = load_model(args.model, args.dtype, args.device)
    encoded = {name: [encode_prompt(model, tokenizer, prompt, args) for prompt in sets[name]] for name in sets}
    new_cache = cache_maker(args, tokenizer)
    assisted, missing = _assisted(args, model, tokenizer)
    for name, prompts in encoded.items():
        workload = Workload(model, prompts, [args.max_new_tokens] * len(prompts), decoding)
        yield BenchCase(workload, new_cache, _short_name(args.model), name, assisted=assisted, missing=missing)


def _assisted(args: argparse.Namespace, model: Any, tokenizer: Any) -> tuple[Stock | None, dict[str, str]]:
    """Assisted generation by the draft model of the command line, or by the demo model where it can be one."""
    from pia.bench.assisted import NAME, assisted_by, demo_refusal
    from pia.cli.loading import load_model

    missing = {} if args.batch == 1 else {"prompt_lookup": "it takes one prompt at a time"}
    if args.batch > 1:
        return None, {**missing, NAME: "it takes one prompt at a time"}
    name = args.assistant
    if name is None:
        if (refusal := _demo_refusal(args, tokenizer, demo_refusal)) is not None:
            return None, {**missing, NAME: refusal}
        name = "demo"
    assistant, assistant_tokenizer = load_model(name, args.dtype, str(model.device))
    return assisted_by(assistant, assistant_tokenizer, tokenizer), missing


def _demo_refusal(args: argparse.Namespace, tokenizer: Any, refusal: Callable[..., str | None]) -> str | None:
    if args.model == "demo":
        return refusal(tokenizer, tokenizer, is_demo=True)
    try:
        from pia.assets import demo_model_path

        path = demo_model_path()
    except FileNotFoundError:
        return "this installation came without the demo model; name a draft model with --assistant"
    from transformers import AutoTokenizer

    return refusal(tokenizer, AutoTokenizer.from_pretrained(path), is_demo=False)


def _short_name(model: str) -> str:
    """A model's name, or the last part of its folder's."""
    return "demo" if model == "demo" else Path(model).name
