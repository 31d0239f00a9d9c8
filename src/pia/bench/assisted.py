"""Chooses the draft model of Transformers' assisted generation, or says why there is none."""

from __future__ import annotations

from typing import Any

from pia.bench.contenders import Stock
from pia.drafting.fingerprint import tokenizer_fingerprint

NAME = "assisted"


def assisted_by(assistant: Any, assistant_tokenizer: Any, tokenizer: Any) -> Stock:
    """Assisted generation with a draft model; one of another tokenizer drafts through text.

    Args:
        assistant: the draft model.
        assistant_tokenizer: its tokenizer.
        tokenizer: of the model that is measured.
    """
    extra: dict[str, Any] = {"assistant_model": assistant}
    if tokenizer_fingerprint(assistant_tokenizer) != tokenizer_fingerprint(tokenizer):
        extra |= {"tokenizer": tokenizer, "assistant_tokenizer": assistant_tokenizer}
    return Stock(NAME, **extra)


def demo_refusal(tokenizer: Any, demo_tokenizer: Any, *, is_demo: bool) -> str | None:
    """Why the embedded demo model cannot assist; `None` where it can."""
    if is_demo:
        return "the model is the demo model itself, which cannot be its own draft model; name one with --assistant"
    if tokenizer_fingerprint(tokenizer) != tokenizer_fingerprint(demo_tokenizer):
        return "the demo model has another tokenizer; name a draft model with --assistant"
    return None
