"""GLM's tokenizers, as stock ones that write the form of a prompt around a text.

A prompt is `[CLS] text with [gMASK] <|endoftext|> <|startofpiece|>`; what comes next is generated, up to
`<|endofpiece|>`, which therefore becomes EOS. The English models have GPT-2's vocabulary, the Chinese ones
SentencePiece.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pia.errors import ConversionError
from pia.models.convert.converter import read_json
from pia.models.convert.sentencepiece_tokenizer import sentencepiece_tokenizer
from pia.models.convert.stock_tokenizer import stock_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

START, END = "<|startofpiece|>", "<|endofpiece|>"
MASKS = ("[MASK]", "[sMASK]", "[gMASK]")
_FIRST, _LAST = "[CLS]", "<|endoftext|>"
_CHINESE = "cog-pretrain.model"


def glm_tokenizer(folder: Path) -> PreTrainedTokenizerFast | None:
    """The tokenizer of a folder with `vocab.json` and `merges.txt` or with `cog-pretrain.model`; `None` without these.

    Raises:
        ConversionError: a file is damaged, or a token that prompts are made of is missing.
    """
    added = _added_tokens(folder)
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        tokenizer = _gpt2_tokenizer(folder, added)
    elif (folder / _CHINESE).exists():
        tokenizer = _chinese_tokenizer(folder, added)
    else:
        return None
    _write_form(tokenizer.backend_tokenizer, folder)
    return tokenizer


def _chinese_tokenizer(folder: Path, added: dict[str, int]) -> PreTrainedTokenizerFast:
    in_order = sorted(added, key=added.__getitem__)
    tokenizer = sentencepiece_tokenizer(folder, file=_CHINESE, special_tokens=in_order)
    assert tokenizer is not None, "the file is there"
    known = tokenizer.get_vocab()
    for token, number in added.items():
        if known.get(token) != number:
            raise _out_of_order(token, number)
    tokenizer.eos_token, tokenizer.pad_token = END, _LAST
    return tokenizer


def _gpt2_tokenizer(folder: Path, added: dict[str, int]) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    try:
        bpe = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:  # the library raises nothing narrower
        raise ConversionError(f"vocab.json or merges.txt in {folder} is damaged: {error}") from None
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    _add_special_tokens(tokenizer, added)
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    return stock_tokenizer(tokenizer, {"eos_token": END, "pad_token": _LAST, "unk_token": _LAST}, config)


def _added_tokens(folder: Path) -> dict[str, int]:
    """Tokens behind the vocabulary, from wherever the version of Transformers that saved them put them."""
    added: dict[str, int] = {}
    if (folder / "added_tokens.json").exists():
        added |= {token: int(number) for token, number in read_json(folder / "added_tokens.json").items()}
    if (folder / "tokenizer_config.json").exists():
        listed = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
        added |= {token["content"]: int(number) for number, token in listed.items()}
    return added


def _add_special_tokens(tokenizer: Tokenizer, added: dict[str, int]) -> None:
    """Adds tokens at their ids. They take the spaces on both sides, as plain strings did in the original.

    Raises:
        ConversionError: the ids do not go on where the vocabulary ends.
    """
    from tokenizers import AddedToken

    known = tokenizer.get_vocab()
    for token, number in sorted(added.items(), key=lambda item: item[1]):
        if known.get(token, number) != number or (token not in known and number != tokenizer.get_vocab_size()):
            raise _out_of_order(token, number)
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False, lstrip=True, rstrip=True)])
    if _LAST in known and _LAST not in added:
        tokenizer.add_special_tokens([AddedToken(_LAST, special=True, normalized=False)])


def _out_of_order(token: str, number: int) -> ConversionError:
    return ConversionError(f"the tokenizer's added token {token!r} has the id {number}, out of order")


def _write_form(tokenizer: Tokenizer, folder: Path) -> None:
    """Puts what a prompt begins and ends with around a text."""
    from tokenizers import processors

    known = tokenizer.get_vocab()
    form = (_FIRST, _LAST, START)
    missing = [token for token in form if token not in known]
    if missing:
        raise ConversionError(f"the tokenizer of {folder} has no token {missing[0]}")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_FIRST} $A {_LAST} {START}",
        special_tokens=[(token, known[token]) for token in form],
    )
