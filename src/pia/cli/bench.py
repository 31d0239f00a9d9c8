"""Measure latency, single or in batches: generate, prompt lookup, PIA without drafts, PIA cold and PIA warmed.

All answer the same prompts in turns. Prints a table and, as the very last line, one JSON object.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from pia.cli import options
from pia.errors import PromptError

HELP = "compare generate, prompt lookup and PIA on prompts of yours"
DEFAULT_TEMPERATURE = 0.8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `pia bench`."""
    options.add_model(parser, dtype="float32")
    files = parser.add_argument_group("prompts")
    files.add_argument("--prompts", metavar="FILE", help="text, one a line, or JSON lines (demo: its 100 questions)")
    files.add_argument("--warm", metavar="FILE", help="what the warmed cache knows: text, JSON lines or .pia")
    files.add_argument("--field", metavar="NAME", help="field of a JSON line of --warm that holds the text")
    files.add_argument("--questions", "--limit", type=options.positive, metavar="N", help="only the first N prompts")
    files.add_argument("--chat", action="store_true", help="text prompts are questions for the chat template")
    options.add_length(parser, 256)
    parser.add_argument("--rounds", type=options.positive, default=3, metavar="R", help="medians over R rounds (3)")
    parser.add_argument(
        "--batch",
        type=options.positive,
        default=1,
        metavar="B",
        help="prompts a call (1); prompt lookup takes one only",
    )
    options.add_budget(parser)
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    parser.add_argument(
        "--sample", action="store_true", help=f"sample at {DEFAULT_TEMPERATURE}, against PIA without drafts"
    )
    options.add_sampling(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs `pia bench`."""
    from pia.cli.figures import measure_with_progress, show_report
    from pia.cli.loading import load_model

    prompts = _read_prompts(args)
    model, tokenizer = load_model(args.model, args.dtype, args.device)
    from pia.bench.machine import describe_machine

    machine = describe_machine(model)
    report = measure_with_progress(
        model,
        [_encode(model, tokenizer, prompt, args) for prompt in prompts],
        _cache_maker(args, tokenizer),
        rounds=args.rounds,
        batch_size=args.batch,
        lookahead_options={"budget": args.budget, "max_depth": args.max_depth},
        **_decoding(args),
    )
    show_report(report, machine, json_only=args.json)
    return 0


def _decoding(args: argparse.Namespace) -> dict[str, Any]:
    """How to choose tokens, and whose answers are the reference."""
    sampling = options.sampling_kwargs(args)
    if args.sample and not sampling["do_sample"]:
        sampling = {"do_sample": True, "temperature": DEFAULT_TEMPERATURE}
    reference = "plain" if sampling["do_sample"] else "generate"
    return {"reference": reference, "seed": args.seed or 0, "max_new_tokens": args.max_new_tokens, **sampling}


def _read_prompts(args: argparse.Namespace) -> list[Any]:
    if args.prompts is None and args.model != "demo":
        raise PromptError(f"give the prompts to measure on: pia bench {args.model} --prompts FILE")
    if args.prompts is None:
        return demo_prompts(args.questions)
    from pia.cli.files import read_prompts

    prompts = read_prompts(args.prompts, args.questions)
    if args.chat:
        return [[{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt for prompt in prompts]
    return prompts


def demo_prompts(limit: int | None) -> list[Any]:
    """The demo model's questions as chat messages.

    Raises:
        PromptError: there are not so many.
    """
    from pia.assets import demo_questions

    questions = demo_questions()
    if limit is not None and limit > len(questions):
        raise PromptError(f"the demo has {len(questions)} questions, not {limit}; ask for fewer")
    return [[{"role": "user", "content": question["question"]}] for question in questions[:limit]]


def _encode(model: Any, tokenizer: Any, prompt: Any, args: argparse.Namespace) -> Any:
    """Token ids `[1, length]` of a prompt that leaves room for its answer."""
    from pia.models.positions import context_length
    from pia.text import encode

    if not isinstance(prompt, str) and not getattr(tokenizer, "chat_template", None):
        if len(prompt) > 1:
            raise PromptError(f"{args.model} has no chat template, so it cannot answer messages; give prompts instead")
        prompt = prompt[0]["content"]
    ids = encode(tokenizer, prompt).to(model.device)
    limit = context_length(model)
    if limit is not None and ids.shape[1] + args.max_new_tokens > limit:
        raise PromptError(
            f"a prompt of {ids.shape[1]} tokens and an answer of {args.max_new_tokens} "
            f"do not fit the model's context of {limit}; shorten the prompt or lower --max-new-tokens"
        )
    return ids


def _cache_maker(args: argparse.Namespace, tokenizer: Any) -> Callable[[], Any]:
    """Makes copies of the warmed cache, one for each round."""
    from pia.drafting.cache import DraftCache

    warmed = _warmed_cache(args, tokenizer)

    def new_cache() -> DraftCache:
        cache = DraftCache()
        cache.merge(warmed)
        return cache

    return new_cache


def _warmed_cache(args: argparse.Namespace, tokenizer: Any) -> Any:
    """What `pia` knows before the first prompt: a saved cache, texts, the demo model's cache, or nothing."""
    from pia.cli.files import read_texts
    from pia.drafting.cache import DraftCache
    from pia.drafting.cache_file import MAGIC
    from pia.lookahead import Lookahead

    path = args.warm
    if path is None and args.model != "demo":
        return DraftCache()
    if path is None:
        from pia.assets import demo_cache_path

        path = str(demo_cache_path())
    with open(path, "rb") as file:
        is_cache = file.read(len(MAGIC)) == MAGIC
    lookahead = Lookahead(DraftCache.load(path) if is_cache else None)
    lookahead.bind(tokenizer)
    if not is_cache:
        lookahead.warm(tokenizer, read_texts(path, field=args.field))
    return lookahead.cache
