"""Unmodified models attend over trees without a mask, or are refused with a reason; nothing else changes."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from attention_cases import random_tree
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTJConfig,
    GPTJForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    StaticCache,
)

from pia.models.attention.plug_in import NAME, TreeAttentionError, TreeState, tree_attention
from pia.models.attention.probe import LayerShape, probed, unmasked_forward
from pia.models.attention.reference import reference_attention
from pia.models.distance import rms_distance
from pia.models.runner import SlabRunner
from toys import _ROTARY, tiny_model

WINDOW = 8
TAKEN = {
    **{name: (lambda name=name: tiny_model(name)) for name in ("llama", "qwen3", "gpt2", "opt")},
    "mistral": lambda: MistralForCausalLM(MistralConfig(**_ROTARY, sliding_window=WINDOW)),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(**_ROTARY, sliding_window=WINDOW, use_sliding_window=True, max_window_layers=1)
    ),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(
            **_ROTARY,
            head_dim=8,
            sliding_window=WINDOW,
            attn_logit_softcapping=1.0,
            query_pre_attn_scalar=8,
            attn_implementation="eager",  # elsewhere, some releases leave the bound out
        )
    ),
    "deepseek_v3": lambda: DeepseekV3ForCausalLM(  # keys and values of different sizes
        DeepseekV3Config(
            **{**_ROTARY, "num_key_value_heads": 4},
            q_lora_rank=8,
            kv_lora_rank=8,
            qk_rope_head_dim=4,
            qk_nope_head_dim=4,
            v_head_dim=6,
            first_k_dense_replace=2,
        )
    ),
    "gpt_oss": lambda: GptOssForCausalLM(  # sinks
        GptOssConfig(**_ROTARY, head_dim=8, sliding_window=WINDOW, num_local_experts=2, num_experts_per_tok=2)
    ),
}
REFUSED = {
    "gptj": (
        lambda: GPTJForCausalLM(GPTJConfig(vocab_size=97, n_embd=32, n_layer=2, n_head=4, rotary_dim=4)),
        "0 of its 2 layers",
    ),
    "falcon": (
        lambda: FalconForCausalLM(
            FalconConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
        ),
        "",
    ),
    "llama4": (
        lambda: Llama4ForCausalLM(
            Llama4TextConfig(
                **_ROTARY, head_dim=8, intermediate_size_mlp=48, attention_chunk_size=8, num_local_experts=2
            )
        ),
        "chunked_attention",
    ),
}


def build(make, dtype=torch.float64) -> torch.nn.Module:
    torch.manual_seed(0)
    model = make().to(dtype).eval()
    with torch.no_grad():  # so that sinks are not all zero
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                parameter.copy_(torch.arange(len(parameter)))
    return model


def dtype_of(name: str) -> torch.dtype:
    return torch.float32 if name == "gpt_oss" else torch.float64  # its experts take no float64


def state_of(q: int) -> TreeState:
    """For a tree of so many nodes behind nothing."""
    starts, bits = torch.zeros(1, dtype=torch.int32), torch.ones(1, q, 1, dtype=torch.int64)
    return TreeState(starts, bits, torch.zeros(1, q, dtype=torch.int64), reference_attention)


@pytest.mark.parametrize("name", TAKEN)
@torch.inference_mode()
def test_rows_come_out_as_under_masks(name):
    """Two rows of different lengths, beyond and within the window, verified twice."""
    model = build(TAKEN[name], dtype_of(name))
    rng = np.random.default_rng(3)
    runner = SlabRunner(model, num_rows=2)
    runner.prefill([torch.from_numpy(rng.integers(3, 97, length)) for length in (19, 6)])
    trees = [random_tree(rng, 11), random_tree(rng, 8)]
    masked = runner.forward([5, 6], trees)
    runner.cache.set_lengths([19, 6])
    unmasked = unmasked_forward(runner, [5, 6], trees, reference_attention)
    tolerance = 1e-5 if dtype_of(name) == torch.float32 else 1e-6
    for row, tree in enumerate(trees):
        nodes = slice(0, len(tree) + 1)
        assert rms_distance(unmasked[row, nodes], masked[row, nodes]) <= tolerance * float(masked.std())


@torch.inference_mode()
def test_a_static_cache_may_return_slots_beyond():
    """As an engine of fixed shapes does: all slots there are, and whatever is in them."""
    model = build(TAKEN["llama"])
    text, tree = torch.tensor([[5, 6, 7]]), torch.tensor([[8, 9]])
    cache = StaticCache(config=model.config, max_cache_len=12)
    model(input_ids=text, past_key_values=cache)
    for layer in cache.layers:
        layer.keys[:, :, 5:] = layer.values[:, :, 5:] = torch.nan
    starts = torch.tensor([3], dtype=torch.int32)
    bits = torch.tensor([[[1], [2]]])  # two nodes that do not see each other
    state = TreeState(starts, bits, torch.zeros(1, 2, dtype=torch.int64), reference_attention)
    with tree_attention(model, state):
        logits = model(input_ids=tree, position_ids=torch.tensor([[3, 3]]), past_key_values=cache).logits
    for node in range(2):
        expected = model(input_ids=torch.cat([text, tree[:, node : node + 1]], dim=1), use_cache=False).logits[0, -1]
        assert torch.allclose(logits[0, node], expected)


@pytest.mark.parametrize("name", TAKEN)
def test_probe_takes(name):
    finding = probed(build(TAKEN[name], dtype_of(name)), reference_attention)
    assert finding.reason is None
    assert len(finding.layers) == 2


@pytest.mark.parametrize("name", REFUSED)
def test_probe_refuses_with_a_reason(name):
    make, reason = REFUSED[name]
    finding = probed(build(make), reference_attention)
    assert finding.reason and reason in finding.reason


def test_probe_tells_shapes():
    layers = probed(build(TAKEN["gemma2"]), reference_attention).layers
    shape = LayerShape(4, 2, 8, 8, torch.float64, window=WINDOW, softcap=1.0)
    assert layers[0] == shape and layers[1].window is None


def seeing_all(*states, **options):
    """A backend for which everybody sees the whole tree."""
    query, keys, values, starts, bits = states
    return reference_attention(query, keys, values, starts, torch.full_like(bits, -1), **options)


def deaf_to_windows(*states, window=None, **options):
    return reference_attention(*states, window=None, **options)


def test_probe_refuses_a_backend_that_sees_the_whole_tree():
    assert "logits differ" in probed(build(TAKEN["llama"]), seeing_all).reason


def test_probe_refuses_a_backend_deaf_to_windows():
    assert "logits differ" in probed(build(TAKEN["mistral"]), deaf_to_windows).reason


def test_probe_refuses_a_window_that_layers_are_not_told_of():
    """A text of the probe's length would not show it."""
    model = build(TAKEN["mistral"])
    model.config.sliding_window = 300
    for layer in model.model.layers:
        layer.self_attn.config = type(model.config)(**{**model.config.to_dict(), "sliding_window": None})
        layer.self_attn.config._attn_implementation = "sdpa"
    assert probed(model, reference_attention).reason


def test_a_backend_that_fails_is_a_reason():
    def broken(*states, **options):
        raise RuntimeError("out of registers")

    model = build(TAKEN["llama"])
    assert "out of registers" in probed(model, broken).reason
    assert model.config._attn_implementation == "sdpa"


def test_a_state_for_other_trees_is_refused():
    model = build(TAKEN["llama"])
    state = state_of(3)
    with pytest.raises(TreeAttentionError, match="attends from"), tree_attention(model, state):
        model(input_ids=torch.tensor([[1, 2]]))
    assert model.config._attn_implementation == "sdpa"


def test_a_mask_beside_the_bits_is_refused():
    model = build(TAKEN["llama"])
    state = state_of(2)
    with pytest.raises(TreeAttentionError, match="mask of its own"), tree_attention(model, state):
        model(input_ids=torch.tensor([[1, 2]]), attention_mask=torch.zeros(1, 1, 2, 2, dtype=torch.float64))


@pytest.mark.parametrize("name", ["llama", "gemma2"])  # scaled dot product, and step by step
def test_other_threads_notice_nothing(name):
    """A forward elsewhere in the meantime has its own mask and attention, and the last one out puts the name back."""
    model = build(TAKEN[name])
    ids = torch.tensor([[5, 6, 7, 8]])
    original = model.config._attn_implementation
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    state = state_of(2)
    found = []

    def elsewhere():
        with torch.no_grad():
            found.append(model(input_ids=ids).logits)
            with tree_attention(model, state):
                pass
            found.append(model.config._attn_implementation)

    with tree_attention(model, state):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert torch.equal(found[0], expected)
    assert found[1] == NAME and model.config._attn_implementation == original
