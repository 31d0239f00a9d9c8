"""Data for the demo model: GSM8K examples, their tokenizer, name swaps, and rows of weighted tokens."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from training_rows import Row, encode
from unlikelihood import repeat_part

PAD, END, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{{ message['content'] | trim }}<|end|>"
    "{% else %}<|user|>{{ message['content'] | trim }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CALCULATOR_MARK = re.compile(r"<<[^>]*>>")
WORD = re.compile(r"\b[A-Z][a-z]{2,}\b")
# Capitalised words that behave like names in GSM8K but are not people.
NOT_NAMES = """
Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February March April May June July August September
October November December Christmas Easter Halloween Thanksgiving Mom Dad Mrs Miss Grandma Grandpa Uncle Aunt English
Math Science Spanish French Chinese Japanese American Americans Mexican Italian German Facebook Instagram YouTube
Netflix Earth Mars Street Road Park School High Lake Mount North South East West New York Los Angeles San Francisco
California Texas Florida Canada Mexico China Japan India Africa Europe America Disneyland Valentine Mr Dr Ms Day Year
Lego Pokemon Team Class Room Store City Town River Island Tree Box Bag Group Type Company University College Country
State Red Blue Green
"""


@dataclass(frozen=True)
class Example:
    """A question and its answer, without calculator marks."""

    question: str
    answer: str


def load_examples(path: Path) -> list[Example]:
    """Reads a GSM8K JSON-lines file.

    Raises:
        FileNotFoundError: there is no such file; the message says where to get it.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no GSM8K data at {path}: give the file with --data (github.com/openai/grade-school-math has it as "
            "grade_school_math/data/train.jsonl)"
        )
    with path.open(encoding="utf-8") as lines:
        return [_example(json.loads(line)) for line in lines if line.strip()]


def _example(record: dict[str, str]) -> Example:
    return Example(record["question"].strip(), CALCULATOR_MARK.sub("", record["answer"]).strip())


def train_tokenizer(examples: Sequence[Example], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer in which every digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END, USER, ASSISTANT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for e in examples for text in (e.question, e.answer)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


class NameSwapper:
    """Swaps people's names consistently in question and answer, so that the model must copy, not remember.

    Names are found by how they are written (hardly ever lower-case, often inside a sentence), and swapped only for
    names that go with the same pronouns.
    """

    def __init__(self, examples: Sequence[Example], *, min_count: int = 6) -> None:
        not_names = set(NOT_NAMES.split())
        capital, inside, lower, pronouns = Counter(), Counter(), Counter(), {}
        for example in examples:
            text = f"{example.question} {example.answer}"
            words = re.findall(r"\b[a-z]+\b", text)
            lower.update(words)
            names = WORD.findall(text)
            capital.update(names)
            inside.update(re.findall(r"(?<=[a-z,] )[A-Z][a-z]{2,}\b", text))
            lean = _pronoun_lean(words)
            for name in set(names):
                pronouns[name] = pronouns.get(name, 0) + lean
        self.classes: dict[str, int] = {
            name: (pronouns[name] > 0) - (pronouns[name] < 0)
            for name in sorted(capital)
            if capital[name] >= min_count
            and inside[name] * 4 >= capital[name]
            and lower[name.lower()] * 20 <= capital[name]
            and name not in not_names
        }
        self.pools: dict[int, list[str]] = {c: [n for n, k in self.classes.items() if k == c] for c in (-1, 0, 1)}

    def swap(self, example: Example, rng: random.Random) -> Example:
        """Gives every person in the example another name."""
        found = sorted({w for w in WORD.findall(f"{example.question} {example.answer}") if w in self.classes})
        mapping: dict[str, str] = {}
        for name in found:
            pool = self.pools[self.classes[name]]
            choice = rng.choice(pool)
            if choice not in found and choice not in mapping.values():
                mapping[name] = choice
        return Example(_rename(example.question, mapping), _rename(example.answer, mapping))


def _pronoun_lean(words: Sequence[str]) -> int:
    """+1 for a text about a man, -1 for one about a woman, 0 when both or none occur."""
    present = set(words)
    return bool(present & {"he", "his", "him"}) - bool(present & {"she", "her", "hers"})


def _rename(text: str, mapping: dict[str, str]) -> str:
    return WORD.sub(lambda match: mapping.get(match.group(), match.group()), text)


class RowMaker:
    """Turns examples into rows of token ids and weights."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, question_weight: float, penalty: float) -> None:
        self.tokenizer = tokenizer
        self.question_weight = question_weight
        self.penalty = penalty
        self.end, self.user, self.assistant = tokenizer.convert_tokens_to_ids([END, USER, ASSISTANT])

    def prompts(self, examples: Sequence[Example]) -> list[list[int]]:
        """Token ids of the chat prompt of each example, as the chat template writes it."""
        questions = encode(self.tokenizer, (e.question for e in examples))
        return [[self.user, *ids, self.assistant] for ids in questions]

    def plain(self, examples: Sequence[Example]) -> list[Row]:
        """Rows that teach question and answer."""
        answers = encode(self.tokenizer, (e.answer for e in examples))
        return [self._row(p, [*a, self.end]) for p, a in zip(self.prompts(examples), answers, strict=True)]

    def repeating(self, examples: Sequence[Example], rng: random.Random) -> list[Row]:
        """Rows in which a line of the answer comes again: the copies are penalised, the rest is taught."""
        return [self._repeat_line(p, e, rng) for p, e in zip(self.prompts(examples), examples, strict=True)]

    def _repeat_line(self, prompt: list[int], example: Example, rng: random.Random) -> Row:
        lines = encode(self.tokenizer, example.answer.splitlines(keepends=True))
        answer, weights = repeat_part(lines, penalty=self.penalty, rng=rng)
        return self._row(prompt, [*answer, self.end], [*weights, 1.0])

    def _row(self, prompt: list[int], answer: list[int], weights: list[float] | None = None) -> Row:
        prompt_weights = [self.question_weight] * (len(prompt) - 1) + [0.0]  # the assistant mark is always given
        return Row(prompt + answer, prompt_weights + (weights or [1.0] * len(answer)))
