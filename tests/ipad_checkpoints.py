"""Small models on disk and data for whole shrinks."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from pia.assets import demo_model_path, demo_questions

OPTIONS = dict(
    shape="layers=2,ffn=32", ffn_multiple=16, round_share=0.3, steps=6, batch_tokens=1024, checkpoint_every=1,
    calibration_rows=4, max_length=160, warmup_steps=1,
)  # fmt: skip
"""Of a shrink in three rounds, in seconds."""


def save_small_model(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.bfloat16, **changes) -> Path:
    """A Llama of four tiny layers with random weights, and the demo model's tokenizer."""
    torch.manual_seed(seed)
    sizes = dict(
        vocab_size=2048, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, initializer_range=0.1, tie_word_embeddings=True,
        eos_token_id=1, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, **changes})).to(dtype)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """The demo model's."""
    AutoTokenizer.from_pretrained(demo_model_path()).save_pretrained(folder)


def save_questions(path: Path, num: int = 60) -> Path:
    """Questions and answers as JSON lines."""
    with open(path, "w", encoding="utf-8") as file:
        for row in demo_questions(num):
            file.write(json.dumps({"question": row["question"], "answer": row["answer"]}) + "\n")
    return path
