"""Which engine runs a model's steps, and why: programs on the disk, measurement, fallbacks with their reasons."""

from __future__ import annotations

import shutil

import pytest
import torch
from checks import prompts
from zoo import build

import pia
from pia.errors import UnsupportedOptionError
from pia.models import engine as engines
from pia.models.capability import declared_capability
from pia.models.engine import find_engine
from pia.models.profile import capability_of, engine_of
from pia.models.static import compiled
from pia.models.static.programs import _example
from pia.models.static.store import files_of, may_have_programs
from toys import VOCAB, ToySource, tiny_model


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("PIA_PROGRAMS", str(tmp_path / "programs"))


@pytest.fixture
def uncompiled(monkeypatch):
    """The step itself in place of compiled programs; counts how often they were made."""
    made = []

    def build_programs(model, files, say=print):
        files.folder.mkdir(parents=True)
        files.one.write_bytes(b"")
        files.tree.write_bytes(b"")
        made.append(_example(model, 4)[0])

    monkeypatch.setattr(engines, "build_programs", build_programs)
    monkeypatch.setattr(compiled, "load_program", lambda path: made[-1])
    return made


def found(model, wanted):
    return find_engine(model, declared_capability(model), wanted)


def test_unknown_engines_are_refused():
    with pytest.raises(UnsupportedOptionError, match="engine='fast' is unknown"):
        pia.Lookahead(engine="fast")


def test_auto_makes_no_programs_and_says_how_to():
    engine = found(tiny_model("llama"), "auto")
    assert engine.name == "eager" and "pia compile" in engine.reason


def test_compile_makes_programs_once(uncompiled):
    model = tiny_model("llama")
    assert found(model, "compile").name == "compile"
    assert found(tiny_model("llama"), "compile").name == "compile"
    assert len(uncompiled) == 1


def test_auto_takes_what_is_faster(uncompiled, monkeypatch):
    model = tiny_model("llama")
    found(model, "compile")
    for eager_s, other_s, name, words in (
        ([2e-3, 4e-3], [1e-3, 2e-3], "compile", "1.0 and 2.0 for 2.0 and 4.0 ms at 1 and 16 tokens"),
        ([2e-3, 4e-3], [3e-3, 4e-3], "eager", "not faster here"),
    ):
        monkeypatch.setattr(engines, "time_runners", lambda *_, result=[eager_s, other_s]: result)
        engine = found(model, "auto")
        assert engine.name == name and words in engine.reason


def test_programs_of_other_weights_are_left_alone(uncompiled):
    model = tiny_model("llama")
    found(model, "compile")
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    assert may_have_programs(model)
    engine = found(model, "auto")
    assert engine.name == "eager" and "other weights" in engine.reason


def test_programs_that_answer_otherwise_are_not_used(uncompiled, monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr(compiled, "load_program", lambda path: lambda *args: uncompiled[-1](*args).flip(-1))
    engine = found(model, "compile")
    assert engine.name == "eager" and "logits are off" in engine.reason


def test_programs_that_do_not_fit_into_memory_are_not_loaded(uncompiled, monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr(engines, "free_memory", lambda: -1)
    engine = found(model, "compile")
    assert engine.name == "eager" and "MiB are free" in engine.reason


def test_a_compiler_that_refuses_is_quoted(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(engines, "build_programs", refuse)
    engine = found(tiny_model("llama"), "compile")
    assert engine.name == "eager" and "no C++ compiler" in engine.reason


@pytest.mark.parametrize("change", ["weights", "hooks", "training"])
def test_a_model_that_changes_is_not_run_by_its_old_programs(uncompiled, change):
    model = tiny_model("llama")
    capability = capability_of(model, self_check=True)
    assert engine_of(model, capability, "compile").name == "compile"
    if change == "weights":
        with torch.no_grad():
            model.lm_head.weight.mul_(1.5)
        assert engine_of(model, capability, "auto").name == "eager"
    else:
        handle = model.model.register_forward_hook(lambda *_: None) if change == "hooks" else model.train()
        assert engine_of(model, capability, "compile").name == "eager"
        model.eval() if change == "training" else handle.remove()
        assert engine_of(model, capability, "compile").name == "compile"


def test_generations_by_programs_are_those_of_generate(uncompiled):
    model = tiny_model("qwen3")
    accepted = 0
    for number, prompt in enumerate(prompts(6, VOCAB)):
        kwargs = dict(max_new_tokens=25, do_sample=number % 2 == 1, eos_token_id=None)
        torch.manual_seed(number)
        expected = model.generate(prompt, **kwargs)
        lookahead = pia.Lookahead(ToySource(expected[0].tolist(), 0.7, seed=number), budget=10, engine="compile")
        torch.manual_seed(number)
        output = model.generate(prompt, custom_generate=lookahead, **kwargs)
        assert output.tolist() == expected.tolist() and lookahead.last_stats.engine == "compile"
        accepted += lookahead.last_stats.num_accepted
    assert accepted
    batch = torch.cat([prompts(1, VOCAB)[0]] * 2)
    model.generate(batch, custom_generate=lookahead, max_new_tokens=4, do_sample=False)
    assert lookahead.last_stats.engine == "eager" and "batch" in lookahead.last_stats.engine_reason


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_real_programs_give_the_texts_of_generate(name):
    model = build(name)
    engine = found(model, "compile")
    assert engine.name == "compile", engine.reason
    assert files_of(model).size > 0
    accepted = 0
    for number, prompt in enumerate(prompts(12, VOCAB, longest=200)):
        kwargs = dict(max_new_tokens=60, do_sample=False, eos_token_id=None)
        expected = model.generate(prompt, **kwargs)
        lookahead = pia.Lookahead(
            ToySource(expected[0].tolist(), 0.8, seed=number), budget=1 + 5 * number, engine="compile"
        )
        output = model.generate(prompt, custom_generate=lookahead, **kwargs)
        assert output.tolist() == expected.tolist() and lookahead.last_stats.engine == "compile"
        accepted += lookahead.last_stats.num_accepted
    assert accepted
