"""Whole shrinks of a tiny model: what comes out, what is kept on the way, and what happens when it is killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ipad_checkpoints import OPTIONS, save_questions, save_small_model
from pia.errors import ModelError, ShrinkError
from pia.ipad import plan_shrink, rounds, shrink
from pia.ipad.quality import measure
from pia.ipad.rounds import steps_of_rounds

LOAD_WITHOUT_PIA = """
import sys
sys.modules["pia"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer("Ann has 3 apples", return_tensors="pt")
print(model.config.num_hidden_layers, model.config.intermediate_size, model.dtype)
print(model.generate(**ids, max_new_tokens=8, do_sample=False)[0].tolist())
"""
SHRINK = """
import json, sys, torch
torch.set_num_threads(1)
from pia.ipad import shrink
model, data, out, options = sys.argv[1:]
shrink(model, data, out, **json.loads(options))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ipad")
    save_small_model(folder / "model")
    save_questions(folder / "data.jsonl")
    return folder


@pytest.fixture(scope="module")
def done(place):
    return shrink(str(place / "model"), place / "data.jsonl", place / "out", **OPTIONS)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_every_round_is_a_stock_checkpoint_and_the_last_one_is_the_result(place, done):
    assert [str(r.shape) for r in done.record.rounds][-1] == "layers=2,kv_heads=2,ffn=32,hidden=32"
    assert len(done.record.rounds) > 1
    for record in done.record.rounds:
        folder = place / "out" / "rounds" / f"round-{record.number:02}"
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.config.num_hidden_layers == record.shape.num_layers
        assert model.config.intermediate_size == record.shape.ffn_size
        assert sum(p.numel() for p in model.parameters()) == record.parameters
        AutoTokenizer.from_pretrained(folder)
    assert weights(folder) == weights(place / "out")
    assert {p.dtype for p in AutoModelForCausalLM.from_pretrained(place / "out").parameters()} == {torch.bfloat16}


def test_the_result_loads_where_there_is_no_pia(place, done, tmp_path):
    command = [sys.executable, "-c", LOAD_WITHOUT_PIA, str(done.path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.splitlines()
    assert shown[0] == "2 32 torch.bfloat16"
    assert len(json.loads(shown[1])) > 8


def test_beside_the_model_lie_manifest_card_and_report(done):
    manifest = json.loads((done.path / "pia_shrink.json").read_text())
    assert manifest["data_fingerprint"] == done.record.data_fingerprint
    assert (done.path / "README.md").read_text().startswith("---\n")
    assert "<html" in (done.path / "report.html").read_text()
    assert (done.path / "report.md").exists()
    assert done.record.last.perplexity > 1
    assert done.record.last.tokens_per_second > 0


def test_the_same_call_again_does_nothing_and_says_the_same(place, done):
    before = os.stat(place / "out" / "rounds" / "round-01" / "model.safetensors").st_mtime_ns
    again = shrink(str(place / "model"), place / "data.jsonl", place / "out", **OPTIONS)
    assert again.record.to_json() == done.record.to_json()
    assert os.stat(place / "out" / "rounds" / "round-01" / "model.safetensors").st_mtime_ns == before


def test_other_settings_for_the_same_folder_are_refused_and_named(place, done):
    with pytest.raises(ShrinkError, match=r"steps = 6, and this one has 7.*--overwrite"):
        shrink(str(place / "model"), place / "data.jsonl", place / "out", **{**OPTIONS, "steps": 7})
    assert weights(place / "out")


def test_overwriting_with_a_mistake_loses_nothing(place, done):
    with pytest.raises(ShrinkError, match="no file"):
        shrink(str(place / "model"), place / "typo.jsonl", place / "out", overwrite=True, **OPTIONS)
    assert weights(place / "out")
    again = shrink(str(place / "model"), place / "data.jsonl", place / "out", **OPTIONS)
    assert again.record.to_json() == done.record.to_json()


def test_deleted_rounds_of_a_finished_shrink_are_not_missed(place, done, tmp_path):
    copy = shutil.copytree(place / "out", tmp_path / "out")
    shutil.rmtree(copy / "rounds")
    again = shrink(place / "model", place / "data.jsonl", copy, **OPTIONS)
    assert again.record.to_json() == done.record.to_json()
    assert weights(copy) == weights(place / "out")


@pytest.mark.slow
def test_a_loaded_model_is_left_as_it_was_and_gives_the_same_weights(place, done, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(place / "model")
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = shrink(model, place / "data.jsonl", tmp_path / "out", tokenizer=tokenizer, **OPTIONS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert weights(found.path) == weights(done.path)


def test_a_loaded_model_needs_its_tokenizer(place, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(place / "model")
    with pytest.raises(ModelError, match="tokenizer"):
        shrink(model, place / "data.jsonl", tmp_path / "out", **OPTIONS)


@pytest.mark.slow
def test_a_cached_teacher_serves_as_well_and_is_removed(place, tmp_path):
    options = {**OPTIONS, "teacher": "cache", "top_k": 32}
    found = shrink(str(place / "model"), place / "data.jsonl", tmp_path / "out", **options)
    assert found.record.last.shape.num_layers == 2
    assert not (tmp_path / "out" / ".shrink" / "teacher").exists()


@pytest.mark.parametrize(
    ("num_steps", "num_rounds", "share", "expected"),
    [
        (10, 1, 0.5, [10]),
        (10, 2, 0.5, [5, 5]),
        (12, 4, 0.5, [2, 2, 2, 6]),
        (4, 4, 0.9, [1, 1, 1, 1]),
        (9, 3, 0.1, [4, 4, 1]),
    ],
)
def test_steps_are_dealt_out_to_rounds(num_steps, num_rounds, share, expected):
    assert steps_of_rounds(num_steps, num_rounds, share) == expected


def test_fewer_steps_than_rounds_are_refused():
    with pytest.raises(ShrinkError, match="3 steps"):
        steps_of_rounds(3, 4, 0.5)


def test_a_round_below_the_floor_is_rolled_back(place, done, tmp_path, monkeypatch):
    """The tiny model's texts are noise, so that rounds get worse is put on."""

    def worse_with_every_layer_that_goes(student, *args):
        quality = measure(student, *args)
        return replace(quality, perplexity=quality.perplexity * 1.5 ** (4 - student.config.num_hidden_layers))

    monkeypatch.setattr(rounds, "measure", worse_with_every_layer_that_goes)
    found = shrink(str(place / "model"), place / "data.jsonl", tmp_path / "out", **{**OPTIONS, "max_perplexity": 1.8})
    assert found.record.last.shape.num_layers == 3
    assert "rolled back" in found.record.notes[-1]
    last = found.record.last.number
    kept = sorted(path.name for path in (tmp_path / "out" / "rounds").iterdir())
    assert kept == [f"round-{number:02}" for number in range(1, last + 1)]
    assert weights(tmp_path / "out") == weights(place / "out" / "rounds" / f"round-{last:02}")


def test_where_no_round_holds_it_says_what_to_do(place, tmp_path):
    with pytest.raises(ShrinkError, match=r"no round was kept.*--steps"):
        shrink(str(place / "model"), place / "data.jsonl", tmp_path / "out", **{**OPTIONS, "max_perplexity": 1e-3})


def test_a_disk_without_room_is_refused_before_training(place, tmp_path, monkeypatch):
    usage = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result((*usage[:3], 0, 0, *usage[5:])))
    with pytest.raises(ShrinkError, match="GiB"):
        shrink(str(place / "model"), place / "data.jsonl", tmp_path / "out", **OPTIONS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": 1e-6, "shape": None}, "the closest is"),
        ({"shape": "layers=9"}, "layers=9"),
        ({"shape": "depth=3"}, "depth"),
        ({"stepz": 3}, "unknown option 'stepz'"),
        ({"target": 0.5}, "either a shape or shares"),
        ({"round_share": 0.0}, "share"),
        ({"max_length": 1}, "max_length"),
        ({"axes": ("depth",)}, "depth"),
        ({"last_share": 1.5}, "last_share"),
        ({"importance": "magic"}, "importance"),
    ],
)
def test_what_cannot_be_is_refused_with_its_name(place, tmp_path, change, message):
    options = {name: value for name, value in {**OPTIONS, **change}.items() if value is not None}
    with pytest.raises(ShrinkError, match=message):
        shrink(str(place / "model"), place / "data.jsonl", tmp_path / "out", **options)


def test_too_little_data_is_refused_with_what_is_needed(place, tmp_path):
    few = save_questions(tmp_path / "few.jsonl", 5)
    with pytest.raises(ShrinkError, match=r"5 different rows, and .* are needed"):
        shrink(str(place / "model"), few, tmp_path / "out", **OPTIONS)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ShrinkError, match=r"empty.jsonl is empty"):
        shrink(str(place / "model"), tmp_path / "empty.jsonl", tmp_path / "out", **OPTIONS)


def test_quantised_weights_are_refused(place, tmp_path):
    folder = save_small_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ShrinkError, match="quantised"):
        shrink(str(folder), place / "data.jsonl", tmp_path / "out", **OPTIONS)


def test_a_plan_trains_and_writes_nothing(place, done):
    plan = plan_shrink(str(place / "model"), place / "data.jsonl", **OPTIONS)
    assert [r.shape for r in plan.rounds] == [r.shape for r in done.record.rounds]
    assert plan.final.cost.parameters == done.record.last.parameters


def run_and_kill(command: list[str], delay: float | None) -> bool:
    """Whether the process came to its end before it was killed."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        _, error = process.communicate(timeout=delay)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return False
    assert process.returncode == 0, error
    return True


@pytest.mark.slow
@pytest.mark.parametrize("recovery", ["full", "lora"])
def test_killed_at_any_moment_it_comes_to_the_same_bytes(place, tmp_path, recovery):
    options = json.dumps({**OPTIONS, "recovery": recovery, "lora_rank": 4})
    common = [sys.executable, "-c", SHRINK, str(place / "model"), str(place / "data.jsonl")]
    started = time.monotonic()
    assert run_and_kill([*common, str(tmp_path / "whole"), options], None)
    longest = time.monotonic() - started
    rng, kills = random.Random(0), 0
    share = 0.4  # the first one comes too early even where the machine has become idle since
    while not run_and_kill([*common, str(tmp_path / "killed"), options], share * longest):
        share = rng.uniform(0.3, 1.05)
        kills += 1
        assert kills < 30
    assert kills
    for number in (1, 2):
        name = f"rounds/round-{number:02}/model.safetensors"
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    assert weights(tmp_path / "whole") == weights(tmp_path / "killed")
    assert load_file(tmp_path / "killed" / "model.safetensors")
