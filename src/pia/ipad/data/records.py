"""What a line of a training file means: a text, a chat, or a prompt with its response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pia.errors import ShrinkError

RESPONSES = ("response", "completion", "answer")
"""Fields that may hold what answers a `prompt`; the first that is there counts."""
KNOWN = '"text", "messages", "prompt" with "response" (or "completion", "answer"), or "question" with "answer"'


@dataclass(frozen=True)
class Text:
    """All of it is learnt."""

    text: str


@dataclass(frozen=True)
class Chat:
    """What the assistant says is learnt."""

    messages: tuple[dict[str, str], ...]


@dataclass(frozen=True)
class Pair:
    """The response is learnt; the prompt stands before it as it is."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Question:
    """A chat of two turns where the tokenizer has a chat template, else a pair."""

    question: str
    answer: str


Record = Text | Chat | Pair | Question


def record_of(fields: Any, where: str) -> Record:
    """Reads one record.

    Args:
        fields: of a JSON line or a row of a dataset.
        where: names the line in errors.

    Raises:
        ShrinkError: the fields are none that are known, or hold no text.
    """
    if not isinstance(fields, dict):
        raise ShrinkError(f"{where}: a JSON object is needed, not {type(fields).__name__}")
    if "messages" in fields:
        return Chat(_messages(fields["messages"], where))
    if "prompt" in fields:
        name = next((name for name in RESPONSES if name in fields), None)
        if name is not None:
            return Pair(_text(fields, "prompt", where), _text(fields, name, where))
    if "question" in fields and "answer" in fields:
        return Question(_text(fields, "question", where), _text(fields, "answer", where))
    if "text" in fields:
        return Text(_text(fields, "text", where))
    names = ", ".join(map(str, fields)) or "nothing"
    raise ShrinkError(f"{where}: only {names} is there; training rows need {KNOWN}")


def _text(fields: dict[str, Any], name: str, where: str) -> str:
    value = fields[name]
    if not isinstance(value, str) or not value.strip():
        raise ShrinkError(f"{where}: {name} must be text, not {repr(value)[:60]}")
    return value


def _messages(value: Any, where: str) -> tuple[dict[str, str], ...]:
    # datasets gives lists of dicts; whatever else a message holds (names, tool calls) is left to the chat template
    is_list = isinstance(value, (list, tuple)) and len(value) > 0
    if not is_list or not all(_is_message(message) for message in value):
        raise ShrinkError(f'{where}: messages must be a list of {{"role": ..., "content": ...}} with text in both')
    if not any(message["role"] == "assistant" for message in value):
        raise ShrinkError(f"{where}: no message is the assistant's, so there is nothing to learn from it")
    return tuple(value)


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
