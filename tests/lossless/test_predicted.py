"""Predicted outputs change nothing, right or wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pia
from edits import scattered
from toys import VOCAB, prompts

NUM_NEW = 40
SETTINGS = [{}, {"temperature": 0.7, "top_k": 10}, {"top_p": 0.8, "repetition_penalty": 1.2}]


def predictions(output: list[int], seed: int) -> dict[str, list[int]]:
    rng = np.random.default_rng(seed)
    return {
        "right": output,
        "wrong": rng.integers(0, VOCAB, 60).tolist(),
        "partly right": scattered(output, 0.2, seed),
        "out of order": output[20:] + output[:20],
        "a part": output[10:15],
        "over-long": output + rng.integers(0, VOCAB, 500).tolist() + output,
        "one token": [2],
        "empty": [],
    }


@pytest.mark.parametrize("budget", [3, 16, "auto"])
def test_greedy_output_stays(family, budget):
    for seed, prompt in enumerate(prompts(3, seed=41)):
        expected = family.generate(prompt, max_new_tokens=NUM_NEW, do_sample=False)
        output = expected[0, prompt.shape[1] :].tolist()
        lookahead = pia.Lookahead(budget=budget)
        for name, predicted in predictions(output, seed).items():
            out = family.generate(
                prompt,
                max_new_tokens=NUM_NEW,
                do_sample=False,
                custom_generate=lookahead,
                predicted_output_ids=predicted,
            )
            assert torch.equal(out, expected), name


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: "-".join(setting) or "plain")
def test_sampled_output_stays(family, setting):
    for seed, prompt in enumerate(prompts(2, seed=43)):
        options = {"max_new_tokens": NUM_NEW, "do_sample": True, **setting}
        torch.manual_seed(seed)
        expected = family.generate(prompt, **options)
        for name, predicted in predictions(expected[0, prompt.shape[1] :].tolist(), seed).items():
            torch.manual_seed(seed)
            out = family.generate(
                prompt, custom_generate=pia.Lookahead(budget=16), predicted_output_ids=predicted, **options
            )
            assert torch.equal(out, expected), name


@pytest.mark.parametrize("shape", ["tree", "branches", "chain"])
def test_shapes(llama, shape):
    prompt = prompts(1, seed=44)[0]
    expected = llama.generate(prompt, max_new_tokens=NUM_NEW, do_sample=False, eos_token_id=None)
    out = llama.generate(
        prompt,
        max_new_tokens=NUM_NEW,
        do_sample=False,
        eos_token_id=None,
        custom_generate=pia.Lookahead(budget=12, shape=shape),
        predicted_output_ids=expected[0, prompt.shape[1] :],
        return_dict_in_generate=True,
    )
    assert torch.equal(out.sequences, expected)
    assert out.stats.edl > 4
