"""What `pia bench` measures on: prompt sets, and what the warmed draft cache knows beforehand."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pia.errors import PromptError, UnsupportedOptionError

DEMO_SET = "gsm8k"
"""The prompt set that comes with the demo model."""


def read_prompt_sets(args: argparse.Namespace) -> dict[str, list[Any]]:
    """Prompts by the name of their set: texts or chat messages.

    Raises:
        PromptError: there are none, or not so many.
        UnsupportedOptionError: two sets have one name.
    """
    if not args.prompts:
        if args.model != "demo":
            raise PromptError(f"give the prompts to measure on: pia bench {args.model} --prompts FILE")
        return {DEMO_SET: demo_prompts(args.questions)}
    sets: dict[str, list[Any]] = {}
    for name, path in map(_name_and_path, args.prompts):
        if name in sets:
            raise UnsupportedOptionError(f"two prompt sets are called {name!r}; name them: --prompts NAME=FILE")
        sets[name] = _read_prompts(path, args)
    return sets


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


def encode_prompt(model: Any, tokenizer: Any, prompt: Any, args: argparse.Namespace) -> Any:
    """Token ids `[1, length]` of a prompt that leaves room for its answer.

    Raises:
        PromptError: it leaves none, or the model cannot be asked so.
    """
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


def cache_maker(args: argparse.Namespace, tokenizer: Any) -> Callable[[], Any]:
    """Makes copies of the warmed cache, one for each round."""
    from pia.drafting.cache import DraftCache

    warmed = _warmed_cache(args, tokenizer)

    def new_cache() -> DraftCache:
        cache = DraftCache()
        cache.merge(warmed)
        return cache

    return new_cache


def _name_and_path(given: str) -> tuple[str, str]:
    """Reads FILE or NAME=FILE; a file's name may hold "=" itself."""
    name, separator, path = given.partition("=")
    if separator and name and path and not Path(given).exists():
        return name, path
    return Path(given.removesuffix(".gz")).stem, given


def _read_prompts(path: str, args: argparse.Namespace) -> list[Any]:
    from pia.cli.files import read_prompts

    prompts = read_prompts(path, args.questions)
    if args.chat:
        return [[{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt for prompt in prompts]
    return prompts


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
