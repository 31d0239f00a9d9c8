"""Writes the demo model as a stock Hugging Face folder."""

from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def export_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes model (bfloat16), tokenizer and generation config, each file replaced at once.

    A process that loads the folder meanwhile sees whole files only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shipped = copy.deepcopy(model).cpu().to(torch.bfloat16)
    shipped.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
        shipped.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        for file in sorted(Path(partial).iterdir()):
            file.chmod(0o644)  # safetensors writes for the owner alone
            os.replace(file, folder / file.name)
