"""What `pia convert` reads and writes: file formats, shards, memory, and every way in which it can go wrong."""

from __future__ import annotations

import json
import pickle
import resource
import weakref
from pathlib import Path

import pytest
import torch
from convert_support import CONFIGS, original_state, write_original
from convert_tokenizers import write_sentencepiece, write_tiktoken
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pia.cli import main
from pia.errors import ConversionError
from pia.models.convert import checkpoint, conversion
from pia.models.convert.conversion import convert
from pia.models.convert.registry import converter_for, converters
from pia.models.convert.sentencepiece_tokenizer import sentencepiece_tokenizer
from pia.models.convert.shard_writer import ShardWriter


def stock_state(folder):
    """All tensors of a new folder."""
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def nothing_left(folder):
    """Only the original is there: no new folder, no half of one."""
    return [path.name for path in folder.iterdir()] == ["src"]


@pytest.mark.parametrize("kind", ["safetensors", "bin", "old"])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_every_format_gives_the_same(tmp_path, kind, num_shards):
    write_original(tmp_path / "one", "chatglm2")
    write_original(tmp_path / "src", "chatglm2", kind=kind, num_shards=num_shards)
    convert(tmp_path / "one", tmp_path / "expected")
    convert(tmp_path / "src", tmp_path / "dst")
    assert equal(stock_state(tmp_path / "dst"), stock_state(tmp_path / "expected"))


@pytest.mark.parametrize("limit", [30_000, 100_000, 10**9])
def test_shards_are_bounded_and_load(tmp_path, limit):
    write_original(tmp_path / "src", "internlm", dtype=torch.float32)
    done = convert(tmp_path / "src", tmp_path / "dst", max_shard_size=limit)
    files = sorted((tmp_path / "dst").glob("*.safetensors"))
    assert len(files) == done.num_shards
    assert (limit == 10**9) == (done.num_shards == 1)
    total, names = 0, []
    for path in files:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert size <= limit or len(tensors) == 1
        total += size
        names += tensors
    assert total == done.num_bytes
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "dst", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert equal(dict(model.state_dict()), stock_state(tmp_path / "dst"))
    index = tmp_path / "dst" / "model.safetensors.index.json"
    assert index.exists() == (done.num_shards > 1)
    if done.num_shards > 1:
        assert sorted(json.loads(index.read_text())["weight_map"]) == sorted(names)


def test_the_writer_keeps_odd_tensors_straight(tmp_path):
    """A tensor whose bytes would not be aligned begins a new file; empty and scalar ones are fine."""
    tensors = {
        "odd": torch.arange(3, dtype=torch.bfloat16), "even": torch.arange(4, dtype=torch.float32),
        "none": torch.zeros(0, 3), "one": torch.tensor(2.5), "ümlaut": torch.ones(2, 2).T,
    }  # fmt: skip
    with ShardWriter(tmp_path, frozenset(tensors), 10**6) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        assert writer.finish() == 2
    assert equal(stock_state(tmp_path), tensors)


def test_dtypes(tmp_path):
    state = write_original(tmp_path / "src", "baichuan2", dtype=torch.bfloat16)
    assert convert(tmp_path / "src", tmp_path / "same").dtype == "bfloat16"
    same = stock_state(tmp_path / "same")
    assert all(tensor.dtype == torch.bfloat16 for tensor in same.values())
    assert torch.equal(same["lm_head.weight"], torch.nn.functional.normalize(state["lm_head.weight"]))
    assert json.loads((tmp_path / "same" / "config.json").read_text())["dtype"] == "bfloat16"
    assert convert(tmp_path / "src", tmp_path / "wide", dtype="float32").dtype == "float32"
    wide = stock_state(tmp_path / "wide")
    assert torch.equal(wide["model.norm.weight"], state["model.norm.weight"].float())
    assert torch.equal(wide["lm_head.weight"], torch.nn.functional.normalize(state["lm_head.weight"].float()))


def test_numbers_too_large_for_float16(tmp_path):
    write_original(tmp_path / "src", "internlm2")
    rewrite(tmp_path / "src", lambda state: state[WQKV].fill_(1e5))
    with pytest.raises(ConversionError, match=rf"{WQKV} holds numbers too large for float16"):
        convert(tmp_path / "src", tmp_path / "dst", dtype="float16")
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("is_stored", [True, False])
def test_tied_heads(tmp_path, is_stored):
    """The head that is the embeddings is written once, whether or not the original stored it twice."""
    write_original(tmp_path / "src", "internlm2")
    (tmp_path / "src" / "config.json").write_text(json.dumps(CONFIGS["internlm2"] | {"tie_word_embeddings": True}))
    if not is_stored:
        rewrite(tmp_path / "src", lambda state: state.pop("output.weight"))
    convert(tmp_path / "src", tmp_path / "dst")
    assert "lm_head.weight" not in stock_state(tmp_path / "dst")
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "dst", output_loading_info=True)
    assert not info["missing_keys"]
    assert model.lm_head.weight is model.model.embed_tokens.weight


class LiveBytes:
    """Counts the bytes of tensors that are alive; a tensor counts until the last view of it is gone."""

    def __init__(self):
        self.now = self.most = self.largest = 0

    def watch(self, tensor):
        self.now += tensor.nbytes
        self.most, self.largest = max(self.most, self.now), max(self.largest, tensor.nbytes)
        weakref.finalize(tensor, self._gone, tensor.nbytes)
        return tensor

    def _gone(self, size):
        self.now -= size


@pytest.mark.parametrize("kind", ["safetensors", "bin", "old"])
@pytest.mark.parametrize("name", ["baichuan2", "internlm2", "chatglm2"])
def test_no_more_than_a_shard_is_in_memory(tmp_path, monkeypatch, name, kind):
    """By counting: of mapped files one tensor at a time, of old files those of one file; of the output a tensor's."""
    write_original(tmp_path / "src", name, kind=kind, num_shards=4)
    read, written = LiveBytes(), LiveBytes()

    def watched_tensors(self, tensors=checkpoint.Checkpoint.tensors):
        for tensor_name, tensor in tensors(self):
            yield tensor_name, read.watch(tensor.clone())
            del tensor

    def watched_load(shard, load=checkpoint._load):
        tensors = load(shard)
        return {key: read.watch(tensors.pop(key).clone()) for key in list(tensors)}

    def watched_add(self, tensor_name, tensor, add=ShardWriter.add):
        add(self, tensor_name, written.watch(tensor.clone()))

    if kind == "old":
        monkeypatch.setattr(checkpoint, "_load", watched_load)
    else:
        monkeypatch.setattr(checkpoint.Checkpoint, "tensors", watched_tensors)
    monkeypatch.setattr(ShardWriter, "add", watched_add)
    convert(tmp_path / "src", tmp_path / "dst", max_shard_size=50_000)
    shard = max(path.stat().st_size for path in (tmp_path / "src").iterdir())
    assert 0 < read.most <= (shard if kind == "old" else read.largest)
    assert written.most == written.largest
    assert read.now == written.now == 0


def remove(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def blank(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [remove, cut, blank], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("kind", ["safetensors", "bin", "old"])
def test_missing_and_damaged_shards(tmp_path, kind, damage):
    write_original(tmp_path / "src", "qwen", kind=kind, num_shards=3)
    shard = sorted((tmp_path / "src").glob("*-00002-of-*"))[0]
    damage(shard)
    with pytest.raises(ConversionError, match=shard.name):
        convert(tmp_path / "src", tmp_path / "dst")
    assert nothing_left(tmp_path)


class Evil:
    def __reduce__(self):
        return (print, ("arbitrary code",))


@pytest.mark.parametrize("content", [Evil(), ["no", "names"], {"a": "text"}], ids=["code", "list", "str"])
def test_files_that_hold_something_else(tmp_path, content, capsys):
    write_original(tmp_path / "src", "baichuan", kind="bin")
    torch.save(content, tmp_path / "src" / "pytorch_model.bin", pickle_module=pickle)
    with pytest.raises(ConversionError, match=r"pytorch_model.bin"):
        convert(tmp_path / "src", tmp_path / "dst")
    assert "arbitrary" not in capsys.readouterr().out
    assert nothing_left(tmp_path)


def rewrite(folder, change, kind="safetensors"):
    """Changes the weights of a checkpoint in one file."""
    state = original_state("internlm2")
    change(state)
    if kind == "safetensors":
        save_file(state, folder / "model.safetensors")
    else:
        torch.save(state, folder / "pytorch_model.bin")


WQKV = "model.layers.1.attention.wqkv.weight"


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(WQKV), rf"lacks the tensor {WQKV}"),
        (lambda state: state.update(extra=torch.zeros(3)), r"the tensor extra does not belong to InternLM2"),
        (lambda state: state.update({WQKV: state[WQKV][:-16]}), rf"{WQKV} has the shape \[112, 64\].*\[128, 64\]"),
        (lambda state: state.update({WQKV: state[WQKV].T.contiguous()}), rf"{WQKV} has the shape \[64, 128\]"),
        (lambda state: state.update({WQKV: state[WQKV].to(torch.int8)}), rf"{WQKV} is stored as torch.int8"),
    ],
    ids=["missing", "unknown", "short", "transposed", "int8"],
)
def test_tensors_that_do_not_fit(tmp_path, change, message, kind):
    write_original(tmp_path / "src", "internlm2", kind=kind)
    rewrite(tmp_path / "src", change, kind)
    with pytest.raises(ConversionError, match=message):
        convert(tmp_path / "src", tmp_path / "dst")
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("qwen", {"rotary_pct": 0.25}, "rotary_pct = 0.25"),
        ("qwen", {"kv_channels": 8}, "4 heads of 8"),
        ("qwen", {"no_bias": False}, "no_bias = False"),
        ("chatglm2", {"multi_query_attention": False}, "multi_query_attention"),
        ("chatglm2", {"pre_seq_len": 128}, "pre_seq_len = 128"),
        ("chatglm2", {"rmsnorm": False}, "rmsnorm"),
        ("chatglm2", {"rope_ratio": 8}, "modeling_chatglm.py"),
        ("chatglm2", {"quantization_bit": 4}, "quantised"),
        ("internlm2", {"rope_scaling": {"type": "yarn"}}, "'yarn'"),
        ("internlm2", {"hidden_size": None}, "lacks hidden_size, which InternLM2 needs"),
        ("xverse", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("baichuan", {"quantization_config": {"bits": 4}}, "quantised"),
    ],
)
def test_configurations_without_a_counterpart(tmp_path, name, changes, message):
    write_original(tmp_path / "src", name)
    (tmp_path / "src" / "config.json").write_text(json.dumps(CONFIGS[name] | changes))
    with pytest.raises(ConversionError, match=message):
        convert(tmp_path / "src", tmp_path / "dst")
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "llama"}, r"'llama' model needs no conversion"),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, "needs no conversion"),
        ({"model_type": "mystery"}, r"'mystery'; what can be converted: .*Baichuan.*InternLM2.*Qwen.*ChatGLM2"),
        ({"architectures": ["Strange"]}, "'Strange'"),
        ({}, "without model_type"),
        ({"model_type": "chatglm", "inner_hidden_size": 16384, "position_encoding_2d": True}, "what can be converted"),
        ({**CONFIGS["chatglm2"], "padded_vocab_size": 151_552}, "what can be converted"),
        ({**CONFIGS["qwen"], "visual": {}}, "what can be converted"),
    ],
)
def test_families_that_are_not_known(config, message):
    with pytest.raises(ConversionError, match=message):
        converter_for(config)


def test_13b_is_not_7b():
    from pia.models.convert.baichuan import Baichuan7B, has_normalised_head

    big = {"model_type": "baichuan", "hidden_size": 5120, "num_attention_heads": 40, "model_max_length": 4096}
    assert not Baichuan7B.recognises(big)
    assert not Baichuan7B.recognises({**big, "hidden_size": 64})
    assert not Baichuan7B.recognises({**big, "max_position_embeddings": 4096})
    assert all(Baichuan7B.recognises(CONFIGS[name]) for name in ("baichuan", "baichuan2"))
    assert [has_normalised_head(CONFIGS[name]) for name in ("baichuan", "baichuan2")] == [False, True]
    assert has_normalised_head({"vocab_size": 125_696})


def test_each_configuration_has_one_converter():
    for name, config in CONFIGS.items():
        assert sum(converter.recognises(config) for converter in converters()) == 1, name


def test_the_new_place(tmp_path):
    write_original(tmp_path / "src", "xverse")
    (tmp_path / "empty").mkdir()
    convert(tmp_path / "src", tmp_path / "empty")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "precious.txt").write_text("text")
    (tmp_path / "file").write_text("text")
    for place, options, message in (
        ("empty", {}, r"not empty; --overwrite"),
        ("notes", {}, r"not empty"),
        ("notes", {"overwrite": True}, "other than a model"),
        ("file", {"overwrite": True}, "no folder"),
        ("src", {"overwrite": True}, "own place"),
        (".", {"overwrite": True}, "own place"),
        ("no/where", {}, "there is no folder"),
    ):
        with pytest.raises(ConversionError, match=message):
            convert(tmp_path / "src", tmp_path / place, **options)
    (tmp_path / "empty" / "old").write_text("text")
    convert(tmp_path / "src", tmp_path / "empty", overwrite=True)
    assert not (tmp_path / "empty" / "old").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "notes", "src"]
    with pytest.raises(ConversionError, match="there is no folder"):
        convert(tmp_path / "nowhere", tmp_path / "dst")
    with pytest.raises(ConversionError, match=r"no config.json"):
        convert(tmp_path / "notes", tmp_path / "dst")


def test_what_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    write_original(tmp_path / "src", "xverse")

    def interrupt(name, size):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / "src", tmp_path / "dst", on_tensor=interrupt)
    assert nothing_left(tmp_path)
    monkeypatch.setattr(conversion, "_save_configs", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space"):
        convert(tmp_path / "src", tmp_path / "dst")
    assert nothing_left(tmp_path)


def test_an_old_model_outlives_a_failed_overwrite(tmp_path):
    write_original(tmp_path / "src", "xverse")
    convert(tmp_path / "src", tmp_path / "dst")
    before = stock_state(tmp_path / "dst")
    cut(tmp_path / "src" / "model.safetensors")
    with pytest.raises(ConversionError, match="damaged"):
        convert(tmp_path / "src", tmp_path / "dst", overwrite=True)
    assert equal(stock_state(tmp_path / "dst"), before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dst", "src"]


def test_a_full_disk_leaves_nothing(tmp_path, capsys):
    """The system itself refuses to write on: no file may grow beyond 100 KiB in this process."""
    write_original(tmp_path / "src", "xverse")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100 << 10, limits[1]))
    try:
        code = main(["convert", str(tmp_path / "src"), str(tmp_path / "dst")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2
    assert capsys.readouterr().err == f"pia: {tmp_path / 'dst'}: File too large\n"
    assert nothing_left(tmp_path)


def test_a_tokenizer_that_is_stock_already_comes_along(tmp_path):
    """XVERSE's, for one, lies there as tokenizer.json."""
    write_original(tmp_path / "src", "xverse", dtype=torch.float32)
    original = write_sentencepiece(tmp_path / "other", "llama")
    tokenizer = sentencepiece_tokenizer(tmp_path / "other")
    tokenizer.backend_tokenizer.save(str(tmp_path / "src" / "tokenizer.json"))
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "tokenizer_class": "SomeRemoteTokenizer"}
    (tmp_path / "src" / "tokenizer_config.json").write_text(json.dumps(config))
    assert convert(tmp_path / "src", tmp_path / "dst").has_tokenizer
    loaded = AutoTokenizer.from_pretrained(tmp_path / "dst")
    assert loaded("hello 世界")["input_ids"] == original.encode("hello 世界")
    assert (loaded.bos_token, loaded.eos_token) == ("<s>", "</s>")
    cut(tmp_path / "src" / "tokenizer.json")
    with pytest.raises(ConversionError, match=r"tokenizer.json is damaged"):
        convert(tmp_path / "src", tmp_path / "new")


def test_a_tokenizer_larger_than_the_model_is_told(tmp_path):
    write_original(tmp_path / "src", "chatglm2")
    write_tiktoken(tmp_path / "src")
    assert convert(tmp_path / "src", tmp_path / "other").notes == ["the original has no tokenizer, so there is none"]
    write_original(tmp_path / "qwen", "qwen")
    write_tiktoken(tmp_path / "qwen", 400)
    assert any("608 tokens" in note and "512" in note for note in convert(tmp_path / "qwen", tmp_path / "dst").notes)


def run_pia(capsys, *args):
    code = main([str(arg) for arg in args])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_verb(tmp_path, capsys):
    write_original(tmp_path / "src", "qwen", num_shards=2, dtype=torch.bfloat16)
    code, out, err = run_pia(
        capsys, "convert", tmp_path / "src", tmp_path / "dst", "--dtype", "float32", "--max-shard-size", "0.1MB"
    )
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].endswith("becomes Qwen2")
    assert "of float32 in" in lines[1] and "files" in lines[1]
    assert lines[-1] == f'Try it: pia generate {tmp_path / "dst"} --prompt "Hello"'
    assert "the context is 96 tokens" in err and "no tokenizer" in err
    assert json.loads((tmp_path / "dst" / "config.json").read_text())["max_position_embeddings"] == 96
    code, out, err = run_pia(capsys, "convert", tmp_path / "src", tmp_path / "dst")
    assert code == 2 and "--overwrite" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("size", ["0", "4XB", "-1GB", "GB"])
def test_sizes(size, capsys, tmp_path):
    code, _, err = run_pia(capsys, "convert", tmp_path, tmp_path / "dst", f"--max-shard-size={size}")
    assert code == 2 and "no size" in err


def test_chat_can_be_asked_for(tmp_path, capsys):
    write_original(tmp_path / "src", "internlm", dtype=torch.float32)
    write_sentencepiece(tmp_path / "src", "internlm")
    for flag, has_template in (("--no-chat", False), ("--chat", True)):
        assert run_pia(capsys, "convert", tmp_path / "src", tmp_path / flag, flag)[0] == 0
        assert (Path(tmp_path / flag) / "chat_template.jinja").exists() == has_template
