"""Cut models are stock checkpoints: they reload without PIA, generate with their cache, and run in PIA."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from shrink_models import KINDS, MODELS, half, shrinkable, token_ids
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

import pia
from pia.assets import load_demo
from pia.ipad.cut import cut
from pia.ipad.equality import check_cut
from pia.ipad.gates import masked
from pia.ipad.selection import Selection
from pia.ipad.structure import structure_of

RELOAD = """
import sys
sys.modules["pia"] = None  # from here on, importing it fails
import torch
from pathlib import Path
from transformers import AutoModelForCausalLM
for folder in map(Path, sys.argv[1:]):
    model = AutoModelForCausalLM.from_pretrained(folder)
    expected = torch.load(folder / "expected.pt")
    with torch.no_grad():
        found = model(expected["ids"]).logits
    print(folder.name, str(found.dtype), torch.equal(found, expected["logits"]))
"""


def test_reload_without_pia(tmp_path):
    """In another process, bit by bit."""
    dtypes = {name: [torch.float32, torch.bfloat16][number % 2] for number, name in enumerate(KINDS)}
    for name, dtype in dtypes.items():
        model = shrinkable(name, dtype)
        small, ids = cut(model, half(model)), token_ids(2, 12)
        small.save_pretrained(tmp_path / name)
        with torch.no_grad():
            torch.save({"ids": ids, "logits": small(ids).logits}, tmp_path / name / "expected.pt")
    folders = [str(tmp_path / name) for name in KINDS]
    done = subprocess.run([sys.executable, "-c", RELOAD, *folders], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [f"{name} {dtype} True" for name, dtype in dtypes.items()], done.stderr


@pytest.mark.parametrize("name", MODELS)
def test_reload(name, tmp_path):
    model = shrinkable(name, torch.float32)
    small = cut(model, half(model))
    small.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is type(model) and not small.training
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["architectures"] == [type(model).__name__] and "auto_map" not in saved
    ours, theirs = small.config.to_dict(), AutoConfig.from_pretrained(tmp_path).to_dict()
    assert {key for key in theirs if theirs[key] != ours.get(key)} <= {"_name_or_path", "architectures"}
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), again.parameters(), strict=True))
    assert structure_of(again).is_tied == structure_of(model).is_tied
    with torch.no_grad():
        assert torch.equal(again(token_ids(2, 12)).logits, small(token_ids(2, 12)).logits)


@pytest.mark.parametrize("name", MODELS)
def test_the_cache_of_the_cut_model(name):
    """Generating with it gives what the masked model chooses without one."""
    model = shrinkable(name)
    selection, ids = half(model), token_ids(1, 7)
    small = cut(model, selection)
    found = small.generate(ids, max_new_tokens=14, do_sample=False, use_cache=True, eos_token_id=None)
    with torch.no_grad(), masked(model, selection):
        while ids.shape[1] < 21:
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(found, ids)


@pytest.mark.parametrize("name", KINDS)
def test_pia_runs_the_cut_model(name):
    model = shrinkable(name, torch.float32)
    small = cut(model, half(model))
    lookahead = pia.Lookahead(budget=8)
    for seed in range(3):
        ids = token_ids(1, 9, seed=seed)
        plain = small.generate(ids, max_new_tokens=20, do_sample=False)
        assert torch.equal(small.generate(ids, max_new_tokens=20, do_sample=False, custom_generate=lookahead), plain)


@pytest.mark.parametrize("name", MODELS)
def test_cutting_twice_is_cutting_once(name):
    model = shrinkable(name)
    first = half(model)
    once = cut(model, first)
    shape = structure_of(once).shape
    later = Selection.everything(shape)
    heads = shape.num_kv_heads * structure_of(once).queries_per_group
    hidden = shape.hidden_size if structure_of(once).ties_hidden_to_heads else shape.hidden_size - heads
    later = Selection((1,), later.kv_groups[1:], (tuple(range(5, 17)),), tuple(range(shape.hidden_size))[-hidden:])
    twice, at_once = cut(once, later), cut(model, first.then(later))
    assert structure_of(twice).shape == structure_of(at_once).shape == later.shape
    assert twice.config.to_dict() == at_once.config.to_dict()
    for (key, a), b in zip(twice.state_dict().items(), at_once.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=key)


def test_what_is_kept_beside_the_weights():
    model = shrinkable("llama", torch.bfloat16, attn_implementation="eager")
    model.generation_config = GenerationConfig(temperature=0.3, do_sample=True, eos_token_id=[2, 5])
    torch.manual_seed(5)
    state = torch.get_rng_state()
    small = cut(model.train(), half(model))
    assert torch.equal(torch.get_rng_state(), state)
    assert small.dtype == torch.bfloat16 and small.config._attn_implementation == "eager"
    assert small.generation_config == model.generation_config
    assert small.generation_config is not model.generation_config
    assert model.training and all(weight.requires_grad for weight in small.parameters())


def test_nothing_kept_is_nothing_changed():
    model = shrinkable("gemma2 (tied)")
    same = cut(model, Selection.everything(structure_of(model).shape))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    assert not {a.data_ptr() for a in model.parameters()} & {b.data_ptr() for b in same.parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_demo_model(dtype):
    model, tokenizer = load_demo(dtype)
    shape = structure_of(model).shape
    selection = Selection(
        (0, 1, 2, 4, 6, 7),
        ((0,), (1,)) * 3,
        (tuple(range(100, 420)),) * 6,
        tuple(range(0, shape.hidden_size, 2)),
    )
    small = cut(model, selection)
    ids = tokenizer("Natalia sold 48 clips. How many is that in all?", return_tensors="pt").input_ids
    assert check_cut(model, small, selection, ids) < 1e-5
    assert small.lm_head.weight is small.model.embed_tokens.weight
