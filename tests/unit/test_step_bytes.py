"""The bytes of a decode step, against arithmetic over known configurations."""

from __future__ import annotations

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM

from pia.bench.step_bytes import KvBytes, LayerBytes, kv_bytes, tensor_bytes, weight_bytes
from toys import tiny_model

_SIZES = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
              num_key_value_heads=2, max_position_embeddings=64)  # fmt: skip


def num_bytes(*parameters):
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def test_an_embedding_that_is_only_looked_up_gives_one_row():
    model = tiny_model("llama")
    whole = num_bytes(*model.parameters())
    table = model.get_input_embeddings().weight
    weights = weight_bytes(model)
    assert weights.stored == whole
    assert weights.read == whole - num_bytes(table) + num_bytes(table[0])


def test_a_tied_embedding_is_read_whole():
    model = tiny_model("llama")
    model.lm_head.weight = model.get_input_embeddings().weight
    weights = weight_bytes(model)
    assert weights.stored == weights.read == num_bytes(*model.parameters())


def test_learned_positions_give_one_row():
    model = tiny_model("gpt2")
    tables = [model.transformer.wte.weight, model.transformer.wpe.weight]
    looked_up = sum(num_bytes(table) - num_bytes(table[0]) for table in tables)
    assert weight_bytes(model).read == num_bytes(*model.parameters()) - looked_up


def test_only_the_experts_in_use_are_read():
    config = MixtralConfig(**_SIZES, num_local_experts=4, num_experts_per_tok=1, tie_word_embeddings=True)
    model = MixtralForCausalLM(config).eval()
    experts = [parameter for name, parameter in model.named_parameters() if ".experts." in name]
    weights = weight_bytes(model)
    assert num_bytes(*experts) == 2 * 4 * 3 * 32 * 48 * 4  # layers, experts, matrices of 32 x 48, bytes
    assert weights.read == num_bytes(*model.parameters()) - num_bytes(*experts) * 3 // 4
    assert "25.0%" in weights.notes[0]


def test_experts_of_an_unknown_share_all_count():
    config = MixtralConfig(**_SIZES, num_local_experts=4, num_experts_per_tok=1, tie_word_embeddings=True)
    model = MixtralForCausalLM(config).eval()
    model.config.num_experts_per_tok = 0
    weights = weight_bytes(model)
    assert weights.read == weights.stored
    assert "all are counted" in weights.notes[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kv_of_grouped_heads(dtype):
    kv = kv_bytes(tiny_model("llama").to(dtype))
    per_token = 2 * 2 * 2 * 8 * dtype.itemsize  # layers, keys and values, KV heads, head size
    assert kv.per_token == per_token
    assert kv.at(100) == 100 * per_token
    assert kv.at(0) == 0


def test_kv_of_a_window_ends_with_it():
    model = MistralForCausalLM(MistralConfig(**_SIZES, head_dim=8, sliding_window=16)).eval()
    kv = kv_bytes(model)
    assert kv.at(1000) == kv.at(16) == 16 * 2 * 2 * 2 * 8 * 4


def test_a_state_does_not_grow():
    kv = KvBytes((LayerBytes(per_token=8, fixed=100, window=None), LayerBytes(per_token=0, fixed=50, window=None)))
    assert kv.at(10) == 230
    assert kv.per_token == 8


def test_kv_of_a_model_that_keeps_none():
    model = tiny_model("llama")
    forward = model.forward
    model.forward = lambda **kwargs: forward(**{**kwargs, "use_cache": False})
    assert kv_bytes(model) is None


def test_kv_of_a_model_that_wants_more_than_tokens():
    model = tiny_model("llama")
    model.forward = lambda input_ids, pixels, **_: None
    assert kv_bytes(model) is None


def test_a_quantised_tensor_counts_by_its_parts():
    class Parts:
        codes, scale = torch.zeros(8, 8, dtype=torch.int8), torch.zeros(8, dtype=torch.float32)

        def __tensor_flatten__(self):
            return ["codes", "scale"], None

    assert tensor_bytes(Parts()) == 64 + 32
