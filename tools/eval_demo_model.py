"""Measures the demo model on GSM8K's test set: endings, repetition, held-out perplexity, right answers.

    python tools/eval_demo_model.py src/pia/assets/demo_model

The answers are decoded greedily in float32. The very last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from demo_data import Example, RowMaker, load_examples
from demo_generate import generate_answers
from repetition import repeated_share
from training_rows import encode

REPO = Path(__file__).resolve().parents[1]
DEFAULT_DATA = REPO.parent / "shared" / "data" / "gsm8k_test.jsonl"
FINAL_NUMBER = re.compile(r"####\s*\$?(-?[\d,.]*\d)")


@dataclass(frozen=True)
class Figures:
    """What the model card states."""

    num_questions: int
    num_ended: int
    num_right: int
    num_tokens: int
    repeated_share: float
    human_repeated_share: float
    answer_perplexity: float
    num_perplexity_answers: int
    max_new_tokens: int


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="GSM8K test file (JSON lines)")
    parser.add_argument("--num-questions", type=int, default=100, help="answer the first so many questions")
    parser.add_argument("--max-new-tokens", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=1, help="questions decoded together")
    parser.add_argument("--show", type=int, default=0, help="print so many of the answers")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: as torch sees fit)")
    return parser.parse_args(argv)


def is_right(answer: str, truth: str) -> bool:
    """Does the answer state the same final number as the truth?"""
    stated, true = FINAL_NUMBER.search(answer), FINAL_NUMBER.search(truth)
    return bool(stated and true) and stated.group(1).replace(",", "") == true.group(1).replace(",", "")


@torch.inference_mode()
def answer_perplexity(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example]
) -> float:
    """Perplexity per token of the human answers, end token included, given their questions."""
    rows = RowMaker(tokenizer, question_weight=0.0, penalty=0.0).plain(examples)
    total, count = 0.0, 0
    for row in rows:
        logits = model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0, :-1]  # [length - 1, vocab]
        nll = functional.cross_entropy(logits.float(), torch.tensor(row.ids[1:]), reduction="none")
        is_answer = torch.tensor(row.weights[1:]) == 1
        total, count = total + float(nll[is_answer].sum()), count + int(is_answer.sum())
    return math.exp(total / count)


def measure(args: argparse.Namespace) -> tuple[Figures, list[str]]:
    """Decodes and counts; also gives the answers as text."""
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    examples = load_examples(args.data)
    asked = examples[: args.num_questions]
    prompts = RowMaker(tokenizer, question_weight=0.0, penalty=0.0).prompts(asked)
    answers = generate_answers(model, prompts, max_new_tokens=args.max_new_tokens, batch_size=args.batch_size)
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    human = [[*ids, tokenizer.eos_token_id] for ids in encode(tokenizer, (e.answer for e in asked))]
    figures = Figures(
        num_questions=len(asked),
        num_ended=sum(ids[-1] == tokenizer.eos_token_id for ids in answers),
        num_right=sum(is_right(text, e.answer) for text, e in zip(texts, asked, strict=True)),
        num_tokens=sum(map(len, answers)),
        repeated_share=repeated_share(answers),
        human_repeated_share=repeated_share(human),
        answer_perplexity=answer_perplexity(model, tokenizer, examples),
        num_perplexity_answers=len(examples),
        max_new_tokens=args.max_new_tokens,
    )
    return figures, texts


def show(figures: Figures, console: Console) -> None:
    """Prints the table of the model card."""
    table = Table("figure", "value", title="demo model, greedy decoding in float32")
    table.add_row("answers that end by themselves", f"{figures.num_ended} of {figures.num_questions}")
    table.add_row("generated tokens in a repeated 8-gram", f"{100 * figures.repeated_share:.1f} %")
    table.add_row("the same in the human answers", f"{100 * figures.human_repeated_share:.1f} %")
    table.add_row("perplexity of the human test answers", f"{figures.answer_perplexity:.2f}")
    table.add_row("right final numbers", f"{figures.num_right} of {figures.num_questions}")
    table.add_row("tokens in an answer (mean)", f"{figures.num_tokens / figures.num_questions:.0f}")
    console.print(table)


def main(argv: list[str] | None = None) -> int:
    """Measures one model folder."""
    args = parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    figures, texts = measure(args)
    console = Console()
    for text in texts[: args.show]:
        console.print(text, markup=False)
        console.rule()
    show(figures, console)
    print(json.dumps(asdict(figures)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
