"""Sampling: a seed gives the same text with and without drafts, and every token comes from the model's own
distribution."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

import pia
from toys import ToySource, prompts

SETTINGS = [
    {},
    {"temperature": 0.7, "top_k": 10},
    {"top_p": 0.8, "repetition_penalty": 1.2},
    {"min_p": 0.05, "temperature": 1.5},
    {"typical_p": 0.9, "no_repeat_ngram_size": 3},
]


def sample(model, prompt, seed, **options):
    torch.manual_seed(seed)
    return model.generate(prompt, max_new_tokens=20, do_sample=True, **options)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: "-".join(setting) or "plain")
def test_same_seed_same_text(family, setting):
    for seed, prompt in enumerate(prompts(4, seed=21)):
        stock = sample(family, prompt, seed, **setting)
        plain = sample(family, prompt, seed, custom_generate=pia.Lookahead(budget=0), **setting)
        source = ToySource(stock[0].tolist(), 0.7, seed=seed)
        drafted = sample(family, prompt, seed, custom_generate=pia.Lookahead(cache=source, budget=15), **setting)
        assert torch.equal(plain, stock)
        assert torch.equal(drafted, stock)


def test_warpers_are_honoured(llama):
    """With top_k=1 sampling is greedy; the seed's implementation sampled from the raw distribution."""
    for prompt in prompts(5, seed=8):
        greedy = llama.generate(prompt, max_new_tokens=20, do_sample=False)
        drawn = sample(llama, prompt, 0, top_k=1, custom_generate=pia.Lookahead(budget=12))
        assert torch.equal(drawn, greedy)


def test_tokens_follow_the_models_distribution(llama):
    """Chi-square of the tokens at a drafted position against the model's own probabilities."""
    prompt = prompts(1, seed=31)[0]
    with torch.no_grad():
        first = llama(prompt).logits[0, -1].argmax()
        start = torch.cat([prompt, first[None, None]], dim=1)
        probs = torch.softmax(llama(start).logits[0, -1] / 2.0, dim=-1)
    # Position 1 is always verified as a child of the root, since the source proposes the likeliest tokens there.
    likely = probs.topk(6).indices.tolist()
    counts: Counter[int] = Counter()
    num_draws = 1500
    torch.manual_seed(1)
    source = _FixedChildren(likely)
    lookahead = pia.Lookahead(cache=source, budget=6)
    for _ in range(num_draws):
        out = llama.generate(
            start,
            max_new_tokens=2,
            do_sample=True,
            temperature=2.0,
            top_k=0,
            custom_generate=lookahead,
            eos_token_id=None,
        )
        counts[int(out[0, start.shape[1]])] += 1
    observed = [counts[t] for t in likely] + [num_draws - sum(counts[t] for t in likely)]
    expected = [num_draws * float(probs[t]) for t in likely]
    expected.append(num_draws - sum(expected))
    chi_square = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    assert chi_square < 27.9  # 6 or 7 cells: p < 1e-4 if the distribution is right


def test_second_token_follows_its_distribution(llama):
    """The same for a token that was verified inside a tree, given the one before it."""
    prompt = prompts(1, seed=33)[0]
    first_probs, second_counts, num_draws = {}, {}, 1500
    with torch.no_grad():
        probs = torch.softmax(llama(prompt).logits[0, -1], dim=-1)
        likely = probs.topk(3).indices.tolist()
        for token in likely:
            text = torch.cat([prompt, torch.tensor([[token]])], dim=1)
            first_probs[token] = torch.softmax(llama(text).logits[0, -1], dim=-1)
            second_counts[token] = Counter()
    torch.manual_seed(2)
    lookahead = pia.Lookahead(cache=_FixedChildren(list(range(3, 40))), budget=37)
    for _ in range(num_draws):
        out = llama.generate(
            prompt, max_new_tokens=3, do_sample=True, top_k=0, custom_generate=lookahead, eos_token_id=None
        )
        first, second = out[0, prompt.shape[1] : prompt.shape[1] + 2].tolist()
        if first in second_counts:
            second_counts[first][second] += 1
    for token, counts in second_counts.items():
        total = sum(counts.values())
        cells = [t for t in range(97) if total * float(first_probs[token][t]) > 8]
        chi_square = sum(
            (counts[t] - total * float(first_probs[token][t])) ** 2 / (total * float(first_probs[token][t]))
            for t in cells
        )
        assert chi_square < len(cells) + 5 * (2 * len(cells)) ** 0.5 + 5


class _FixedChildren(ToySource):
    """Proposes the same children of the root at every step."""

    def __init__(self, token_ids: list[int]) -> None:
        super().__init__([], 0.0)
        self.token_ids = token_ids

    def draft(self, length, budget, max_depth):
        import numpy as np

        from pia.drafting.tree import DraftTree

        n = min(budget, len(self.token_ids))
        return DraftTree(
            np.array(self.token_ids[:n], np.int32),
            np.full(n, -1, np.int32),
            np.full(n, 0.1, np.float32),
            np.zeros(n, np.uint8),
        )
