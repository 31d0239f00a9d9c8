"""Whole shrinks of tiny models with experts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from ipad_checkpoints import OPTIONS, save_questions, save_tokenizer
from pia.bench.plot_style import has_matplotlib
from pia.errors import ShrinkError
from pia.ipad import plan_shrink, shrink
from pia.ipad.structure import structure_of

SIZES = dict(
    vocab_size=2048, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=1024, initializer_range=0.1, tie_word_embeddings=False, eos_token_id=1, pad_token_id=0,
    bos_token_id=None, num_experts_per_tok=2,
)  # fmt: skip
MODELS = {
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SIZES, intermediate_size=48, num_local_experts=6)),
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **SIZES, moe_intermediate_size=48, intermediate_size=64, num_experts=6, head_dim=16, norm_topk_prob=True
        )
    ),
}
CUT = {**OPTIONS, "shape": "layers=1,kv_heads=1,ffn=32,experts=3", "round_share": 0.5, "steps": 4}
LOAD_WITHOUT_PIA = """
import sys
sys.modules["pia"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer("Ann has 3 apples", return_tensors="pt")
print(type(model).__name__, model.config.num_local_experts, model.model.layers[0].mlp.experts.down_proj.shape[0])
print(model.generate(**ids, max_new_tokens=8, do_sample=False)[0].tolist())
"""


def save(folder: Path, family: str) -> Path:
    torch.manual_seed(0)
    MODELS[family]().to(torch.bfloat16).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module", params=MODELS)
def place(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    save(folder / "model", request.param)
    save_questions(folder / "data.jsonl")
    return folder


@pytest.fixture(scope="module")
def done(place):
    return shrink(str(place / "model"), place / "data.jsonl", place / "out", **CUT)


def test_experts_are_cut_and_the_rest_with_them(place, done):
    assert str(done.record.last.shape) == "layers=1,kv_heads=1,ffn=32,hidden=32,experts=3"
    assert len(done.record.rounds) > 1
    for record in done.record.rounds:
        model = AutoModelForCausalLM.from_pretrained(place / "out" / "rounds" / f"round-{record.number:02}")
        assert structure_of(model).shape == record.shape
        assert sum(p.numel() for p in model.parameters()) == record.parameters
        assert record.perplexity > 1 and record.tokens_per_second > 0
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.slow
def test_the_result_loads_where_there_is_no_pia(done):
    command = [sys.executable, "-c", LOAD_WITHOUT_PIA, str(done.path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert shown[0].split()[1:] == ["3", "3"] and shown[0].endswith("3")
    assert len(json.loads(shown[1])) > 8


def test_what_lies_beside_it_tells_of_experts(done):
    manifest = json.loads((done.path / "pia_shrink.json").read_text())
    kept = manifest["kept"]["experts"]
    assert len(kept) == 1 and all(len(row) == 3 for row in kept)
    assert done.record.scores.experts.shape == (2, 6)
    assert manifest["scores"]["experts"]["sum"] == pytest.approx(done.record.scores.experts.sum())
    gone = [unit for item in manifest["rounds"] for units in item["cut"]["experts"].values() for unit in units]
    assert gone and set(gone) <= set(range(6))
    page = (done.path / "report.html").read_text()
    if has_matplotlib():
        assert "Importance of experts" in page
        assert (done.path / "report_experts.png").stat().st_size > 1000
    else:
        assert "Matplotlib is not installed" in page


def test_the_same_call_again_says_the_same(place, done):
    again = shrink(str(place / "model"), place / "data.jsonl", place / "out", **CUT)
    assert again.record.to_json() == done.record.to_json()


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        dict(importance="activation", layer_importance="influence", optimizer="muon"),
        dict(recovery="lora", lora_rank=2),
        dict(teacher="cache", top_k=32),
    ],
    ids=["activation", "lora", "cache"],
)
def test_other_ways(place, tmp_path, change):
    options = {**CUT, "shape": "experts=4", "round_share": 1.0, "steps": 2, **change}
    found = shrink(str(place / "model"), place / "data.jsonl", tmp_path / "out", **options)
    assert found.record.last.shape.num_experts == 4


def test_a_target_plans_experts_and_fewer_than_a_token_needs_are_refused(place):
    options = {**{name: value for name, value in CUT.items() if name != "shape"}, "axes": ("experts", "ffn")}
    plan = plan_shrink(str(place / "model"), place / "data.jsonl", target=0.6, **options)
    assert 2 <= plan.final.shape.num_experts <= 6
    assert plan.final.cost.non_embedding <= 0.6 * plan.original.cost.non_embedding
    with pytest.raises(ShrinkError, match="each token goes to 2 experts"):
        plan_shrink(str(place / "model"), place / "data.jsonl", **{**CUT, "shape": "experts=1"})
