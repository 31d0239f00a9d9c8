"""From an original checkpoint with its tokenizer to text: `pia convert`, then `pia generate`, and without PIA, too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from convert_support import CONFIGS, original_shapes, write_original
from convert_tokenizers import write_json, write_sentencepiece, write_tiktoken
from transformers import AutoModelForCausalLM, AutoTokenizer

import pia
from pia.cli import main
from pia.models.capability import Mode
from pia.models.profile import capability_of
from toys import ToySource

PROMPTS = ["hello 世界", "def area(r):\n    return", "2026-11-21 😀", "The quick", "今天天气很好"]
NUM_NEW = 24
FAMILIES = {
    "baichuan2": ("baichuan", {"user_token_id": 3, "assistant_token_id": 4}),
    "internlm": ("internlm", {"eos_token_id": [2, 3]}),
    "internlm2": ("llama", {}),
    "qwen": (None, {"chat_format": "chatml", "do_sample": True, "top_p": 0.5, "top_k": 0}),
    "chatglm2": ("chatglm", {}),
    "yi": ("yi", {}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """New folders of the families, converted on the command line."""
    root = tmp_path_factory.mktemp("converted")
    made = {}
    for name, (tokenizer, generation) in FAMILIES.items():
        write_original(root / "src" / name, name, dtype=torch.float32, num_shards=2, kind="bin")
        if tokenizer is None:
            write_tiktoken(root / "src" / name)
        else:
            write_sentencepiece(root / "src" / name, tokenizer)
        if generation:
            write_json(root / "src" / name / "generation_config.json", **generation)
        assert main(["convert", str(root / "src" / name), str(root / name)]) == 0
        made[name] = root / name
    return made


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request, folders):
    """Folder, model and tokenizer."""
    folder = folders[request.param]
    return folder, AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def greedy(model, ids, **options):
    return model.generate(ids, max_new_tokens=NUM_NEW, do_sample=False, pad_token_id=0, **options)


def test_trees_are_proved(loaded):
    _, model, _ = loaded
    assert capability_of(model, self_check=True).mode == Mode.TREE


@pytest.mark.parametrize("agreement", [0.0, 0.6, 1.0], ids=["never", "sometimes", "always"])
def test_drafts_change_nothing(loaded, agreement):
    _, model, tokenizer = loaded
    num_drafted = num_accepted = 0
    seen = set()
    for number, prompt in enumerate(PROMPTS):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        expected = greedy(model, ids)
        lookahead = pia.Lookahead(cache=ToySource(expected[0].tolist(), agreement, seed=number), budget=15)
        out = greedy(model, ids, custom_generate=lookahead, return_dict_in_generate=True)
        assert torch.equal(out.sequences, expected)
        seen.update(expected[0, ids.shape[1] :].tolist())
        num_drafted += out.stats.num_drafted
        num_accepted += out.stats.num_accepted
    assert (num_accepted > 0) == (agreement > 0)
    assert num_drafted > num_accepted
    assert len(seen) > 40  # no model that says one thing over and over


def test_generate_on_the_command_line(loaded, capsys):
    folder, model, tokenizer = loaded
    capsys.readouterr()
    assert main(["generate", str(folder), "--prompt", PROMPTS[0], "--max-new-tokens", str(NUM_NEW), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    ids = tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    expected = greedy(model, ids)[0, ids.shape[1] :].tolist()
    assert result["token_ids"] == expected
    assert result["text"] == tokenizer.decode(expected, skip_special_tokens=True)


def test_chat_on_the_command_line(folders, capsys):
    for name in ("baichuan2", "internlm", "qwen", "chatglm2"):
        capsys.readouterr()
        line = ["generate", str(folders[name]), "--prompt", "你好", "--chat", "--max-new-tokens", "4"]
        assert main(line) == 0, capsys.readouterr().err


def test_generation_configs(folders):
    configs = {name: json.loads((folder / "generation_config.json").read_text()) for name, folder in folders.items()}
    assert configs["qwen"]["do_sample"] and configs["qwen"]["top_p"] == 0.5
    assert len(configs["qwen"]["eos_token_id"]) == 3
    assert configs["internlm"]["eos_token_id"] == [2, 3]
    assert configs["baichuan2"]["eos_token_id"] == 2
    assert not any("user_token_id" in config for config in configs.values())


_WITHOUT_PIA = """
import json, sys
sys.modules["pia"] = None  # whoever imports it now fails
import torch, transformers
transformers.logging.set_verbosity_error()
found = {}
for folder in sys.argv[1:]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("hello \\u4e16\\u754c", return_tensors="pt")["input_ids"]
    out = model.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=0)
    found[folder] = [type(model).__name__, out[0].tolist()]
print(json.dumps(found))
"""


def test_transformers_alone_loads_them(folders):
    """In a new process that cannot import PIA, and without remote code."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, "-c", _WITHOUT_PIA, *map(str, folders.values())]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    for name, folder in folders.items():
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        ids = tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
        assert found[str(folder)] == [type(model).__name__, greedy(model, ids)[0].tolist()], name


def test_the_tiny_originals_are_those_of_the_converters():
    """The shapes that the tests write down by hand are the ones that the converters ask for."""
    from pia.models.convert.registry import converter_for

    for name, config in CONFIGS.items():
        with_code = Path(__file__).parent  # no remote code there: shapes do not depend on it
        assert converter_for(config, with_code).shapes() == original_shapes(config), name
