"""Quantised weights run unchanged where a token's result is its own; where it is not, decoding is plain."""

from __future__ import annotations

import pytest
import torch
import transformers

from pia.models.capability import declared_capability
from pia.models.rows_probe import dependent_rows
from quick_check import OPTIONS, assert_drafts_used, compare
from toys import VOCAB, prompts, tiny_model


def wide_model(dtype=torch.float32):
    """A Llama wide enough for groups of 32 weights."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    )
    return transformers.LlamaForCausalLM(config).eval().to(dtype)


def quantised(kind, dtype=torch.float32):
    quantization = pytest.importorskip("torchao.quantization")
    configs = {
        "int8": lambda: quantization.Int8WeightOnlyConfig(),
        "int4": lambda: quantization.IntxWeightOnlyConfig(
            weight_dtype=torch.int4, granularity=quantization.PerGroup(32)
        ),
        "float8": lambda: quantization.Float8WeightOnlyConfig(),
        "int8 by token": lambda: quantization.Int8DynamicActivationInt8WeightConfig(),
        "int4 by token": lambda: quantization.Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int4, weight_granularity=quantization.PerGroup(32)
        ),
        "int8 by tensor": lambda: quantization.Int8DynamicActivationInt8WeightConfig(
            granularity=quantization.PerTensor()
        ),
    }
    model = wide_model(dtype)
    quantization.quantize_(model, configs[kind]())
    return model


@pytest.mark.parametrize("kind", ["int8", "int4", "float8"])
def test_quantised_weights_are_lossless(kind):
    model = quantised(kind)
    assert dependent_rows(model) is None
    plain = wide_model()
    texts = []
    for prompt in prompts(5, seed=5):
        out = compare(model, prompt)
        assert_drafts_used(out)
        texts.append(torch.equal(out.sequences, plain.generate(prompt, **OPTIONS)))
    assert kind == "float8" or not all(texts)  # the weights are really others


@pytest.mark.parametrize("kind", ["int8 by token", "int4 by token"])
def test_inputs_rounded_for_each_token(kind):
    """Measured without the gate: 5 of 12 texts differ in float32."""
    model = quantised(kind)
    for prompt in prompts(2, seed=5):
        out = compare(model, prompt)
        assert out.stats.mode == "plain" and "rounds its inputs" in out.stats.reason
    assert declared_capability(quantised(kind, torch.bfloat16)).can_verify_trees  # no worse than 16 bits are anyway


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_inputs_rounded_together(dtype):
    model = quantised("int8 by tensor", dtype)
    out = compare(model, prompts(1, seed=5)[0])
    assert out.stats.mode == "plain" and "together" in out.stats.reason


def test_a_model_may_be_quantised_after_its_first_use():
    quantization = pytest.importorskip("torchao.quantization")
    model, prompt = wide_model(), prompts(1, seed=5)[0]
    assert_drafts_used(compare(model, prompt))
    quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
    assert compare(model, prompt).stats.mode == "plain"


class Rounding(torch.nn.Linear):
    """A layer that rounds each token to float8 (e4m3), as kernels do that this machine has not."""

    scale_over = -1

    def forward(self, x):
        scale = x.abs().amax() if self.scale_over is None else x.abs().amax(self.scale_over, keepdim=True)
        scale = scale.clamp(min=1e-6) / 448
        return super().forward((x / scale).to(torch.float8_e4m3fn).to(x.dtype) * scale)


class Packed(torch.nn.Module):
    """A layer with its weights in a buffer, as GPTQ's and AWQ's."""

    def __init__(self, rounding):
        super().__init__()
        self.in_features, self._rounding = rounding.in_features, [rounding]
        self.register_buffer("qweight", torch.zeros(1, dtype=torch.int32))

    def forward(self, x):
        return self._rounding[0](x)


def with_layer(change):
    model = tiny_model("llama")
    layer = model.model.layers[1].mlp.up_proj
    model.model.layers[1].mlp.up_proj = change(layer)
    return model


def test_what_a_layer_is_called_does_not_matter():
    def rounding(layer):
        made = Rounding(layer.in_features, layer.out_features, bias=False)
        made.weight = layer.weight
        return made

    found = dependent_rows(with_layer(lambda layer: Packed(rounding(layer))))
    assert "layers.1.mlp.up_proj" in found and "rounds its inputs" in found
    assert dependent_rows(with_layer(Packed)) is None  # packed, and linear
    assert dependent_rows(with_layer(lambda layer: Packed(rounding(layer.bfloat16()))).bfloat16()) is None

    class Refusing(Packed):
        def forward(self, x):
            raise RuntimeError("no kernel for this device")

    assert "no kernel" in dependent_rows(with_layer(Refusing))


def loaded(config, folder):
    wide_model().save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.float32, device_map="cpu"
    ).eval()


def test_bitsandbytes(tmp_path):
    pytest.importorskip("bitsandbytes")
    prompt = prompts(1, seed=5)[0]
    assert_drafts_used(compare(loaded(transformers.BitsAndBytesConfig(load_in_4bit=True), tmp_path), prompt))
    eight = loaded(transformers.BitsAndBytesConfig(load_in_8bit=True), tmp_path)
    assert "together" in declared_capability(eight).reason  # LLM.int8 picks columns by all tokens of a forward


def test_quanto(tmp_path):
    pytest.importorskip("optimum.quanto")
    assert_drafts_used(compare(loaded(transformers.QuantoConfig(weights="int8"), tmp_path), prompts(1, seed=5)[0]))


def test_quantised_cache_decodes_plainly(tmp_path):
    backend = "quanto"
    pytest.importorskip("optimum.quanto")
    model, prompt = wide_model(), prompts(1, seed=5)[0]
    options = {"cache_implementation": "quantized", "cache_config": {"backend": backend, "nbits": 4, "axis_key": 0}}
    out = compare(model, prompt, **options)
    assert out.stats.mode == "plain" and "QuantizedCache" in out.stats.reason
