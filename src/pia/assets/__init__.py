"""What PIA ships to show itself: a small demo model, questions to ask it, and a warm draft cache."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["demo_cache_path", "demo_model_path", "demo_questions", "load_demo", "trace_paths"]

_FOLDER = Path(str(files(__name__)))


def demo_model_path() -> Path:
    """The folder of the demo model, a stock Hugging Face checkpoint.

    Raises:
        FileNotFoundError: this installation came without the model.
    """
    return _existing("demo_model")


def demo_cache_path() -> Path:
    """The draft cache that goes with the demo model, learned from GSM8K training answers.

    Raises:
        FileNotFoundError: this installation came without the cache.
    """
    return _existing("demo_cache.pia")


def demo_questions(n: int | None = None) -> list[dict[str, str]]:
    """The first ``n`` demo questions (all 100 when None), each with the keys ``question`` and ``answer``.

    They are the first 100 of GSM8K's test set; the demo model has seen none of them.

    Raises:
        ValueError: ``n`` is negative, or more than there are.
    """
    with _existing("demo_questions.jsonl").open(encoding="utf-8") as lines:
        questions: list[dict[str, str]] = [json.loads(line) for line in lines]
    if n is not None and not 0 <= n <= len(questions):
        raise ValueError(f"n is {n}: there are {len(questions)} demo questions, ask for 0 to {len(questions)} of them")
    return questions[:n]


def trace_paths() -> list[Path]:
    """Recorded outputs of a larger model on two tasks, for `pia replay`.

    Raises:
        FileNotFoundError: this installation came without them.
    """
    return sorted(_existing("traces").glob("*.npz"))


def load_demo(dtype: torch.dtype | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads the demo model, ready to generate on the CPU, and its tokenizer.

    Args:
        dtype: of the weights; float32 when None, in which equal outputs are easiest to check.

    Raises:
        FileNotFoundError: this installation came without the model.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = demo_model_path()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32 if dtype is None else dtype)
    return model.eval(), AutoTokenizer.from_pretrained(path)


def _existing(name: str) -> Path:
    path = _FOLDER / name
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: reinstall pia, or build it with the scripts in tools/")
    return path
