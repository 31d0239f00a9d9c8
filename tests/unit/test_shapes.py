"""Models of known shapes: the right sizes, usable weights, clear refusals."""

from __future__ import annotations

import pytest
import torch

from pia.bench import shapes
from pia.bench.shapes import SHAPES, Shape, build, shape_of
from pia.errors import ModelError
from pia.models.profile import capability_of

TINY = Shape("tiny", "qwen2", 64, 96, 2, 4, 2, 97, 512, is_tied=True)


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [  # as the published checkpoints have
        ("smollm-135m", 134_515_008),
        ("qwen2-0.5b", 494_032_768),
        ("tinyllama-1.1b", 1_100_048_384),
        ("llama2-7b", 6_738_415_616),
        ("qwen2-7b", 7_615_616_512),
        ("llama3-8b", 8_030_261_248),
        ("llama2-13b", 13_015_864_320),
    ],
)
def test_sizes_are_those_of_the_checkpoints(name, num_parameters):
    assert shapes._num_parameters(shape_of(name)) == num_parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_weights_are_usable_and_belong_to_the_seed(family, dtype):
    shape = Shape("tiny", family, 64, 96, 2, 4, 2, 97, 512, is_tied=family == "qwen2")
    models = [build(shape, dtype=dtype, device="cpu", seed=seed) for seed in (0, 0, 1)]
    ids = torch.arange(20)[None]
    first, same, other = (model(ids).logits for model in models)
    assert first.dtype == dtype
    assert first.isfinite().all()
    assert first.float().std() > 0.05
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert len({tuple(row.tolist()) for row in first[0]}) == 20
    assert capability_of(models[0], self_check=True).can_verify_trees


def test_tied_embeddings_stay_tied_and_rotary_frequencies_are_float32():
    model = build(TINY, dtype=torch.bfloat16, device="cpu")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    frequencies = model.model.rotary_emb.inv_freq
    assert frequencies.dtype == torch.float32
    assert frequencies[0] == 1
    assert (model.model.norm.weight == 1).all()
    assert model.model.layers[0].self_attn.q_proj.bias.std() > 0


def test_an_unknown_shape_is_refused_with_all_known_ones():
    with pytest.raises(ModelError, match=f"unknown shape 'llama9'.*{', '.join(SHAPES)}"):
        build("llama9", dtype=torch.float32, device="cpu")


def test_a_shape_that_does_not_fit_is_refused_with_those_that_do(monkeypatch):
    monkeypatch.setattr(shapes, "free_bytes", lambda device: 2 << 30)
    with pytest.raises(ModelError) as caught:
        build("llama2-7b", dtype=torch.bfloat16, device="cpu")
    message = str(caught.value)
    assert "needs 13.6 GiB on cpu, and 2.0 GiB are free" in message
    assert message.endswith("these fit: llama-68m, smollm-135m, llama-160m, smollm-360m, qwen2-0.5b")


def test_memory_is_told_on_this_system():
    free = shapes.free_bytes(torch.device("cpu"))
    assert free is None or free > 1 << 26
