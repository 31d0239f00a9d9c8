"""What tests of distillation share: random rows, and tiny models."""

from __future__ import annotations

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pia.ipad.data import Row, Rows

VOCAB = 97


def small_llama(*, seed: int = 0, tied: bool = False, dtype=torch.float32, **changes) -> LlamaForCausalLM:
    """A tiny Llama with random weights."""
    torch.manual_seed(seed)
    sizes = dict(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2, tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **changes})).to(dtype).eval()


def random_rows(num: int, *, seed: int = 0, longest: int = 40) -> Rows:
    """Rows of mixed length; the first third of each is a prompt of weight 0.25."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num):
        length = int(rng.integers(4, longest))
        weights = np.ones(length, np.float32)
        weights[: length // 3] = 0.25
        weights[0] = 0
        rows.append(Row(rng.integers(3, VOCAB, length).astype(np.int32), weights))
    return Rows(rows)


def flat_weights(model) -> torch.Tensor:
    """All parameters as bytes."""
    return torch.cat([p.detach().flatten().view(torch.uint8) for p in model.parameters()])
