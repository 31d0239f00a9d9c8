"""Greedy output equals plain `generate`, whatever the drafts are worth and whatever shapes the logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pia
from toys import VOCAB, ToySource, prompts, tiny_model

NUM_NEW = 24
OPTIONS = [
    {},
    {"repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 2},
    {"min_new_tokens": 12, "eos_token_id": list(range(2, 30))},
    {"eos_token_id": [2, 5, 7, 11, 13, 17]},
    {"bad_words_ids": [[5], [7, 8], [11]], "repetition_penalty": 1.1},
    {"suppress_tokens": list(range(3, 50)), "encoder_no_repeat_ngram_size": 2},
]


def generate(model, prompt, **options):
    return model.generate(prompt, max_new_tokens=NUM_NEW, do_sample=False, **options)


@pytest.mark.parametrize("agreement", [0.0, 0.6, 1.0], ids=["never", "sometimes", "always"])
@pytest.mark.parametrize("shape", ["tree", "branches", "chain"])
def test_toy_drafts_change_nothing(family, agreement, shape):
    for number, prompt in enumerate(prompts(6, seed=3)):
        options = OPTIONS[number % len(OPTIONS)]
        expected = generate(family, prompt, **options)
        source = ToySource(expected[0].tolist(), agreement, seed=number)
        lookahead = pia.Lookahead(cache=source, budget=15, shape=shape)
        out = generate(family, prompt, custom_generate=lookahead, return_dict_in_generate=True, **options)
        assert torch.equal(out.sequences, expected)
        if agreement == 1.0 and expected.shape[1] - prompt.shape[1] == NUM_NEW:
            assert out.stats.edl > (2.0 if shape == "tree" else 1.0)  # the drafts were really used
        if agreement == 0.0 and out.stats.num_steps > 1:
            assert out.stats.num_accepted == 0 and out.stats.num_drafted > 0


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_own_drafts_change_nothing(family, options):
    """Over many prompts with one cache that learns as it goes, every second prompt being asked again."""
    lookahead = pia.Lookahead(budget=16)
    num_accepted = 0
    for number, prompt in enumerate(prompts(16, seed=11)):
        expected = generate(family, prompt, **options)
        for _ in range(1 + number % 2):
            out = generate(family, prompt, custom_generate=lookahead, return_dict_in_generate=True, **options)
            assert torch.equal(out.sequences, expected)
            num_accepted += out.stats.num_accepted
    assert num_accepted > 20


def test_automatic_budget_changes_nothing(family):
    lookahead = pia.Lookahead(max_budget=24)
    for prompt in prompts(6, seed=5):
        expected = generate(family, prompt)
        for _ in range(2):
            assert torch.equal(generate(family, prompt, custom_generate=lookahead), expected)


@pytest.mark.slow
def test_hundreds_of_prompts(family):
    lookahead = pia.Lookahead(budget=16)
    for number, prompt in enumerate(prompts(300, seed=23, longest=60)):
        options = OPTIONS[number % len(OPTIONS)]
        expected = generate(family, prompt, **options)
        assert torch.equal(generate(family, prompt, custom_generate=lookahead, **options), expected)


def test_left_padding_of_one_row(family):
    prompt = prompts(1, seed=9)[0]
    padded = torch.cat([torch.zeros((1, 5), dtype=torch.long), prompt], dim=1)
    mask = (torch.arange(padded.shape[1]) >= 5).long()[None]
    for options in ({}, {"repetition_penalty": 1.4}):
        expected = generate(family, padded, attention_mask=mask, **options)
        out = generate(family, padded, attention_mask=mask, custom_generate=pia.Lookahead(budget=8), **options)
        assert torch.equal(out, expected)


def test_left_padding_does_not_shift_positions(family):
    prompt = prompts(1, seed=9)[0]
    alone = generate(family, prompt, custom_generate=pia.Lookahead(budget=8))
    padded = torch.cat([torch.zeros((1, 5), dtype=torch.long), prompt], dim=1)
    mask = (torch.arange(padded.shape[1]) >= 5).long()[None]
    out = generate(family, padded, attention_mask=mask, custom_generate=pia.Lookahead(budget=8))
    assert torch.equal(out[:, 5:], alone)


def test_chunked_prefill(llama):
    prompt = prompts(1, seed=2, longest=200)[0].repeat(1, 3)
    expected = generate(llama, prompt)
    out = generate(llama, prompt, prefill_chunk_size=7, custom_generate=pia.Lookahead(budget=8))
    assert torch.equal(out, expected)


def test_text_fills_the_context():
    """Drafts near the end of learned positions must not look up positions that do not exist."""
    model = tiny_model("gpt2")
    prompt = torch.full((1, 490), 5)
    options = {"max_new_tokens": 22, "do_sample": False, "eos_token_id": None}  # 512 positions in all
    expected = model.generate(prompt, **options)
    lookahead = pia.Lookahead(budget=32)
    for _ in range(2):
        assert torch.equal(model.generate(prompt, custom_generate=lookahead, **options), expected)


@pytest.mark.parametrize("options", [{"budget": 10**6}, {"max_budget": 10**6}], ids=lambda options: next(iter(options)))
def test_huge_budget(llama, options):
    lookahead = pia.Lookahead(**options)
    lookahead.cache.insert(np.random.default_rng(0).integers(3, VOCAB, 20_000))  # enough for a tree of hundreds
    for prompt in prompts(2, seed=4):
        expected = generate(llama, prompt)
        out = generate(llama, prompt, custom_generate=lookahead, return_dict_in_generate=True)
        assert torch.equal(out.sequences, expected)
        if "budget" in options:
            assert max(out.kwargs["dls"]) > 300


def test_vocabulary_is_explored(llama):
    """The tiny models do not just repeat one token, or the equalities above would prove little."""
    seen = {t for p in prompts(20) for t in generate(llama, p)[0, p.shape[1] :].tolist()}
    assert len(seen) > VOCAB // 3
