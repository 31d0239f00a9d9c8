"""Converted tokenizers give the ids of the original libraries, and load without remote code."""

from __future__ import annotations

import shutil
import unicodedata

import pytest
import tiktoken
from convert_support import CONFIGS
from convert_tokenizers import SENTENCEPIECES, WORDS, texts, write_json, write_sentencepiece, write_tiktoken
from transformers import AutoTokenizer

from pia.errors import ConversionError
from pia.models.convert.registry import converter_for
from pia.models.convert.sentencepiece_tokenizer import sentencepiece_tokenizer
from pia.models.convert.tiktoken_tokenizer import qwen_tokenizer


def saved_and_loaded(tokenizer, folder, converter):
    """As a user gets it: beside the new config.json, whose model type tempts Transformers to other classes."""
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer.save_pretrained(folder)
    write_json(folder / "config.json", **converter.config())
    return AutoTokenizer.from_pretrained(folder)


def converted_tokenizer(name, folder, **options):
    """The tokenizer of a family from an original folder, saved and loaded."""
    converter = converter_for(CONFIGS[name] | options.pop("config", {}), folder, **options)
    return saved_and_loaded(converter.tokenizer(folder), folder / "new", converter)


@pytest.mark.parametrize("kind", SENTENCEPIECES)
def test_ids_are_those_of_sentencepiece(kind, tmp_path):
    original = write_sentencepiece(tmp_path, kind)
    tokenizer = sentencepiece_tokenizer(tmp_path)
    loaded = saved_and_loaded(tokenizer, tmp_path / "new", converter_for(CONFIGS["baichuan"]))
    seen = set()
    for text in texts():
        ids = original.encode(text)
        assert tokenizer(text)["input_ids"] == ids, text
        assert loaded(text)["input_ids"] == ids, text
        seen.update(ids)
        if original.unk_id() not in ids:
            assert loaded.decode(ids, skip_special_tokens=True) == original.decode(ids), text
    assert len(seen) > 100


def test_ids_are_those_of_tiktoken(tmp_path):
    ranks = write_tiktoken(tmp_path)
    original = tiktoken.Encoding(
        "qwen", pat_str=WORDS, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": len(ranks)}
    )
    loaded = converted_tokenizer("qwen", tmp_path)
    for text in texts():
        ids = original.encode_ordinary(unicodedata.normalize("NFC", text))
        assert loaded(text)["input_ids"] == ids, text
        assert loaded.decode(ids) == unicodedata.normalize("NFC", text)
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_0|>", "<|extra_204|>"]
    expected = [len(ranks) + i for i in (0, 1, 2, 3, 207)]
    assert loaded("".join(specials))["input_ids"] == expected
    assert loaded.decode(expected, skip_special_tokens=True) == ""
    assert loaded.eos_token_id == len(ranks)


def test_qwen_chat_is_chatml(tmp_path):
    write_tiktoken(tmp_path)
    assert converted_tokenizer("qwen", tmp_path).chat_template is None
    write_json(tmp_path / "generation_config.json", chat_format="chatml")
    tokenizer = converted_tokenizer("qwen", tmp_path)
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == system + "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    both = tokenizer.apply_chat_template(messages, tokenize=False)
    assert both == prompt + "yes<|im_end|>"
    own = [{"role": "system", "content": "Be brief."}, *messages[:1]]
    assert "helpful" not in tokenizer.apply_chat_template(own, tokenize=False)
    ends = converter_for(CONFIGS["qwen"], tmp_path).generation_config()["eos_token_id"]
    assert ends == tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>", "<|im_start|>"])


def test_baichuan_chat_puts_the_reserved_tokens_first(tmp_path):
    original = write_sentencepiece(tmp_path, "baichuan")
    user, assistant = original.piece_to_id("<reserved_106>"), original.piece_to_id("<reserved_107>")
    assert converted_tokenizer("baichuan2", tmp_path).chat_template is None
    write_json(tmp_path / "generation_config.json", user_token_id=user, assistant_token_id=assistant)
    write_json(tmp_path / "tokenizer_config.json", add_bos_token=False, bos_token={"content": "<s>"})
    tokenizer = converted_tokenizer("baichuan2", tmp_path)
    messages = [
        {"role": "system", "content": "hello"},
        {"role": "user", "content": "世界 hello"},
        {"role": "assistant", "content": "hello world"},
        {"role": "user", "content": "hello"},
    ]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    contents = [original.encode(message["content"]) for message in messages]
    assert ids == [*contents[0], user, *contents[1], assistant, *contents[2], user, *contents[3], assistant]
    assert tokenizer.decode([user, *contents[1]], skip_special_tokens=True) == "世界 hello"


def test_bos_as_the_original_says(tmp_path):
    original = write_sentencepiece(tmp_path, "llama")
    text, bos = "hello 世界", original.bos_id()
    for name in ("baichuan", "internlm", "internlm2"):
        assert converted_tokenizer(name, tmp_path)(text)["input_ids"] == [bos, *original.encode(text)]
    write_json(tmp_path / "tokenizer_config.json", add_bos_token=False, bos_token="<s>")
    assert converted_tokenizer("internlm", tmp_path)(text)["input_ids"] == original.encode(text)


@pytest.mark.parametrize(("code", "end"), [("", "<eoh>"), ("<eoh>\\n<|Bot|>:", "<eoh>"), ("\\n<|Bot|>:", "")])
def test_internlm_chat(tmp_path, code, end):
    original = write_sentencepiece(tmp_path, "internlm")
    if code:
        (tmp_path / "modeling_internlm.py").write_text(f'prompt = f"<|User|>:{{query}}{code}"')
    assert converted_tokenizer("internlm", tmp_path).chat_template is None
    tokenizer = converted_tokenizer("internlm", tmp_path, is_chat=True)
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "world"},
        {"role": "user", "content": "你好"},
    ]
    text = f"<|User|>:hello{end}\n<|Bot|>:world<eoa>\n<|User|>:你好{end}\n<|Bot|>:"
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ids == [original.bos_id(), *original.encode(text)]
    assert original.piece_to_id("<eoa>") in ids


def test_internlm2_takes_over_tokens_and_template(tmp_path):
    original = write_sentencepiece(tmp_path, "llama")
    last = original.get_piece_size() - 1
    template = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    added = {str(last): {"content": "<|im_start|>"}, str(last + 1): {"content": "<|im_end|>", "special": True}}
    write_json(tmp_path / "tokenizer_config.json", added_tokens_decoder=added, chat_template=template)
    tokenizer = converted_tokenizer("internlm2", tmp_path)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}])["input_ids"]
    assert ids == [last, *original.encode("hello"), last + 1]


@pytest.mark.parametrize("kind", ["chatglm", "llama"])
def test_chatglm_begins_every_text_with_gmask_and_sop(tmp_path, kind):
    original = write_sentencepiece(tmp_path, kind)
    first = original.get_piece_size()
    tokenizer = converted_tokenizer("chatglm2", tmp_path)
    for text in texts(20):
        assert tokenizer(text)["input_ids"] == [first + 1, first + 3, *original.encode(text)]
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == original.encode(text)
    assert tokenizer("philosophy sop")["input_ids"][2:] == original.encode("philosophy sop")
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (original.eos_id(), original.unk_id())
    assert tokenizer.padding_side == "left"

    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "你好"},
        {"role": "user", "content": "world"},
    ]
    prompt = "[Round 1]\n\n问：hello\n\n答：你好\n\n[Round 2]\n\n问：world\n\n答："  # noqa: RUF001
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ids == [first + 1, first + 3, *original.encode(prompt)]


def test_chatglm3_has_roles(tmp_path):
    original = write_sentencepiece(tmp_path, "llama")
    first = original.get_piece_size()
    tokenizer = converted_tokenizer("chatglm3-32k", tmp_path, config={"rope_ratio": 1})
    messages = [{"role": "system", "content": "hello"}, {"role": "user", "content": "你好 hello"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    newline = original.encode("\n")
    expected = [first + 5, *newline, *original.encode("hello"), first + 6, *newline, *original.encode("你好 hello")]
    assert ids == [first + 1, first + 3, *expected, first + 7]
    ends = converter_for(CONFIGS["chatglm3-32k"], tmp_path).generation_config()["eos_token_id"]
    assert ends == [2, first + 6, first + 8]
    base = converted_tokenizer("chatglm2", tmp_path, config={"_name_or_path": "THUDM/chatglm3-6b-base"})
    assert base.chat_template is None and base.convert_tokens_to_ids("<|user|>") == first + 6


def test_role_tokens_that_are_not_there(tmp_path):
    write_sentencepiece(tmp_path, "baichuan")
    write_json(tmp_path / "generation_config.json", user_token_id=195, assistant_token_id=10**6)
    with pytest.raises(ConversionError, match=r"1000000 shall be a special token, but there are only 4"):
        converted_tokenizer("baichuan2", tmp_path)


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_damaged_models(tmp_path, damage):
    write_sentencepiece(tmp_path, "llama")
    path = tmp_path / "tokenizer.model"
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2 - 1], "text": b"hello world, no model here", "empty": b""}[damage])
    with pytest.raises(ConversionError, match=r"tokenizer.model is no SentencePiece model"):
        sentencepiece_tokenizer(tmp_path)


@pytest.mark.parametrize("line", [b"no base64! 3", b"aGk=", b"aGk= x", b"aGk= 7"])
def test_damaged_ranks(tmp_path, line):
    (tmp_path / "qwen.tiktoken").write_bytes(b"YQ== 0\n" + line + b"\n")
    with pytest.raises(ConversionError, match=r"qwen.tiktoken is damaged"):
        qwen_tokenizer(tmp_path)
