"""From records to rows of weighted tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from pia.errors import ShrinkError
from pia.ipad.data.records import Chat, Pair, Question, Record, Text
from pia.ipad.data.rows import Row, Rows
from pia.ipad.data.text_pieces import packed, paragraphs


class RowEncoder:
    """Makes training rows.

    Args:
        tokenizer: of the model.
        max_length: tokens of the longest row; what is longer loses its end.
        prompt_weight: of tokens that are given rather than learnt: prompts, and what users say.
    """

    def __init__(self, tokenizer: Any, max_length: int, prompt_weight: float = 0.2) -> None:
        if max_length < 2:
            raise ShrinkError(f"max_length is {max_length}: a row needs at least 2 tokens")
        if not 0 <= prompt_weight <= 1:
            raise ShrinkError(f"prompt_weight is {prompt_weight}: give a number from 0 to 1")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.prompt_weight = prompt_weight
        self.begin = _leading_tokens(tokenizer)

    def rows(self, records: Iterable[tuple[str, Record]]) -> Rows:
        """Rows of all records, each with the name of its place for errors."""
        rows: list[Row] = []
        num_cut = 0
        for where, record in records:
            ids, targets = self.encode(record, where)
            if len(ids) < 2:
                continue
            num_cut += len(ids) > self.max_length
            row = self._row(ids[: self.max_length], targets)
            if row.weights.any():
                rows.append(row)
        return Rows(rows, num_cut)

    def packed(self, text: str) -> Rows:
        """Rows of one long text: paragraphs side by side as long as they fit, none of it lost."""
        pieces = self._ids_of(paragraphs(text))
        size = self.max_length - len(self.begin)
        if size < 2:
            raise ShrinkError(f"max_length is {self.max_length}: it leaves no room for text")
        rows = ([*self.begin, *row] for row in packed(pieces, size))
        return Rows([self._row(row, [(len(self.begin), len(row))]) for row in rows if len(row) > 1])

    def encode(self, record: Record, where: str = "") -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids, and the ranges of those that are to be learnt."""
        if isinstance(record, Question):
            record = self._as_asked(record)
        if isinstance(record, Chat):
            return self._chat(record, where)
        if isinstance(record, Pair):
            return self._pair(record)
        assert isinstance(record, Text)
        ids = [*self.begin, *self._ids(record.text)]
        return ids, [(len(self.begin), len(ids))]

    def _as_asked(self, record: Question) -> Record:
        if not getattr(self.tokenizer, "chat_template", None):
            return Pair(record.question + "\n", record.answer)
        user = {"role": "user", "content": record.question}
        return Chat((user, {"role": "assistant", "content": record.answer}))

    def _pair(self, record: Pair) -> tuple[list[int], list[tuple[int, int]]]:
        text = record.prompt + record.response
        ids, ends = self._ids_and_ends(text)
        start = len(self.begin) + self._tokens_before(len(record.prompt), text, ids, ends)
        ids = [*self.begin, *ids]
        if self.tokenizer.eos_token_id is not None:
            ids.append(self.tokenizer.eos_token_id)
        return ids, [(start, len(ids))]

    def _chat(self, record: Chat, where: str) -> tuple[list[int], list[tuple[int, int]]]:
        """What the assistant says is found by writing the chat up to it, with and without its turn.

        A template may write a turn otherwise when more follow (without its thoughts, say): then it counts as far as it
        is the same.
        """
        messages = list(record.messages)
        text = self._written(messages, where)
        ids, ends = self._ids_and_ends(text)
        ranges = []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                before = self._written(messages[:number], where, add_generation_prompt=True) if number else ""
                start = self._tokens_before(_common(text, before), text, ids, ends)
                after = self._written(messages[: number + 1], where) if number + 1 < len(messages) else text
                end = self._tokens_before(_common(text, after), text, ids, ends)
                ranges.append((start, end))
        return ids, ranges

    def _tokens_before(self, place: int, text: str, ids: Sequence[int], ends: Sequence[int] | None) -> int:
        """How many tokens lie wholly before a place in the text."""
        if ends is None:
            return _common(self._ids(text[:place]), ids)
        return next((number for number, end in enumerate(ends) if end > place), len(ids))

    def _ids_and_ends(self, text: str) -> tuple[list[int], list[int] | None]:
        """Token ids, and where in the text each token ends, if the tokenizer knows."""
        if not self.tokenizer.is_fast:
            return self._ids(text), None
        found = self.tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
        return list(found["input_ids"]), [end for _, end in found["offset_mapping"]]

    def _written(self, messages: Sequence[dict[str, str]], where: str, **options: bool) -> str:
        if not getattr(self.tokenizer, "chat_template", None):
            raise ShrinkError(
                f"{where}: a chat needs a tokenizer with a chat template, and this one has none: "
                "give prompt and response"
            )
        try:
            return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, **options))
        except Exception as error:  # whatever a template raises: jinja's own errors, or any of Python's
            raise ShrinkError(f"{where}: the model's chat template refuses this chat: {error}") from error

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _ids_of(self, texts: list[str]) -> Iterator[list[int]]:
        for start in range(0, len(texts), 1024):
            yield from self.tokenizer(texts[start : start + 1024], add_special_tokens=False, verbose=False)["input_ids"]

    def _row(self, ids: Sequence[int], targets: Sequence[tuple[int, int]]) -> Row:
        weights = np.full(len(ids), self.prompt_weight, np.float32)
        for start, end in targets:
            weights[start:end] = 1
        weights[0] = 0
        return Row(np.array(ids, np.int32), weights)


def _leading_tokens(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for start in range(len(whole)):
        if whole[start : start + len(plain)] == plain:
            return whole[:start]
    return []


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Length of what two sequences begin with."""
    limit = min(len(one), len(other))
    if one[:limit] == other[:limit]:
        return limit
    return next(n for n in range(limit) if one[n] != other[n])
