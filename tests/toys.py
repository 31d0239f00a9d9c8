"""Toy models and toy sources: drafts that never, sometimes or always agree with the model."""

from __future__ import annotations

import numpy as np
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pia.drafting.tree import DraftTree

VOCAB = 97
_ROTARY = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    initializer_range=0.25,  # large enough that what a token attends to decides what follows
)
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_ROTARY)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_ROTARY, head_dim=8)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=512,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            initializer_range=0.25,
            tie_word_embeddings=False,
        )
    ),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            word_embed_proj_dim=32,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            init_std=0.25,
            tie_word_embeddings=False,
        )
    ),
}


def tiny_model(name: str, **changes) -> torch.nn.Module:
    """A tiny model with fixed random weights, float32, in evaluation mode."""
    torch.manual_seed(0)
    model = FAMILIES[name]().eval()
    for key, value in changes.items():
        setattr(model.config, key, value)
    model.generation_config.pad_token_id = 0
    return model


def prompts(num: int, *, seed: int = 0, longest: int = 24) -> list[torch.Tensor]:
    """Random prompts `[1, length]` of mixed length, without special tokens."""
    rng = np.random.default_rng(seed)
    return [torch.tensor(rng.integers(3, VOCAB, (1, rng.integers(1, longest)))) for _ in range(num)]


class ToySource:
    """Drafts from a known text, with each proposed token right with some probability.

    Every node on the way down gets `width` children, the right one (if it is to be right) at a random place among them.

    Args:
        truth: the text that plain decoding gives, prompt included.
        agreement: 0 never, 1 always, between: sometimes.
    """

    vocab_size = None

    def __init__(self, truth: list[int], agreement: float, *, width: int = 3, depth: int = 5, seed: int = 0) -> None:
        self.truth, self.agreement, self.width, self.depth = truth, agreement, width, depth
        self.rng = np.random.default_rng(seed)
        self.num_begun = 0
        self.ended: list[bool] = []

    def bind(self, vocab_size, fingerprint) -> None:
        pass

    def begin(self, prompt_ids, *, stop_ids=frozenset(), namespace="", corpora=(), sources=()):
        self.num_begun += 1
        return _ToySession(self, len(prompt_ids))

    def draft(self, length: int, budget: int, max_depth: int) -> DraftTree:
        token_ids: list[int] = []
        parents: list[int] = []
        probs: list[float] = []
        parent = -1
        for depth in range(min(max_depth, self.depth)):
            place = self.rng.integers(self.width)
            for child in range(self.width):
                is_right = child == place and self.rng.random() < self.agreement
                token_ids.append(self._token(length + depth, is_right, taken=token_ids[len(token_ids) - child :]))
                parents.append(parent)
                probs.append(0.9 ** (depth + 1))
            parent = len(token_ids) - self.width + place
        size = min(budget, len(token_ids))
        return DraftTree(
            np.array(token_ids[:size], np.int32),
            np.array(parents[:size], np.int32),
            np.array(probs[:size], np.float32),
            self.rng.integers(0, 2, size).astype(np.uint8),
        )

    def _token(self, position: int, is_right: bool, taken: list[int]) -> int:
        right = self.truth[position] if position < len(self.truth) else None
        if is_right and right is not None:
            return right
        return int(self.rng.choice([t for t in range(VOCAB) if t != right and t not in taken]))


class _ToySession:
    def __init__(self, source: ToySource, length: int) -> None:
        self.source, self.length, self.has_ended = source, length, False

    def propose(self, budget: int, max_depth: int) -> DraftTree:
        return self.source.draft(self.length, budget, max_depth)

    def observe(self, token_ids) -> None:
        self.length += len(token_ids)

    def end(self, *, commit: bool) -> None:
        if not self.has_ended:
            self.has_ended = True
            self.source.ended.append(commit)
