"""Reading a SentencePiece `tokenizer.model` without the SentencePiece library: it is one protobuf message.

Field numbers are those of `sentencepiece_model.proto` in the SentencePiece repository.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from pia.errors import ConversionError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class PieceType(IntEnum):
    """What a piece is for."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class ModelType(IntEnum):
    """How a text is cut into pieces."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


@dataclass(frozen=True)
class Piece:
    """A piece of text with its score."""

    text: str
    score: float = 0.0
    type: PieceType = PieceType.NORMAL


@dataclass
class SentencePieceModel:
    """What a `tokenizer.model` says; the defaults are those of the format."""

    pieces: list[Piece] = field(default_factory=list)
    model_type: ModelType = ModelType.UNIGRAM
    has_byte_fallback: bool = False
    puts_space_behind: bool = False
    charsmap: bytes = b""
    adds_dummy_prefix: bool = True
    removes_extra_spaces: bool = True
    escapes_spaces: bool = True

    @classmethod
    def read(cls, path: Path) -> SentencePieceModel:
        """Reads a file.

        Raises:
            ConversionError: it is no SentencePiece model.
            OSError: it cannot be read.
        """
        try:
            model = cls()
            for number, value in _fields(path.read_bytes()):
                model._take(number, value)
        except (IndexError, ValueError, TypeError, struct.error):
            raise ConversionError(f"{path} is no SentencePiece model, or damaged") from None
        if not any(piece.type == PieceType.NORMAL for piece in model.pieces):
            raise ConversionError(f"{path} is no SentencePiece model: there are no pieces in it")
        return model

    def _take(self, number: int, value: int | bytes) -> None:
        if number == 1:
            self.pieces.append(_piece(_message(value)))
        elif number == 2:
            trainer = dict(_fields(_message(value)))
            self.model_type = ModelType(_number(trainer.get(3, ModelType.UNIGRAM)))
            self.has_byte_fallback = bool(trainer.get(35, 0))
            self.puts_space_behind = bool(trainer.get(24, 0))
        elif number == 3:
            normalizer = dict(_fields(_message(value)))
            self.charsmap = _message(normalizer.get(2, b""))
            self.adds_dummy_prefix = bool(normalizer.get(3, 1))
            self.removes_extra_spaces = bool(normalizer.get(4, 1))
            self.escapes_spaces = bool(normalizer.get(5, 1))


def _piece(message: bytes) -> Piece:
    fields = dict(_fields(message))
    (score,) = struct.unpack("<f", _message(fields.get(2, bytes(4))))
    return Piece(_message(fields[1]).decode() if 1 in fields else "", score, PieceType(_number(fields.get(3, 1))))


def _number(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise TypeError("a message where a number is due")
    return value


def _message(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("a number where a message is due")
    return value


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a protobuf message's fields; 32 and 64 bit values as their bytes."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire_type == _BYTES:
            size, position = _varint(message, position)
        elif wire_type in (_FIXED64, _FIXED32):
            size = 8 if wire_type == _FIXED64 else 4
        else:
            raise ValueError("unknown wire type")
        if number == 0 or position + size > len(message):
            raise ValueError("a field reaches beyond the message")
        yield number, message[position : position + size]
        position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
