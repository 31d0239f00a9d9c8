"""A SentencePiece `tokenizer.model` becomes a stock tokenizer that gives the same token ids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pia.errors import ConversionError
from pia.models.convert.converter import read_json
from pia.models.convert.merges import merges_of
from pia.models.convert.sentencepiece_model import ModelType, Piece, PieceType, SentencePieceModel
from pia.models.convert.stock_tokenizer import stock_tokenizer, with_prefix

if TYPE_CHECKING:
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_ROLES = ("unk_token", "bos_token", "eos_token", "pad_token")
_IN_MODEL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def sentencepiece_tokenizer(
    folder: Path,
    *,
    file: str = "tokenizer.model",
    add_bos: bool = False,
    special_ids: Sequence[int] = (),
    special_tokens: Sequence[str] = (),
    prefix: Sequence[str] = (),
    pad_token: str | None = None,
) -> PreTrainedTokenizerFast | None:
    """The tokenizer of a folder with a `tokenizer.model`; its `tokenizer_config.json` is heeded.

    Args:
        folder: the original checkpoint.
        file: what the SentencePiece model is called there.
        add_bos: whether a text begins with the BOS token, if the configuration does not say.
        special_ids: pieces that shall be special tokens, beside BOS and the like.
        special_tokens: special tokens behind the pieces, which the original's code adds.
        prefix: special tokens that every text begins with.
        pad_token: the padding token, if the configuration does not say.

    Returns:
        the tokenizer, or `None` where the folder has no such file.

    Raises:
        ConversionError: the model is damaged, or does what a stock tokenizer cannot do.
    """
    if not (folder / file).exists():
        return None
    model = SentencePieceModel.read(folder / file)
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    added = _added_tokens(config) | {len(model.pieces) + i: token for i, token in enumerate(special_tokens)}
    model.pieces = _with_tokens(model.pieces, added)
    roles = _special_roles(config, model.pieces, pad_token)
    ids = {piece.text: number for number, piece in enumerate(model.pieces)}
    specials = {ids[token]: token for token in roles.values() if token in ids}
    if special_ids and max(special_ids) >= len(model.pieces):
        raise ConversionError(f"{max(special_ids)} shall be a special token, but there are only {len(model.pieces)}")
    specials |= added | {number: model.pieces[number].text for number in special_ids}
    specials |= {i: piece.text for i, piece in enumerate(model.pieces) if piece.type == PieceType.CONTROL}

    tokenizer = _tokenizer(model, sorted(specials.items()))
    if config.get("add_bos_token", add_bos) and "bos_token" in roles:
        prefix = (roles["bos_token"], *prefix)
    with_prefix(tokenizer, [(token, ids[token]) for token in prefix])
    return stock_tokenizer(tokenizer, roles, config)


def _added_tokens(config: Mapping[str, Any]) -> dict[int, str]:
    """Special tokens by id that a `tokenizer_config.json` puts behind the pieces, or in the place of some."""
    listed = config.get("added_tokens_decoder") or {}
    return {int(number): token["content"] for number, token in listed.items() if token.get("special", True)}


def _with_tokens(pieces: list[Piece], tokens: Mapping[int, str]) -> list[Piece]:
    """The pieces with some taken by tokens, and with tokens behind."""
    pieces = list(pieces)
    for number, token in sorted(tokens.items()):
        if number > len(pieces):
            raise ConversionError(f"tokenizer_config.json has a token {number}, but none for {len(pieces)}")
        pieces[number : number + 1] = [Piece(token, type=PieceType.CONTROL)]
    return pieces


def _special_roles(config: Mapping[str, Any], pieces: list[Piece], pad_token: str | None) -> dict[str, str]:
    """BOS, EOS and the like: as configured, else as the model has them."""
    texts = {piece.text for piece in pieces}
    roles = {}
    for role in _ROLES:
        token = config.get(role)
        token = token.get("content") if isinstance(token, dict) else token
        token = token or (pad_token if role == "pad_token" else _IN_MODEL[role])
        if token in texts:
            roles[role] = token
    return roles


def _tokenizer(model: SentencePieceModel, specials: list[tuple[int, str]]) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer

    _check(model)
    own = [piece.text for piece in model.pieces if piece.type == PieceType.USER_DEFINED]
    own = [text for text in own if text not in {token for _, token in specials}]
    tokenizer = Tokenizer(_bpe(model, bool(own)) if model.model_type == ModelType.BPE else _unigram(model))
    tokenizer.normalizer = _normalizer(model)
    if own:
        _isolate(tokenizer, own)
    tokenizer.decoder = _decoder(model)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for _, token in specials])
    return tokenizer


def _check(model: SentencePieceModel) -> None:
    if model.model_type not in (ModelType.BPE, ModelType.UNIGRAM):
        raise ConversionError(f"tokenizer.model is of the type {model.model_type.name}; only BPE and UNIGRAM are known")
    if not model.escapes_spaces or model.puts_space_behind:
        raise ConversionError("tokenizer.model treats spaces in a way that no stock tokenizer does")
    if any(piece.type == PieceType.UNUSED for piece in model.pieces):
        raise ConversionError("tokenizer.model has unused pieces, which no stock tokenizer can leave out")
    if len({piece.text for piece in model.pieces}) < len(model.pieces):
        raise ConversionError("tokenizer.model has a piece twice, so a stock tokenizer cannot tell them apart")


def _bpe(model: SentencePieceModel, has_own_symbols: bool) -> models.BPE:
    from tokenizers import models

    vocab = {piece.text: number for number, piece in enumerate(model.pieces)}
    ranks = {piece.text: -piece.score for piece in model.pieces if piece.type == PieceType.NORMAL}
    return models.BPE(
        vocab,
        merges_of(ranks),
        unk_token=_unknown(model)[1],
        fuse_unk=True,
        byte_fallback=model.has_byte_fallback,
        ignore_merges=has_own_symbols,  # these are whole words, and made of no pieces
    )


def _unigram(model: SentencePieceModel) -> models.Unigram:
    from tokenizers import models

    vocab = [(piece.text, piece.score) for piece in model.pieces]
    return models.Unigram(vocab, unk_id=_unknown(model)[0], byte_fallback=model.has_byte_fallback)


def _unknown(model: SentencePieceModel) -> tuple[int, str]:
    for number, piece in enumerate(model.pieces):
        if piece.type == PieceType.UNKNOWN:
            return number, piece.text
    raise ConversionError("tokenizer.model has no piece for what is unknown")


def _normalizer(model: SentencePieceModel) -> normalizers.Sequence:
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.removes_extra_spaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.adds_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])


def _isolate(tokenizer: Tokenizer, symbols: list[str]) -> None:
    """User-defined symbols are found in any text, but unlike special tokens they do not start a new one behind them."""
    from tokenizers import Regex, pre_tokenizers

    escaped = [re.escape(text) for text in sorted(symbols, key=len, reverse=True)]
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(escaped)), "isolated")


def _decoder(model: SentencePieceModel) -> decoders.Sequence:
    from tokenizers import decoders

    steps: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.adds_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)
