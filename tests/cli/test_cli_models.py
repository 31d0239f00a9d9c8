"""`pia models`: the table, and one model's own row."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from cli_support import assert_one_line_error

from pia.models.families import all_families

_TINY = dict(vocab_size=97, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)


def test_the_table_has_every_family(run_here):
    shown = run_here("models").stdout
    assert all(family.name in shown for family in all_families())
    assert "ChatGLM2 and ChatGLM3: Glm" in shown  # what pia convert makes of legacy checkpoints
    assert all(note in " ".join(shown.split()) for note in {family.note for family in all_families()})


def test_the_table_fits_a_narrow_terminal(run_here):
    rows = [line for line in run_here("models").stdout.splitlines() if line.startswith(" ")]
    assert len(rows) > len(all_families())
    assert max(map(len, rows)) <= 80  # notes below it wrap


def test_json_is_one_line(run_here):
    shown = run_here("models", "--json").stdout
    assert json.loads(shown)["families"] == [family.as_dict() for family in all_families()]
    assert {"family": "InternLM2", "becomes": "Llama"} in json.loads(shown)["conversions"]


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A folder with weights and without a tokenizer."""
    torch.manual_seed(0)
    config = transformers.Gemma3TextConfig(
        **_TINY, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
    )
    transformers.Gemma3ForCausalLM(config).save_pretrained(tmp_path / "gemma")
    return tmp_path / "gemma"


def test_one_model(run_here, saved):
    shown = run_here("models", str(saved)).stdout
    assert "Gemma3ForCausalLM" in shown and "by type" in shown and "gemma3_text" in shown
    assert "Verdict: accelerated: token trees are verified" in shown
    facts = json.loads(run_here("models", str(saved), "--json").stdout)
    assert (facts["mode"], facts["masks"], facts["can_batch"]) == ("tree", "by type", True)


def test_a_model_that_is_nowhere(run_here):
    assert_one_line_error(run_here("models", "./no-model"), "no folder", "no-model")
