"""The checks of the zoo on a user's own model: `pytest tests/models --model PATH_OR_NAME`."""

from __future__ import annotations

import pytest
import torch
from checks import check_batch, check_generation, check_tree_rows, prompts, vocab_size_of

from pia.models.masks import reach

_FEW_PARAMETERS = 300_000_000
"""Models up to this size are checked over more prompts."""


@pytest.fixture(scope="session")
def texts(own_model):
    """Random prompts of mixed length; a window is exceeded if it is not too long to wait for."""
    is_small = sum(parameter.numel() for parameter in own_model.parameters()) < _FEW_PARAMETERS
    found = prompts(12 if is_small else 4, vocab_size_of(own_model), seed=7)
    window = reach(own_model.config)
    if window is not None and window <= (4096 if is_small else 512):
        found.append(torch.randint(3, vocab_size_of(own_model), (1, window + 9)))
    return found


def test_rows_of_drafts_are_the_logits_of_their_paths(own_model, own_row):
    if own_row["mode"] == "plain":
        pytest.skip("one token at a time")
    check_tree_rows(own_model, can_branch=own_row["mode"] == "tree")


def test_greedy_output_is_that_of_plain_generate(own_model, own_row, texts):
    drafted, accepted = check_generation(own_model, texts)
    assert (accepted > 0) == (drafted > 0) == (own_row["mode"] != "plain")


def test_sampled_output_is_that_of_plain_generate(own_model, texts):
    check_generation(own_model, texts[:4], do_sample=True, temperature=0.9, top_p=0.9)


def test_rows_of_a_batch_are_as_alone(own_model, own_row, texts):
    check_batch(own_model, texts[:5], can_batch=own_row["can_batch"])
