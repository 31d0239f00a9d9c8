"""A wrong mask or position is silent, so what a model declares is proved on a tiny tree before it is relied upon."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from pia.drafting.tree import DraftTree
from pia.models.capability import Capability, Mode
from pia.models.distance import rms_distance
from pia.models.placement import compute_dtype, input_device
from pia.models.prefill import has_prompt_form
from pia.models.recurrent_check import recurrent_errors
from pia.models.runner import SlabRunner
from pia.models.window_check import window_error

_PROMPT_LENGTH = 11
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Largest relative error that counts as equal. Wrong masks were measured at 0.07 and more."""
_TOLERANCE_16_BIT = 3e-2
_NOISE_FACTOR = 4.0
"""How far a tree may be from its paths, in units of what plain cached decoding itself is off a forward without a
cache."""


def proved_capability(model: Any, declared: Capability) -> Capability:
    """Lowers the declared capability to what the model shows: tree, else chain, else one token at a time."""
    tolerance = _TOLERANCE.get(compute_dtype(model), _TOLERANCE_16_BIT)
    mode, reason = declared.mode, declared.reason
    while mode > Mode.PLAIN:
        failure = _failure(model, replace(declared, mode=mode), tolerance)
        if failure is None:
            return replace(declared, mode=mode, reason=reason, can_batch=declared.can_batch and mode == Mode.TREE)
        reason = f"self-check: {failure}"
        mode = Mode(mode - 1)
    return replace(declared, mode=mode, reason=reason, can_batch=False)


def _failure(model: Any, claimed: Capability, tolerance: float) -> str | None:
    """What is wrong with verifying in this mode, or `None`."""
    mode = claimed.mode
    try:
        can_branch = mode == Mode.TREE
        new_runner = partial(SlabRunner, model, can_branch=can_branch)
        errors = recurrent_errors(model) if claimed.is_recurrent else _errors(model, new_runner, can_branch=can_branch)
        error, noise = errors
        window = window_error(model) if mode == Mode.TREE else None
    except Exception as refusal:  # a model may refuse in any way it likes; that is an answer too
        return f"a {mode.label} of tokens raised {type(refusal).__name__}: {str(refusal)[:120]}"
    if window is not None and not window <= tolerance:
        return f"beyond its window a {mode.label} comes out otherwise than under the model's own masks ({window:.1e})"
    if _is_equal(error, noise, tolerance):
        return None
    return f"logits of a {mode.label} differ from those of its own paths by {error:.1e} (plain decoding: {noise:.1e})"


def why_not_right(model: Any, new_runner: Callable[[], SlabRunner]) -> str | None:
    """What is wrong with a runner of trees: its logits against the model's own without a cache, or `None`."""
    error, noise = _errors(model, new_runner, can_branch=True)
    if _is_equal(error, noise, _TOLERANCE.get(compute_dtype(model), _TOLERANCE_16_BIT)):
        return None
    return f"its logits are off by {error:.1e} (plain decoding: {noise:.1e})"


def _is_equal(error: float, noise: float, tolerance: float) -> bool:
    return error <= max(tolerance, _NOISE_FACTOR * noise)  # false for NaN


@torch.no_grad()
def _errors(model: Any, new_runner: Callable[[], SlabRunner], *, can_branch: bool) -> tuple[float, float]:
    """Relative errors, against forwards without a cache, of a tree with a step after it and of plain decoding."""
    prompt, tree, after = _example(model, can_branch)
    runner = new_runner()
    runner.prefill([prompt[0, :-1]])
    rows = [runner.forward([int(prompt[0, -1])], [tree])[0]]
    leaf_paths = _leaf_paths(tree)
    kept = leaf_paths[-1]
    runner.keep([[0, *(node + 1 for node in kept)]])
    rows.append(runner.forward([after], [DraftTree.empty()])[0])  # shows that the right slots were kept

    texts = [[*prompt[0].tolist(), *tree.token_ids[path].tolist(), after] for path in leaf_paths]
    expected = model(input_ids=torch.tensor(texts, device=input_device(model)), use_cache=False).logits
    scale = float(expected.double().std())
    start = prompt.shape[1] - 1
    error = rms_distance(rows[1], expected[-1, -1:])
    for path, logits in zip(leaf_paths, expected, strict=True):
        fed = [0, *(node + 1 for node in path)]
        error = _worst(error, rms_distance(rows[0][fed], logits[start : start + len(fed)]))
    return error / scale, _plain_noise(model, prompt, texts[-1], expected[-1]) / scale


def _plain_noise(model: Any, prompt: torch.Tensor, text: list[int], expected: torch.Tensor) -> float:
    """How far one-token-at-a-time decoding is from a forward over the whole text."""
    runner = SlabRunner(model)
    runner.prefill([prompt[0, :-1]])
    error = 0.0
    for position in range(prompt.shape[1] - 1, len(text)):
        logits = runner.forward([text[position]], [DraftTree.empty()])[0]
        runner.keep([[0]])
        error = _worst(error, rms_distance(logits, expected[position : position + 1]))
    return error


def _worst(a: float, b: float) -> float:
    """The larger of two errors; NaN wins."""
    return b if not b <= a else a


def _example(model: Any, can_branch: bool) -> tuple[torch.Tensor, DraftTree, int]:
    """A prompt `[1, length]`, a tree (or chain) and a token after it, of fixed pseudo-random token ids."""
    vocab_size = model.get_input_embeddings().weight.shape[0]
    parents = [-1, -1, 0, 1, 1, 2, 4] if can_branch else [-1, 0, 1, 2]
    ids = np.random.default_rng(7).integers(0, vocab_size, _PROMPT_LENGTH + len(parents) + 1)
    nodes = ids[_PROMPT_LENGTH:-1].astype(np.int32)
    probs = np.linspace(0.9, 0.1, len(parents), dtype=np.float32)
    tree = DraftTree(nodes, np.asarray(parents, dtype=np.int32), probs, np.zeros(len(parents), dtype=np.uint8))
    prompt = torch.tensor(ids[None, :_PROMPT_LENGTH], device=input_device(model))
    if has_prompt_form(model):
        prompt = model.as_prompt(prompt)
    return prompt, tree, int(ids[-1])


def _leaf_paths(tree: DraftTree) -> list[list[int]]:
    """The longest root-to-leaf paths (they have one length, so that they make one batch)."""
    paths: list[list[int]] = []
    for node, parent in enumerate(tree.parents.tolist()):
        paths.append([*(paths[parent] if parent >= 0 else []), node])
    longest = max(map(len, paths))
    return [path for path in paths if len(path) == longest]
