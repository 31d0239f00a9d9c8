"""The model card of the code model."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from transformers import LlamaForCausalLM

TEMPLATE = """\
---
license: other
language: code
library_name: transformers
pipeline_tag: text-generation
---

# PIA code model

A Llama of {millions:.1f} million parameters that goes on with Python functions: imports, signature and docstring in,
body and end of text out, as HumanEval asks. It is here so that PIA can be measured on code without a download. What it
writes looks like Python; it is not right.

| | |
|---|---|
| architecture | `LlamaForCausalLM`, {layers} layers, hidden size {hidden}, {heads} heads, FFN {ffn}, tied embeddings |
| context | trained on up to {max_length} tokens; positions for {positions:,} |
| vocabulary | {vocab:,}: byte-level BPE; a line's end and the next line's indentation are one token |
| weights | bfloat16; decode in float32 to compare outputs token by token |
| prompts | plain text that ends with a line's end, no chat template |

## Training

{source}: {num_functions:,} functions and methods of at most {max_length} tokens (body weight 1, signature and docstring
{prompt_weight}), and a share of {piece_share} of the {num_pieces:,} plain pieces of its files in each epoch. Tests,
encodings and tables are left out. Repetition is penalised in the later epochs by unlikelihood (Welleck et al. 2019), on
lines that come again and on loops in the model's own greedy answers to training prompts. {steps:,} steps,
{tokens:,} tokens, {minutes:.0f} minutes in training steps, seed {seed}.

Validation loss, on the bodies of {num_held_out:,} functions of files held out: {validation_loss:.3f} nats a token.

Made by `python tools/train_code_model.py`; another version of Python has other sources and gives another model.

## Licence

{licence}
"""
LIBRARY = "The standard library's own source, of Python {version}"
LIBRARY_LICENCE = """\
Trained on the standard library of CPython, which is under the PSF licence, version 2 (docs.python.org/3/license.html).
No other data was used."""
OWN = "Python sources of your own"
OWN_LICENCE = "What the licences of the sources allow."


@dataclass(frozen=True)
class Facts:
    """What only the run knows."""

    num_functions: int
    num_pieces: int
    num_held_out: int
    max_length: int
    prompt_weight: float
    piece_share: float
    steps: int
    tokens: int
    seconds: float
    seed: int
    validation_loss: float
    is_standard_library: bool


def card_text(model: LlamaForCausalLM, facts: Facts) -> str:
    """The card in Markdown."""
    config = model.config
    source, licence = (LIBRARY, LIBRARY_LICENCE) if facts.is_standard_library else (OWN, OWN_LICENCE)
    return TEMPLATE.format(
        millions=model.num_parameters() / 1e6,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        ffn=config.intermediate_size,
        positions=config.max_position_embeddings,
        vocab=config.vocab_size,
        source=source.format(version=platform.python_version()),
        licence=licence,
        minutes=facts.seconds / 60,
        **vars(facts),
    )
