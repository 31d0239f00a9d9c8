"""Models that Accelerate has split or offloaded: their weights come and go, and `model.device` may be "meta"."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers

import pia
from pia.models.kv import SlabCache
from pia.models.placement import compute_dtype, input_device, layers_by_device
from pia.models.profile import capability_of, curve_of
from quick_check import OPTIONS, assert_drafts_used, compare
from toys import prompts, tiny_model

accelerate = pytest.importorskip("accelerate")
CPU, META = torch.device("cpu"), torch.device("meta")
PART_ON_DISK = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}
ALL_ON_DISK = {**dict.fromkeys(PART_ON_DISK, "disk"), "model.rotary_emb": "cpu"}


def loaded(device_map, folder):
    tiny_model("llama").save_pretrained(folder / "saved")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "saved", device_map=device_map, offload_folder=folder / "offload"
    ).eval()
    model.generation_config.pad_token_id = 0
    return model


PLACES = {
    "cpu offload": lambda folder: accelerate.cpu_offload(tiny_model("llama"), execution_device=CPU),
    "disk offload": lambda folder: accelerate.disk_offload(tiny_model("llama"), folder, execution_device=CPU),
    "one device": lambda folder: loaded({"": "cpu"}, folder),
    "auto": lambda folder: loaded("auto", folder),
    "part on disk": lambda folder: loaded(PART_ON_DISK, folder),
    "all on disk": lambda folder: loaded(ALL_ON_DISK, folder),
}


@pytest.mark.parametrize("name", PLACES)
def test_text_is_the_same_wherever_the_weights_are(name, tmp_path):
    model = PLACES[name](tmp_path)
    held = {parameter.device for parameter in model.parameters()}
    for prompt in prompts(3, seed=3):
        out = compare(model, prompt)
        assert_drafts_used(out)
        assert out.sequences.device == CPU
        assert torch.equal(out.sequences, tiny_model("llama").generate(prompt, **OPTIONS))
    assert {parameter.device for parameter in model.parameters()} == held  # offloaded again
    assert input_device(model) == CPU and compute_dtype(model) == torch.float32


def test_costs_and_texts_of_an_offloaded_model(tmp_path):
    model = PLACES["disk offload"](tmp_path)
    assert model.device == META
    assert min(curve_of(model, capability_of(model, self_check=True)).seconds) > 0
    prompt = prompts(1, seed=3)[0]
    token_ids = prompt[0].tolist()
    for step in pia.decode(model, prompt, lookahead=pia.Lookahead(budget=4), **OPTIONS):
        token_ids += step.token_ids
    assert token_ids == model.generate(prompt, **OPTIONS)[0].tolist()


def test_layers_are_counted_by_device(tmp_path):
    assert layers_by_device(tiny_model("llama")) == {}  # on one device; nothing to divide
    assert layers_by_device(loaded(PART_ON_DISK, tmp_path)) == {CPU: 2}
    model = tiny_model("llama")
    model.hf_device_map = {"model.layers.0": "cpu", "model.layers.1": "meta"}
    model.model.layers[1].to("meta")
    model.model.layers[1]._hf_hook = SimpleNamespace(execution_device="xpu:1")  # computes where this machine cannot
    assert layers_by_device(model) == {CPU: 1, torch.device("xpu:1"): 1}


def test_each_device_gets_room_for_its_own_layers():
    cache = SlabCache(5, max_length=20, layers_by_device={CPU: 2, META: 3})
    for layer in range(5):
        states = torch.ones((1, 2, 4, 8), device=CPU if layer < 2 else META)
        keys, _ = cache.update(states, states, layer)
        assert keys.device == states.device and keys.shape == (1, 2, 4, 8)
    assert cache.memory_usage == 5 * 2 * 2 * 20 * 8 * 4  # layers, keys and values, heads, slots, dimensions, bytes
