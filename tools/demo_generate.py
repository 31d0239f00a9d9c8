"""Greedy answers of the demo model, several at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LlamaForCausalLM


@torch.no_grad()
def generate_answers(
    model: LlamaForCausalLM, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, batch_size: int
) -> list[list[int]]:
    """Decodes greedily.

    Args:
        model: with ``eos_token_id`` and ``pad_token_id`` in its config.
        prompts: token ids.
        max_new_tokens: length at which an answer is cut.
        batch_size: prompts decoded together; prompts of like length share a batch.

    Returns:
        The generated ids of each prompt; the last one is the end token where the answer ended by itself.
    """
    model.eval()
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        for index, answer in zip(chosen, _decode(model, [prompts[i] for i in chosen], max_new_tokens), strict=True):
            answers[index] = answer
    return answers


def _decode(model: LlamaForCausalLM, prompts: list[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
    pad, end = model.config.pad_token_id, model.config.eos_token_id
    length = max(map(len, prompts))
    ids = torch.tensor([[pad] * (length - len(p)) + list(p) for p in prompts], device=model.device)
    output = model.generate(
        input_ids=ids,
        attention_mask=(ids != pad).long(),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=end,
        pad_token_id=pad,
    )
    return [_until_end(row, end) for row in output[:, length:].tolist()]


def _until_end(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids
