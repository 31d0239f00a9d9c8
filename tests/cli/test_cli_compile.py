"""`pia compile`: what it says, what it refuses, and that it does not do twice what is done."""

from __future__ import annotations

import pytest
import transformers

from pia.models.static import programs
from toys import tiny_model


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("PIA_PROGRAMS", str(tmp_path / "programs"))


@pytest.fixture
def folder(tmp_path):
    """A tiny model on disk."""
    tiny_model("llama").save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_it_says_what_came_of_it_and_does_not_do_it_again(run_here, folder, monkeypatch):
    built = []
    monkeypatch.setattr(programs, "_build", lambda model, num_tokens, path: (built.append(num_tokens), path.touch()))
    result = run_here("compile", folder)
    assert result.returncode == 0, result.stderr
    assert "engine eager" in result.stdout  # these empty files are no programs
    assert built == [1, programs._EXAMPLE_TOKENS]
    assert "compiled in" in result.stderr
    result = run_here("compile", folder)
    assert "--force" in result.stderr and len(built) == 2
    run_here("compile", folder, "--force")
    assert len(built) == 4


def test_a_compiler_that_fails_is_one_line(run_here, folder, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no C++ compiler\nfound")

    monkeypatch.setattr(programs, "_build", refuse)
    assert_refused(run_here("compile", folder), "cannot be compiled", "no C++ compiler found")


def test_what_cannot_be_compiled_is_refused(run_here, tmp_path):
    config = transformers.BloomConfig(vocab_size=97, hidden_size=32, n_layer=1, n_head=2)
    transformers.BloomForCausalLM(config).save_pretrained(tmp_path / "bloom")
    assert_refused(run_here("compile", tmp_path / "bloom"), "cannot be compiled", "slots")
    assert_refused(run_here("compile", tmp_path / "nothing"), "no folder")


def assert_refused(result, *parts):
    """One line says so, behind the bar that weights are loaded with."""
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 2 and last.startswith("pia: ") and all(part in last for part in parts), result.stderr


def test_an_unknown_engine_is_refused(pia):
    result = pia("generate", "demo", "--prompt", "x", "--engine", "fast")
    assert result.returncode == 2 and "invalid choice: 'fast'" in result.stderr


def test_env_says_which_engine_and_where_programs_are(pia):
    result = pia("env", "--model", "demo", "--json", PIA_PROGRAMS="elsewhere")
    assert result.returncode == 0, result.stderr
    assert '"engine": "eager"' in result.stdout and "pia compile" in result.stdout and "elsewhere" in result.stdout
    assert result.stderr == ""
