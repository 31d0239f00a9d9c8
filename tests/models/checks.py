"""What is checked of a model, whatever its family: the tests of the zoo and of a user's own model call these."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import pia
from pia.drafting.shape import ancestors
from pia.drafting.tree import DraftTree
from pia.models.positions import rope_types
from pia.models.profile import capability_of
from pia.models.runner import SlabRunner
from toys import ToySource

_TREES = (  # parents of each tree, and the nodes kept of it
    ([-1, -1, 0, 1, 1, 2, 4, 6], [1, 4, 6, 7]),
    ([], []),
    ([-1, 0, 0, 1, -1, 4, 5], [4]),
    ([-1, 0], []),
)
_EXACT = {torch.float64: 1e-5}
"""Largest error, in standard deviations of the logits. Many models compute norms or attention in float32 whatever the
dtype; a wrong mask or position is off by 0.07 and more."""
_CLOSE = 1e-3
"""For models in float32."""


def prompts(num: int, vocab_size: int, *, seed: int = 0, longest: int = 40) -> list[torch.Tensor]:
    """Random prompts `[1, length]` of mixed length, without special tokens."""
    rng = np.random.default_rng(seed)
    return [torch.tensor(rng.integers(3, vocab_size, (1, rng.integers(1, longest)))) for _ in range(num)]


def vocab_size_of(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def check_tree_rows(model: Any, *, can_branch: bool = True, length: int = 21) -> float:
    """A tree's rows are the logits of its paths, also after a part was kept; returns the largest error.

    Errors are in standard deviations of the logits.
    """
    size = vocab_size_of(model)
    rng = np.random.default_rng(0)
    text, token = rng.integers(3, size, length).tolist(), 5
    runner = SlabRunner(model, can_branch=can_branch)
    runner.prefill([torch.tensor(text)])
    error = 0.0
    for parents, kept in _TREES if can_branch else [(list(range(-1, 4)), [0, 1]), ([], []), ([-1, 0], [])]:
        tree = _tree(parents, rng.integers(3, size, len(parents)))
        logits = runner.forward([token], [tree])[0].double()
        for node in range(-1, len(tree)):
            path = tree.token_ids[ancestors(parents, node)].tolist()
            expected = _last_logits(model, [*text, token, *path])
            difference = float((logits[node + 1] - expected).abs().max() / expected.std())
            error = difference if not difference <= error else error  # NaN wins
        runner.keep([[0, *(node + 1 for node in kept)]])
        text += [token, *tree.token_ids[kept].tolist()]
        token = int(rng.integers(3, size))
    limit = _EXACT.get(model.dtype, _CLOSE)
    assert error <= limit, f"tree rows are off their paths by {error:.1e} (at most {limit:.0e})"
    return error


def check_generation(model: Any, texts: list[torch.Tensor], *, num_new: int = 14, **options: Any) -> tuple[int, int]:
    """With drafts the output is that of plain `generate`, greedy or sampled; returns how many it drafted, accepted."""
    drafted = accepted = 0
    for number, prompt in enumerate(texts):
        kwargs = {"max_new_tokens": num_new, "do_sample": False, "eos_token_id": None, **options}
        prompt = prompt.to(model.device)
        forget_lengths(model)
        torch.manual_seed(number)
        expected = model.generate(prompt, **kwargs)
        lookahead = pia.Lookahead(cache=ToySource(expected[0].tolist(), 0.7, seed=number), budget=10)
        capability_of(model, self_check=True)  # which feeds short texts
        forget_lengths(model)
        torch.manual_seed(number)
        out = model.generate(prompt, custom_generate=lookahead, return_dict_in_generate=True, **kwargs)
        got = out.sequences
        assert torch.equal(got, expected), f"prompt {number} of length {prompt.shape[1]}: {got} is not {expected}"
        drafted += out.stats.num_drafted
        accepted += out.stats.num_accepted
    return drafted, accepted


def forget_lengths(model: Any) -> None:
    """Dynamic rope remembers the longest text until a short one comes, between calls of plain `generate` too."""
    if "dynamic" in rope_types(model.config.get_text_config(decoder=True)):
        with torch.no_grad():
            model(input_ids=torch.tensor([[5]], device=model.device))


def check_batch(model: Any, texts: list[torch.Tensor], *, num_new: int = 14, can_batch: bool = True) -> pia.Lookahead:
    """Each row of a ragged batch is what it is alone; returns the object that decoded it.

    A model that cannot batch leaves the call to Transformers, whose padding some of these models do not bear well. Then
    the batch is what plain `generate` makes of it.
    """
    kwargs = {"max_new_tokens": num_new, "do_sample": False, "eos_token_id": None}
    texts = [prompt.to(model.device) for prompt in texts]
    alone = [model.generate(prompt, **kwargs)[0, prompt.shape[1] :].tolist() for prompt in texts]
    lookahead = pia.Lookahead(budget=10)
    for prompt, answer in zip(texts, alone, strict=True):
        lookahead.cache.insert(np.array([int(prompt[0, -1]), *answer], dtype=np.int32))
    longest = max(prompt.shape[1] for prompt in texts)
    batch = torch.zeros((len(texts), longest), dtype=torch.long)
    mask = torch.zeros_like(batch)
    for row, prompt in enumerate(texts):
        batch[row, longest - prompt.shape[1] :] = prompt[0]
        mask[row, longest - prompt.shape[1] :] = 1
    batch, mask = batch.to(model.device), mask.to(model.device)
    out = model.generate(batch, attention_mask=mask, custom_generate=lookahead, **kwargs)
    if not can_batch:
        assert torch.equal(out, model.generate(batch, attention_mask=mask, **kwargs))
        return lookahead
    for row, answer in enumerate(alone):
        assert out[row, longest:].tolist() == answer, f"row {row} differs from itself alone"
    return lookahead


def _tree(parents: list[int], token_ids: np.ndarray) -> DraftTree:
    size = len(parents)
    probs = np.linspace(1, 0.1, size, dtype=np.float32)
    return DraftTree(token_ids.astype(np.int32), np.array(parents, np.int32), probs, np.zeros(size, np.uint8))


@torch.no_grad()
def _last_logits(model: Any, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, -1].double()
