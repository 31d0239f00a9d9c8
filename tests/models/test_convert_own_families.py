"""Original checkpoints of Baichuan-13B and GLM become ones for our modeling files, with the original's logits."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import own_families_original as original
import pytest
import sentencepiece
import torch
from own_families_original import BAICHUAN, BLANKS, GLM, PIECE, SEED, TEXT
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import pia
from pia.cli.loading import load_model
from pia.errors import ConversionError
from pia.models.convert.conversion import convert
from pia.models.convert.glm10b_tokenizer import glm_tokenizer
from pia.models.convert.registry import converter_for

STORED = json.loads((Path(__file__).parent / "own_families_logits.json").read_text())["last_logits"]


def save(folder: Path, weights: dict[str, np.ndarray], config: dict) -> Path:
    folder.mkdir()
    save_file({name: torch.tensor(array) for name, array in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def baichuan_folder(folder: Path, generation: str) -> Path:
    config = {
        "model_type": "baichuan",
        "architectures": ["BaichuanForCausalLM"],
        "vocab_size": BAICHUAN["vocab"],
        "hidden_size": BAICHUAN["hidden"],
        "num_attention_heads": BAICHUAN["heads"],
        "num_hidden_layers": BAICHUAN["layers"],
        "intermediate_size": BAICHUAN["intermediate"],
        "model_max_length": 64,
        "rms_norm_eps": BAICHUAN["eps"],
        **({"z_loss_weight": 0} if generation == "2" else {}),
    }
    return save(folder, original.weights(original.baichuan_shapes(BAICHUAN), SEED), config)


def glm_folder(folder: Path, *, prefix: str = "glm.") -> Path:
    """An original GLM with GPT-2's kind of tokenizer, whose special tokens stand at 54 .. 60."""
    config = {
        "model_type": "glm",
        "architectures": ["GLMModel"],
        "auto_map": {"AutoConfig": "configuration_glm.GLMConfig"},
        "vocab_size": GLM["vocab"],
        "hidden_size": GLM["hidden"],
        "num_attention_heads": GLM["heads"],
        "num_layers": GLM["layers"],
        "max_sequence_length": GLM["length"],
        "block_position_encoding": True,
        "attention_scale": 1.0,
    }
    weights = original.weights(original.glm_shapes(GLM), SEED)
    save(folder, {prefix + name.removeprefix("glm."): array for name, array in weights.items()}, config)
    letters = [chr(code) for code in range(ord("a"), ord("a") + 26)]
    words = ["he", "ll", "hell", "hello", "wo", "\u0120wo"]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("w", "o"), ("\u0120", "wo")]
    vocab = [*letters, "\u0120", *words, *map(str, range(10)), *"!?,.;:-+*/#"]
    assert len(vocab) == 54
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(vocab)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges))
    order = ["<|endoftext|>", "[MASK]", "[sMASK]", "[gMASK]", "<|startofpiece|>", "<|endofpiece|>", "[CLS]"]
    (folder / "added_tokens.json").write_text(json.dumps({token: 54 + i for i, token in enumerate(order)}))
    return folder


def load(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def check(model, ids: list[int], case: str) -> None:
    """All logits against the formulas as computed now, the last ones also against the stored numbers."""
    with torch.no_grad():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    np.testing.assert_allclose(logits, original.cases()[case], rtol=0, atol=1e-9)
    np.testing.assert_allclose(logits[-1], STORED[case], rtol=0, atol=1e-9)


@pytest.mark.parametrize("generation", ["", "2"])
def test_baichuan_has_the_originals_logits(generation, tmp_path):
    source = baichuan_folder(tmp_path / "source", generation)
    convert(source, tmp_path / "new")
    model = load(tmp_path / "new")
    assert type(model).__name__ == "Baichuan13BForCausalLM"
    check(model, TEXT, f"Baichuan{generation}")
    difference = np.abs(np.subtract(STORED["Baichuan"], STORED["Baichuan2"])).max()
    assert difference > 0.1  # the normalised head matters


@pytest.mark.parametrize("prefix", ["glm.", ""])
@pytest.mark.parametrize("case", sorted(BLANKS))
def test_glm_has_the_originals_logits(case, prefix, tmp_path):
    source = glm_folder(tmp_path / "source", prefix=prefix)
    convert(source, tmp_path / "new")
    model = load(tmp_path / "new")
    assert type(model).__name__ == "Glm10BForCausalLM"
    assert model.config.sop_token_id == PIECE[0]
    assert set(model.config.mask_token_ids) == {55, 56, 57}
    check(model, [*BLANKS[case], *PIECE], f"GLM, {case}")


def test_glm_tokenizer_writes_the_prompts_form(tmp_path):
    convert(glm_folder(tmp_path / "source"), tmp_path / "new")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "new")
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("hello wo [gMASK]")["input_ids"])
    assert tokens == ["[CLS]", "hello", "\u0120wo", "[gMASK]", "<|endoftext|>", "<|startofpiece|>"]
    assert tokenizer.eos_token == "<|endofpiece|>" and tokenizer.pad_token == "<|endoftext|>"
    bare = tokenizer("he[MASK] hello", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(bare) == ["he", "[MASK]", "hello"]
    assert tokenizer.decode(tokenizer("hello wo")["input_ids"], skip_special_tokens=True) == "hello wo"


CHINESE = ["今天天气很好。我们去公园散步吧。", "你好世界。", "hello world 12345", "人工智能语言模型 生成文本"]
ADDED = [
    "<|endoftext|>",
    "[SEP]",
    "[CLS]",
    "[MASK]",
    "[UNK]",
    "<|startofpiece|>",
    "<|endofpiece|>",
    "[gMASK]",
    "[sMASK]",
]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_chinese_glm_tokenizer(kind, tmp_path):
    """Ids are SentencePiece's own, the added ones stand behind them, and the form of a prompt is written around."""
    spm = write_sentencepiece(tmp_path / "cog-pretrain.model", kind)
    size = spm.get_piece_size()
    (tmp_path / "added_tokens.json").write_text(json.dumps({token: size + i for i, token in enumerate(ADDED)}))
    tokenizer = glm_tokenizer(tmp_path)
    first, gmask, last, start = (
        size + ADDED.index(t) for t in ("[CLS]", "[gMASK]", "<|endoftext|>", "<|startofpiece|>")
    )
    for text in CHINESE:
        assert tokenizer(f"{text}[gMASK]")["input_ids"] == [first, *spm.encode(text), gmask, last, start]
        assert tokenizer.decode(spm.encode(text)) == text
    assert tokenizer.eos_token == "<|endofpiece|>"


def write_sentencepiece(path, kind):
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CHINESE * 20),
        model_writer=file,
        model_type=kind,
        vocab_size=80,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        minloglevel=2,
        num_threads=1,
    )
    path.write_bytes(file.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())


def test_baichuan_chat_model_brings_its_tokenizer(tmp_path):
    source = baichuan_folder(tmp_path / "source", "2")
    spm = write_sentencepiece(source / "tokenizer.model", "bpe")
    roles = {"user_token_id": 10, "assistant_token_id": 11}
    (source / "generation_config.json").write_text(json.dumps(roles))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "bos_token_id": 1}))
    convert(source, tmp_path / "new", dtype="float32")
    _, tokenizer = load_model(str(tmp_path / "new"), device="cpu")
    assert tokenizer("hello world", add_special_tokens=False)["input_ids"] == spm.encode("hello world")
    messages = [{"role": "user", "content": "hello"}]
    chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert chat[0] == 10 and chat[-1] == 11


def test_glm_from_folder_to_text(tmp_path):
    """As a user has it: convert, load by path, generate with and without drafts."""
    convert(glm_folder(tmp_path / "source"), tmp_path / "new", dtype="float32")
    model, tokenizer = load_model(str(tmp_path / "new"), device="cpu")
    lookahead = pia.Lookahead(budget=8)
    plain = pia.generate(model, tokenizer, "hello wo [gMASK]", lookahead=pia.Lookahead(budget=0), max_new_tokens=20)
    assert plain.finish_reason in ("eos", "length") and plain.token_ids
    for _ in range(2):
        drafted = pia.generate(model, tokenizer, "hello wo [gMASK]", lookahead=lookahead, max_new_tokens=20)
        assert drafted.token_ids == plain.token_ids
    assert drafted.stats.mode == "tree" and drafted.stats.num_accepted > 0


def test_glm_without_its_tokenizer_is_refused(tmp_path):
    source = glm_folder(tmp_path / "source")
    (source / "vocab.json").unlink()
    with pytest.raises(ConversionError, match="only the tokenizer tells"):
        convert(source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_glm_tokens_out_of_order_are_refused(tmp_path):
    source = glm_folder(tmp_path / "source")
    (source / "added_tokens.json").write_text(json.dumps({"[CLS]": 70}))
    with pytest.raises(ConversionError, match="out of order"):
        convert(source, tmp_path / "new")


def test_seven_billions_and_stock_models_go_elsewhere():
    assert converter_for({"model_type": "baichuan", "max_position_embeddings": 4096}).target == "Llama"
    assert converter_for({"model_type": "baichuan", "model_max_length": 4096}).family.startswith("Baichuan-13B")
    with pytest.raises(ConversionError, match="needs no conversion"):
        converter_for({"model_type": "glm", "num_hidden_layers": 40})
