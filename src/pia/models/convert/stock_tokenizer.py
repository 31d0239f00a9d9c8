"""From a tokenizer of the tokenizers library to one that Transformers saves and loads without further code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pia.errors import ConversionError
from pia.models.convert.converter import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_NO_LIMIT = int(1e15)


def stock_tokenizer(
    tokenizer: Tokenizer, special_roles: Mapping[str, str], config: Mapping[str, Any]
) -> PreTrainedTokenizerFast:
    """Wraps a tokenizer.

    Args:
        tokenizer: the tokenizer.
        special_roles: `bos_token` and the like.
        config: the original `tokenizer_config.json`; its length limit and chat template are kept.
    """
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=min(int(config.get("model_max_length") or _NO_LIMIT), _NO_LIMIT),
        **special_roles,
    )
    template = config.get("chat_template")
    if isinstance(template, str):
        wrapped.chat_template = template
    return wrapped


def existing_tokenizer(folder: Path) -> PreTrainedTokenizerFast | None:
    """The tokenizer of a folder that has a `tokenizer.json` already, or `None`.

    Raises:
        ConversionError: it is damaged.
    """
    from tokenizers import Tokenizer

    if not (folder / "tokenizer.json").exists():
        return None
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises nothing narrower
        raise ConversionError(f"{folder / 'tokenizer.json'} is damaged: {error}") from None
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    roles = {}
    for role in ("unk_token", "bos_token", "eos_token", "pad_token"):
        token = config.get(role)
        token = token.get("content") if isinstance(token, dict) else token
        if token:
            roles[role] = token
    return stock_tokenizer(tokenizer, roles, config)


def with_prefix(tokenizer: Tokenizer, prefix: Sequence[tuple[str, int]]) -> None:
    """Lets every text begin with special tokens, unless it is encoded without them.

    Args:
        tokenizer: is changed.
        prefix: the tokens and their ids.
    """
    from tokenizers import processors

    if not prefix:
        return
    first = [f"{token}:0" for token, _ in prefix]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*first, "$A:0"], pair=[*first, "$A:0", "$B:1"], special_tokens=list(dict.fromkeys(prefix))
    )
