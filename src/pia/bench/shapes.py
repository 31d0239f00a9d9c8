"""Models of a known shape with random weights: what a forward costs does not depend on what the weights say."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from pia.errors import ModelError

_CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config}
_BLOCK = (1 << 24) - 3
"""Random numbers that are drawn; odd, so that they fall otherwise into each row of a matrix."""
_STD = 0.02
"""As Transformers initializes both families: activations neither vanish nor overflow, also in 16 bits."""
_ROOM_TOKENS = 2048
"""Tokens whose keys and values must fit beside the weights."""
_GIB = 1 << 30


@dataclass(frozen=True)
class Shape:
    """Sizes of a dense decoder-only model, as its published configuration gives them.

    Attributes:
        name: as on the command line.
        family: whose layers it has.
        hidden: width of the residual stream.
        ffn: width inside the feed-forward block.
        num_layers: decoder layers.
        num_heads: attention heads.
        num_kv_heads: heads of keys and values.
        vocab: token ids.
        max_positions: context length in tokens.
        rope_theta: base of the rotary frequencies.
        is_tied: the embeddings serve as output matrix too.
    """

    name: str
    family: Literal["llama", "qwen2"]
    hidden: int
    ffn: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab: int
    max_positions: int
    rope_theta: float = 1e4
    is_tied: bool = False

    def config(self) -> Any:
        """The Transformers configuration. No token is special: all that was recorded is text, and none ends it."""
        return _CONFIGS[self.family](
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.ffn,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            max_position_embeddings=self.max_positions,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            tie_word_embeddings=self.is_tied,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )

    def bytes_needed(self, dtype: torch.dtype) -> int:
        """Memory of the weights, and of the keys and values of a text of usual length."""
        kv_width = 2 * self.num_kv_heads * (self.hidden // self.num_heads)
        return (_num_parameters(self) + kv_width * self.num_layers * _ROOM_TOKENS) * dtype.itemsize


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("llama-68m", "llama", 768, 3072, 2, 12, 12, 32000, 2048),
        Shape("smollm-135m", "llama", 576, 1536, 30, 9, 3, 49152, 2048, is_tied=True),
        Shape("llama-160m", "llama", 768, 3072, 12, 12, 12, 32000, 2048),
        Shape("smollm-360m", "llama", 960, 2560, 32, 15, 5, 49152, 2048, is_tied=True),
        Shape("qwen2-0.5b", "qwen2", 896, 4864, 24, 14, 2, 151936, 32768, 1e6, is_tied=True),
        Shape("tinyllama-1.1b", "llama", 2048, 5632, 22, 32, 4, 32000, 2048),
        Shape("qwen2-1.5b", "qwen2", 1536, 8960, 28, 12, 2, 151936, 32768, 1e6, is_tied=True),
        Shape("llama2-7b", "llama", 4096, 11008, 32, 32, 32, 32000, 4096),
        Shape("qwen2-7b", "qwen2", 3584, 18944, 28, 28, 4, 152064, 32768, 1e6),
        Shape("llama3-8b", "llama", 4096, 14336, 32, 32, 8, 128256, 8192, 5e5),
        Shape("llama2-13b", "llama", 5120, 13824, 40, 40, 40, 32000, 4096),
    )
}
"""Known shapes by name, from small to large."""


def shape_of(name: str) -> Shape:
    """The shape of that name.

    Raises:
        ModelError: there is none.
    """
    if name not in SHAPES:
        raise ModelError(f"unknown shape {name!r}; choose from {', '.join(SHAPES)}")
    return SHAPES[name]


def build(shape: str | Shape, *, dtype: torch.dtype, device: str | torch.device, seed: int = 0) -> Any:
    """Makes a model of a shape, with random weights, directly where it will run.

    One block of random numbers is drawn and laid over all weights, each time from another place on: drawing billions
    of them would take minutes on a CPU. The same seed gives the same weights on every device.

    Args:
        shape: a name of `SHAPES`, or a shape of your own.
        dtype: of the weights.
        device: where they lie.
        seed: of the random numbers.

    Returns:
        a causal language model of Transformers, in evaluation mode.

    Raises:
        ModelError: the shape is unknown, or there is not enough memory for it.
    """
    shape, device = shape if isinstance(shape, Shape) else shape_of(shape), torch.device(device)
    _check_memory(shape, dtype, device)
    model = _unfilled(shape, dtype)
    model.to_empty(device=device)
    model.tie_weights()
    with device:
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)  # its values are computed, not learned
    _fill(model, seed)
    return model.requires_grad_(False).eval()


def _unfilled(shape: Shape, dtype: torch.dtype) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(shape.config(), dtype=dtype)


@lru_cache(maxsize=64)
def _num_parameters(shape: Shape) -> int:
    return int(_unfilled(shape, torch.bfloat16).num_parameters())


@torch.no_grad()
def _fill(model: Any, seed: int) -> None:
    """Random matrices and biases; norms that scale by one."""
    generator = torch.Generator().manual_seed(seed)
    block = (torch.randn(_BLOCK, generator=generator) * _STD).to(model.dtype).to(model.device)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(1)
            continue
        flat = parameter.view(-1)
        start = int(torch.randint(_BLOCK, (), generator=generator))
        place = 0
        while place < len(flat):
            piece = block[start : start + len(flat) - place]
            flat[place : place + len(piece)] = piece
            place, start = place + len(piece), 0


def _check_memory(shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
    needed, free = shape.bytes_needed(dtype), free_bytes(device)
    if free is None or needed <= free:
        return
    fitting = [other.name for other in SHAPES.values() if other.bytes_needed(dtype) <= free]
    way_out = f"these fit: {', '.join(fitting)}" if fitting else "no known shape fits"
    raise ModelError(
        f"{shape.name} in {str(dtype).removeprefix('torch.')} needs {needed / _GIB:.1f} GiB on {device}, "
        f"and {free / _GIB:.1f} GiB are free; {way_out}"
    )


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device, or `None` where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "cpu":
        with suppress(OSError):
            for line in Path("/proc/meminfo").read_text().splitlines():
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    return None
