"""Models that cannot be cut are refused by name, before anything is touched."""

from __future__ import annotations

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from shrink_models import shrinkable
from torch import nn

from pia.errors import ShrinkError
from pia.ipad.cut import cut
from pia.ipad.selection import Selection
from pia.ipad.structure import structure_of


def refused(model, message):
    with pytest.raises(ShrinkError, match=message):
        structure_of(model)


def test_unknown_family():
    config = transformers.BloomConfig(vocab_size=97, hidden_size=32, n_layer=1, n_head=4)
    refused(transformers.BloomForCausalLM(config), "'bloom' cannot be shrunk yet; supported are llama, mistral, .*gpt2")


def test_no_transformers_model():
    refused(nn.Linear(2, 2), "family None")


def test_model_without_head():
    refused(shrinkable("llama").model, "LlamaModel is no model with a language model head; .* as LlamaForCausalLM")


def test_quantised_configuration():
    model = shrinkable("llama")
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    refused(model, "quantised; shrink the original")


def test_quantised_weights():
    model = shrinkable("llama")
    weight = model.model.layers[1].mlp.up_proj
    weight.weight = nn.Parameter(weight.weight.to(torch.int8), requires_grad=False)
    refused(model, "layers.1.mlp.up_proj.weight is no plain floating-point tensor but a .*int8")


def test_torchao_weights():
    quantization = pytest.importorskip("torchao.quantization")
    model = shrinkable("llama", torch.bfloat16)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    refused(model, "proj.weight is no plain floating-point tensor")


def test_adapters_around_the_model():
    model = get_peft_model(shrinkable("llama", torch.float32), LoraConfig(target_modules=["q_proj"]))
    refused(model, "merge_and_unload")
    refused(model.base_model.model, "merge_and_unload")
    structure_of(model.merge_and_unload())


def test_offloaded_weights():
    model = shrinkable("llama")
    model.lm_head.to("meta")
    refused(model, "lm_head.weight is offloaded")


def test_several_dtypes():
    model = shrinkable("llama")
    model.lm_head.float()
    refused(model, "several dtypes, torch.float32, torch.float64")


def test_shared_layers():
    model = shrinkable("llama")
    model.model.layers[2].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    refused(model, "layers.0.mlp.up_proj.weight, model.layers.2.mlp.up_proj.weight are one and the same")


def test_layers_of_unequal_shape():
    model = shrinkable("llama")
    model.model.layers[1].mlp.up_proj = nn.Linear(32, 40, bias=False, dtype=torch.float64)
    refused(model, "layers.1.mlp.up_proj.weight is 40 x 32, where .* 48 x 32; only models whose layers")


def test_layers_missing():
    model = shrinkable("llama")
    del model.model.layers[2]
    refused(model, "has 2 layers, but its configuration says 3")


@pytest.mark.parametrize("name", ["scale", "running_mean"])
def test_weights_that_the_map_lacks(name):
    model = shrinkable("llama")
    added = torch.ones(3, dtype=torch.float64)
    attention = model.model.layers[0].self_attn
    attention.register_parameter(name, nn.Parameter(added)) if name == "scale" else attention.register_buffer(
        name, added
    )
    refused(model, f"layers.0.self_attn.{name} is no part of a stock llama model")


def test_attention_that_depends_on_the_number_of_the_layer():
    refused(shrinkable("gpt2", scale_attn_by_inverse_layer_idx=True), "by the number of the layer")


@pytest.mark.parametrize(
    "change",
    [
        dict(layers=(0, 3, 2)),
        dict(layers=(0, 1)),
        dict(hidden=(0, 1, 40)),
        dict(ffn=((),) * 3),
        dict(kv_groups=((0, 0),) * 3),
        dict(experts=((0,),) * 3),
    ],
    ids=str,
)
def test_selections_of_another_model(change):
    model = shrinkable("llama")
    everything = vars(Selection.everything(structure_of(model).shape))
    with pytest.raises(ShrinkError, match="make it"):
        cut(model, Selection(**{**everything, **change}))
