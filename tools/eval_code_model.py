"""Measures the code model on prompts like HumanEval's: endings, lengths, repetition, and whether it writes Python.

    python tools/eval_code_model.py build/code_model --prompts HumanEval.jsonl.gz

The answers are decoded greedily in float32. Whether they are right is not asked: they hardly ever are. The very last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import ast
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo_generate import generate_answers
from pia.cli.files import read_prompts
from repetition import repeated_share
from training_rows import encode


@dataclass(frozen=True)
class Figures:
    """What matters for measuring drafts: a model that loops flatters them."""

    num_prompts: int
    num_ended: int
    num_parsed: int
    num_tokens: int
    repeated_share: float
    num_distinct: int
    max_same: int
    max_new_tokens: int


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("--prompts", required=True, help="JSON lines with `prompt`, packed or not, such as HumanEval's")
    parser.add_argument("--limit", type=int, help="only the first so many prompts")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8, help="prompts decoded together")
    parser.add_argument("--show", type=int, default=0, help="print so many of the answers")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: as torch sees fit)")
    return parser.parse_args(argv)


def is_python(code: str) -> bool:
    """Whether a text is a Python module."""
    try:
        ast.parse(code)
    except (SyntaxError, ValueError):
        return False
    return True


def figures_of(
    prompts: Sequence[str], answers: Sequence[list[int]], texts: Sequence[str], *, end: int, max_new_tokens: int
) -> Figures:
    """Counts what the answers are like."""
    same = Counter(texts)
    return Figures(
        num_prompts=len(prompts),
        num_ended=sum(ids[-1] == end for ids in answers),
        num_parsed=sum(is_python(prompt + text) for prompt, text in zip(prompts, texts, strict=True)),
        num_tokens=sum(map(len, answers)),
        repeated_share=repeated_share(answers),
        num_distinct=len(same),
        max_same=max(same.values()),
        max_new_tokens=max_new_tokens,
    )


def show(figures: Figures, console: Console) -> None:
    """Prints the figures as a table."""
    table = Table("figure", "value", title="code model, greedy decoding in float32")
    table.add_row("answers that end by themselves", f"{figures.num_ended} of {figures.num_prompts}")
    table.add_row("answers that are Python, behind their prompts", f"{figures.num_parsed} of {figures.num_prompts}")
    table.add_row("different answers", f"{figures.num_distinct} of {figures.num_prompts}")
    table.add_row("prompts that got the commonest answer", f"{figures.max_same}")
    table.add_row("generated tokens in a repeated 8-gram", f"{100 * figures.repeated_share:.1f} %")
    table.add_row("tokens in an answer (mean)", f"{figures.num_tokens / figures.num_prompts:.0f}")
    console.print(table)


def main(argv: list[str] | None = None) -> int:
    """Measures one model folder."""
    args = parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    prompts = read_prompts(args.prompts, args.limit)
    ids = encode(tokenizer, prompts)
    answers = generate_answers(model, ids, max_new_tokens=args.max_new_tokens, batch_size=args.batch_size)
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    console = Console()
    for prompt, text in list(zip(prompts, texts, strict=True))[: args.show]:
        console.print(prompt, end="", style="dim", markup=False, highlight=False)
        console.print(text, markup=False, highlight=False)
        console.rule()
    figures = figures_of(prompts, answers, texts, end=tokenizer.eos_token_id, max_new_tokens=args.max_new_tokens)
    show(figures, console)
    print(json.dumps(asdict(figures)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
