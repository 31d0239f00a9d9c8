"""`pia shrink`: what it shows, what it leaves, what it refuses, and how it goes on."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers
from cli_support import assert_one_line_error, environment

from ipad_checkpoints import OPTIONS, save_questions, save_small_model
from pia.cli import build_parser
from pia.cli.shrink_table import RoundsTable
from pia.ipad.record import RoundRecord
from pia.ipad.selection import Selection
from pia.ipad.shape import Shape
from toys import tiny_model

SETTINGS = [word for name, value in OPTIONS.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A small model, data, and what a shrink made of them: a finished process, and its folder `out`."""
    folder = tmp_path_factory.mktemp("shrink")
    save_small_model(folder / "model")
    save_questions(folder / "data.jsonl")
    command = [sys.executable, "-m", "pia", "shrink", "model", "--data", "data.jsonl", "--out", "out", *SETTINGS]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment(), timeout=240)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(
        folder=folder, model=folder / "model", data=folder / "data.jsonl", out=folder / "out", done=done
    )


@pytest.fixture
def shrink(run_here, place):
    """Runs `pia shrink` with the small model, data and settings, as far as they are not said otherwise."""

    def run(*args, model=place.model, data=place.data, out="new", settings=SETTINGS):
        where = [] if out is None else ["--out", out]
        return run_here("shrink", model, "--data", data, *where, *settings, *args)

    return run


def test_the_screen_says_what_it_works_on_and_how_each_round_went(place):
    lines = place.done.stdout.splitlines()
    assert lines[0] == "Model     model: llama, layers=4,kv_heads=2,ffn=64,hidden=32"
    assert "M parameters" in lines[1]
    assert lines[2].startswith("Training  ") and "lost what was too long" in lines[2]
    assert lines[3].startswith("Held out  8 rows of ")
    assert lines[4] == "Aim       layers=2,kv_heads=2,ffn=32,hidden=32 in 3 rounds"
    assert lines[6].split() == ["layers", "FFN", "kept", "perplexity", "agrees", "tokens/s", "loss"]
    assert [line.split("  ")[0] for line in lines[7:11]] == ["original", "round 1", "round 2", "round 3"]
    assert lines[12].startswith("out: layers=2,kv_heads=2,ffn=32,hidden=32, ")
    assert max(map(len, lines)) <= 100


def test_nothing_else_is_said(place):
    assert place.done.stderr == ""


def test_the_manifest_holds_the_command(place):
    command = json.loads((place.out / "pia_shrink.json").read_text())["command"]
    assert command.startswith("pia shrink model --data data.jsonl --out out ")


def test_the_same_command_again_says_that_all_is_done(shrink, place):
    before = (place.out / "model.safetensors").read_bytes()
    result = shrink(out=place.out)
    assert result.returncode == 0, result.stderr
    assert "All rounds were done before." in result.stdout
    assert result.stderr == ""
    assert (place.out / "model.safetensors").read_bytes() == before


def test_json_is_one_object_alone(shrink, place):
    result = shrink("--json", out=place.out)
    found = json.loads(result.stdout)
    assert found["shape"] == "layers=2,kv_heads=2,ffn=32,hidden=32"
    assert found["path"] == str(place.out)
    assert found["shrunk"]["parameters"] < found["original"]["parameters"]
    assert result.stderr == ""


def test_the_plan_trains_and_writes_nothing(shrink, tmp_path):
    result = shrink("--plan", out=None)
    assert result.returncode == 0, result.stderr
    assert "round 3" in result.stdout and "Nothing was trained or written" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert result.stderr == ""
    assert not [*tmp_path.iterdir()]


def test_a_plan_as_json(shrink):
    found = json.loads(shrink("--plan", "--json", out=None).stdout)
    assert found["rounds"][-1]["shape"]["num_layers"] == 2


@pytest.mark.slow
def test_interrupted_it_says_how_to_go_on_and_does(place, tmp_path):
    command = [sys.executable, "-m", "pia", "shrink", "model", "--data", "data.jsonl", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [*command, *SETTINGS], cwd=place.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(),
    )  # fmt: skip
    while "round 1" not in (process.stdout.readline() or "round 1"):
        pass
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    first, last = error.strip().splitlines()
    assert "the same command goes on" in first and str(tmp_path / "out") in first
    assert last == "pia: interrupted"
    again = subprocess.run([*command, *SETTINGS], cwd=place.folder, capture_output=True, text=True, env=environment())
    assert again.returncode == 0, again.stderr
    assert "going on with round 2" in again.stdout
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (place.out / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_terminal_sees_the_bar(place, tmp_path):
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "pia", "shrink", "model", "--data", "data.jsonl", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [*command, *SETTINGS], cwd=place.folder, stdout=subprocess.DEVNULL, stderr=slave,
        env=environment(TERM="xterm-256color", COLUMNS="100"),
    )  # fmt: skip
    os.close(slave)
    shown = b""
    while process.poll() is None:
        try:
            shown += os.read(master, 1 << 16)
        except OSError:
            break
    assert process.wait() == 0
    text = shown.decode(errors="replace")
    assert "loading the model" in text and "which units matter" in text and "measuring round 3" in text
    assert "step " in text and "loss " in text and "tokens/s" in text and "left" in text
    assert "Loading weights" not in text and "Writing model" not in text


def test_the_table_fits_a_terminal_whatever_the_model():
    large = Shape(126, 128, 53248, 16384, 256)
    small = Shape(100, 64, 28672, 12288, 128)
    everything = Selection.everything(Shape(2, 2, 4, 4))
    original = RoundRecord(0, large, everything, 10**11, 10**11, 123456.7, None, None, 12345.6)
    last = RoundRecord(12, small, everything, 10**10, 10**10, 123456.7, 1.0, 1.0, 123456.7, [(1, 1.25)])
    table = RoundsTable(original, [small])
    lines = [table.head, table.line(original), table.line(last)]
    assert max(map(len, lines)) <= 100


def test_the_guide_names_every_option_and_none_that_is_not_there():
    text = (Path(__file__).parents[2] / "docs" / "shrink.md").read_text()
    shrink_parser = build_parser()._subparsers._group_actions[0].choices["shrink"]
    ours = {option for action in shrink_parser._actions for option in action.option_strings if option[:2] == "--"}
    of_others = {"--num_processes", "--cpu", "--prompts", "--assistant", "--prompt"}
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))
    assert named - of_others <= ours
    assert ours - named <= {"--help", "--device", "--dtype", "--seed", "--weight-decay"}


def bad_data(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    return path


def test_no_folder_for_the_result(shrink):
    assert_one_line_error(shrink(out=None), "--out DIR", "--plan")


def test_no_such_model(shrink):
    assert_one_line_error(shrink(model="./nowhere"), "there is no folder './nowhere'")


def test_no_such_data(shrink):
    assert_one_line_error(shrink(data="nothing.jsonl"), "there is no file nothing.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", "", "is empty"),
        ("a.jsonl", "Tom has 3 apples\n", "line 1: this is not JSON"),
        ("a.jsonl", '{"text": "Tom has"}\n{"txt": "x"}\n', "line 2: only txt is there"),
        ("a.jsonl", '{"text": "Tom has 3 apples."}\n', "1 different rows, and 32 are needed"),
        ("a.dat", "Tom has 3 apples.", "cannot be told from its name"),
    ],
)
def test_bad_data(shrink, tmp_path, name, content, said):
    assert_one_line_error(shrink(data=bad_data(tmp_path, name, content)), said)
    assert not (tmp_path / "new" / "config.json").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--target", "1.5"], "target 1.5 is no share"),
        (["--target", "0"], "target 0 is no share"),
        (["--target", "0.0001"], "no shape keeps only"),
        (["--target-latency", "-1"], "target latency -1 is no share"),
        (["--shape", "layers=9"], "layers"),
        (["--shape", "depth=2"], "no size 'depth'"),
        (["--shape", "layers=2", "--target", "0.5"], "either a shape or shares"),
        (["--target", "0.5", "--axes", "heads"], "no axis 'heads'"),
        (["--target", "0.5", "--tensor-parallel", "3"], "divisible by 3"),
        (["--target", "0.5", "--steps", "1"], "steps"),
        (["--round-share", "0"], "round"),
        (["--last-share", "2"], "last_share"),
        (["--held-out-share", "1"], "held_out_share"),
        (["--held-out", "none.jsonl"], "none.jsonl"),
        (["--max-perplexity", "0"], "max_perplexity"),
        (["--learning-rate", "0"], "learning_rate"),
        (["--teacher", "cache", "--hidden-weight", "1"], "hidden"),
        (["--recovery", "lora", "--optimizer", "muon"], "adamw"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_bad_options(shrink, tmp_path, options, said):
    assert_one_line_error(shrink(*options, settings=[]), said)
    assert not (tmp_path / "new" / "config.json").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--stepz", "3"], "unrecognized arguments: --stepz"),
        (["--steps", "x"], "--steps"),
        (["--importance", "luck"], "invalid choice: 'luck'"),
    ],
)
def test_options_that_are_none(shrink, options, said):
    assert_one_line_error(shrink(*options), said, "--help")


def test_a_family_that_is_not_supported(shrink, place, tmp_path):
    folder = with_tokenizer(place, tmp_path / "bloom")
    config = transformers.BloomConfig(vocab_size=2048, hidden_size=32, n_layer=1, n_head=2)
    transformers.BloomForCausalLM(config).save_pretrained(folder)
    assert_one_line_error(shrink(model=folder), "'bloom' cannot be shrunk yet; supported are llama")


def test_a_quantised_model(shrink, place, tmp_path):
    folder = changed_config(place, tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    assert_one_line_error(shrink(model=folder), "quantised")


def test_an_adapter(shrink, place, tmp_path):
    import peft

    model = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(place.model), peft.LoraConfig(target_modules=["q_proj"])
    )
    model.save_pretrained(with_tokenizer(place, tmp_path / "adapter"))
    assert_one_line_error(shrink(model=tmp_path / "adapter"), "adapter", "merge_and_unload")


def test_a_vocabulary_that_is_not_the_models(shrink, place, tmp_path):
    folder = with_tokenizer(place, tmp_path / "tiny")
    tiny_model("llama").save_pretrained(folder)
    assert_one_line_error(shrink(model=folder), "the tokenizer makes tokens up to", "knows 97")


def test_a_folder_of_something_else(shrink, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "thesis.tex").write_text("x")
    assert_one_line_error(shrink(), "new holds something other than a shrink")
    assert_one_line_error(shrink("--overwrite"), "new holds something other than a shrink")
    assert (tmp_path / "new" / "thesis.tex").read_text() == "x"


def test_a_place_that_is_no_folder(shrink, tmp_path):
    (tmp_path / "new").write_text("x")
    assert_one_line_error(shrink(), "is no folder")
    assert_one_line_error(shrink(out="no/such/place"), "there is no folder")


@pytest.mark.parametrize("options", [["--seed", "1"], ["--steps", "7"], ["--learning-rate", "0.1"]])
def test_other_settings_for_a_folder_that_is_begun(shrink, place, options):
    name = options[0].removeprefix("--").replace("-", "_")
    assert_one_line_error(shrink(*options, out=place.out), name, "--overwrite")


def test_other_data_for_a_folder_that_is_begun(shrink, place, tmp_path):
    assert_one_line_error(shrink(data=save_questions(tmp_path / "b.jsonl", 70), out=place.out), "data", "--overwrite")


def with_tokenizer(place, folder):
    transformers.AutoTokenizer.from_pretrained(place.model).save_pretrained(folder)
    return folder


def changed_config(place, tmp_path, **changes):
    import shutil

    folder = tmp_path / "changed"
    shutil.copytree(place.model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder
