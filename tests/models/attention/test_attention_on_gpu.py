"""What can only be seen on a CUDA device: the compiled kernel, and one captured graph that serves every length."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from attention_cases import random_tree

from pia.models.attention.bits import pack
from pia.models.attention.layer_check import layer_doubt
from pia.models.attention.plug_in import TreeState, tree_attention
from pia.models.attention.probe import LayerShape, probed
from pia.models.attention.reference import reference_attention
from pia.models.layout import batch_layout
from toys import tiny_model

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
TOOL = Path(__file__).parents[3] / "tools" / "gpu_attention.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_tool_says_that_there_is_nothing_to_run_on():
    process = subprocess.run([sys.executable, str(TOOL)], capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert "no CUDA device" in process.stderr


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("q", [1, 16, 64, 128])
@pytest.mark.parametrize(
    "shape",
    [(32, 32, 128, 128), (32, 8, 128, 128), (14, 2, 64, 64), (8, 4, 256, 256), (32, 32, 80, 80), (4, 4, 96, 64)],
)
def test_kernel_equals_reference(shape, q, dtype):
    from pia.models.attention.triton_attention import triton_attention

    layer = LayerShape(*shape, dtype, window=700 if shape[0] == 8 else None, softcap=5.0 if shape[0] == 14 else None)
    assert layer_doubt(layer, q, triton_attention, torch.device("cuda")) is None


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "opt"])
def test_probe_takes(name, dtype):
    from pia.models.attention.triton_attention import triton_attention

    assert probed(tiny_model(name).to("cuda", dtype), triton_attention).reason is None


@needs_gpu
@torch.inference_mode()
def test_one_graph_serves_every_length():
    from pia.models.attention.triton_attention import triton_attention

    rng, q = np.random.default_rng(1), 9
    query = torch.randn(2, 8, q, 64, device="cuda")
    keys, values = (torch.randn(2, 2, 900, 64, device="cuda") for _ in range(2))
    starts = torch.zeros(2, dtype=torch.int32, device="cuda")
    bits = torch.zeros(2, q, 1, dtype=torch.int64, device="cuda")

    def attend() -> torch.Tensor:
        return triton_attention(query, keys, values, starts, bits, scale=0.125)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        attend()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attended = attend()
    for lengths in ([0, 3], [500, 77], [891, 640]):
        visible = batch_layout([0, 0], [random_tree(rng, q - 1) for _ in lengths])[2]
        starts.copy_(torch.tensor(lengths))
        bits.copy_(torch.from_numpy(pack(visible)))
        graph.replay()
        states = (tensor.double() for tensor in (query, keys, values))
        assert torch.allclose(attended.double(), reference_attention(*states, starts, bits, scale=0.125), atol=1e-5)


@needs_gpu
@torch.inference_mode()
def test_a_whole_forward_is_captured():
    """Nothing in the plug-in asks the device for a value."""
    from transformers import StaticCache

    from pia.models.attention.triton_attention import triton_attention

    model = tiny_model("llama").to("cuda", torch.bfloat16)
    ids = torch.tensor([[5, 6, 7, 8]], device="cuda")
    starts = torch.zeros(1, dtype=torch.int32, device="cuda")
    chain = torch.from_numpy(pack(np.tri(4, dtype=bool)[None])).cuda()
    state = TreeState(starts, chain, torch.arange(4, device="cuda")[None], triton_attention)

    def forward(cache: StaticCache) -> torch.Tensor:
        with tree_attention(model, state):
            return model(input_ids=ids, position_ids=state.depths, past_key_values=cache).logits

    caches = [StaticCache(config=model.config, max_cache_len=64) for _ in range(2)]
    forward(caches[0])
    forward(caches[1])
    caches[1].reset()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = forward(caches[1])
    graph.replay()
    expected = model(input_ids=ids, use_cache=False).logits
    assert float((logits - expected).float().std() / expected.float().std()) < 3e-2
