"""Each converter against the original's formulas: the stock model gives the same logits from the converted weights."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
from convert_support import CONFIGS, LAYERS, TARGETS, VOCAB, reference_logits, write_original
from transformers import AutoModelForCausalLM

from pia.models.convert.conversion import convert

FIXTURE = Path(__file__).parent / "original_formulas" / "logits.json"
TOLERANCE = 1e-9
IDS = torch.arange(7, 7 + 31 * 16, 31) % VOCAB


@contextmanager
def double_throughout():
    """Stock models compute norms, angles and softmax in float32; here these steps are in float64 as well."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with (
            mock.patch.object(torch, "float32", torch.float64),
            mock.patch.object(torch, "float", torch.float64),
            mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
        ):
            yield
    finally:
        torch.set_default_dtype(default)


def stock_logits(model, ids):
    """Logits `[length, vocab]` of a stock model, all in float64."""
    with torch.no_grad(), double_throughout():
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
        return model(ids[None], use_cache=False).logits[0]


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def converted(request, tmp_path_factory):
    """Name, original weights and converted model of each configuration."""
    folder = tmp_path_factory.mktemp(request.param)
    state = write_original(folder / "src", request.param)
    done = convert(folder / "src", folder / "dst")
    assert done.dtype == "float64"
    model = AutoModelForCausalLM.from_pretrained(folder / "dst", dtype=torch.float64, attn_implementation="eager")
    return request.param, state, model.eval(), folder / "dst"


def distance(one, other):
    return float((one - other).abs().max() / other.std())


def test_logits_are_those_of_the_original_formulas(converted):
    name, state, model, _ = converted
    assert model.config.model_type == TARGETS[CONFIGS[name]["model_type"]]
    assert distance(stock_logits(model, IDS), reference_logits(name, state, IDS)) < TOLERANCE


def test_the_comparison_sees_a_wrong_layout(converted):
    """Every kind of matrix, given wrongly, shows in the logits."""
    name, state, model, _ = converted
    expected = reference_logits(name, state, IDS)
    matrices = {key.split(f"layers.{LAYERS - 1}.")[1] for key in model.state_dict() if f"layers.{LAYERS - 1}." in key}
    for part in sorted(matrices):
        weight = model.get_parameter(f"model.layers.{LAYERS - 1}.{part}")
        kept = weight.data.clone()
        weight.data = kept.roll(1, 0)
        assert distance(stock_logits(model, IDS), expected) > 1e-4, part
        weight.data = kept
    assert distance(stock_logits(model, IDS), expected) < TOLERANCE


def test_numbers_on_record(converted):
    """The formulas and the converter could be wrong together after a change; the numbers on record stay."""
    name, state, model, _ = converted
    record = json.loads(FIXTURE.read_text())["logits"][name]
    expected = torch.tensor(record, dtype=torch.float64)
    for logits in (reference_logits(name, state, IDS), stock_logits(model, IDS)):
        assert torch.allclose(logits[[0, 7, 15]][:, [0, 100, 511]], expected, rtol=0, atol=1e-8)


def test_the_new_folder_is_stock(converted):
    dst = converted[-1]
    config = json.loads((dst / "config.json").read_text())
    assert "auto_map" not in config
    assert config["dtype"] == "float64"
    assert sorted(path.name for path in dst.iterdir()) == ["config.json", "generation_config.json", "model.safetensors"]


def write_fixture():
    """Makes the numbers on record anew: `python -c "import test_convert_weights as t; t.write_fixture()"` in here."""
    from convert_support import original_state

    note = (
        "Logits at positions 0, 7, 15 and tokens 0, 100, 511 for the token ids (7 + 31 i) mod 512, i = 0..15; weights "
        "by convert_support.original_state (numpy RandomState, seed 0), logits by rotary_decoders.py in float64."
    )
    logits = {}
    for name in sorted(CONFIGS):
        rows = reference_logits(name, original_state(name), IDS)[[0, 7, 15]][:, [0, 100, 511]]
        logits[name] = [[round(value, 10) for value in row] for row in rows.tolist()]
    FIXTURE.write_text(json.dumps({"note": note, "logits": logits}, indent=1) + "\n")
