"""The budget of chains that are fed again: what a step leaves behind is charged to it."""

from __future__ import annotations

import numpy as np
import pytest

from pia.drafting.budget import CostCurve
from pia.drafting.chain_budget import _MOST_PENDING, ChainBudgetPolicy, chain_costs
from pia.drafting.tree import DraftTree

CURVES = {
    "flat": CostCurve([1, 64], [1.0, 1.02]),
    "a jump at two": CostCurve([1, 2, 8, 64], [1.0, 1.6, 1.6, 3.0]),
    "steep": CostCurve([1, 64], [1.0, 40.0]),
}


def chain(size: int, prob: float) -> DraftTree:
    return DraftTree(
        np.arange(size, dtype=np.int32),
        np.arange(-1, size - 1, dtype=np.int32),
        (prob ** np.arange(1, size + 1)).astype(np.float32),
        np.zeros(size, np.uint8),
    )


def decode(curve: CostCurve, prob: float, claimed: float, *, fixed=None, num_tokens=1500, seed=0):
    """Plays steps whose drafted tokens are right with `prob` each, and are said to be with `claimed`.

    Returns:
        cost per token, in forwards over one token, and the most tokens that ever waited.
    """
    rng = np.random.default_rng(seed)
    table, pending, most, cost, done = curve.table(200), 0, 0, 0.0, 0
    budget = None if fixed is not None else curve
    policy = ChainBudgetPolicy(lambda: pending, budget, max_nodes=fixed or 16, fixed=fixed)
    while done < num_tokens:
        tree = chain(min(policy.limit, 16), claimed)
        size = policy.choose(tree.probs)
        num_right = int(np.argmin(np.append(rng.random(size) < prob, False)))
        cost += table[pending + size]
        pending = 0 if num_right == size else pending + 1 + num_right
        most = max(most, pending)
        done += 1 + num_right
        policy.observe(tree, size, list(range(num_right)), num_right if size and num_right else -1)
    return cost / done, most


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("prob", [0.0, 0.2, 0.5, 0.8, 0.97])
@pytest.mark.parametrize("claimed", [0.3, 0.9])
def test_never_dearer_than_plain_decoding(name, prob, claimed):
    cost, most = decode(CURVES[name], prob, claimed)
    assert cost < 1.04  # what finding out costs
    assert most <= _MOST_PENDING + 17
    if prob == 0.97 and claimed == 0.9 and name != "steep":
        assert cost < 0.5


def test_a_fixed_size_does_not_let_replays_grow():
    _, most = decode(CURVES["flat"], 0.5, 0.9, fixed=4)
    assert 8 < most <= _MOST_PENDING + 5


def test_costs_are_expectations():
    """Against the definition, every outcome of a step over n nodes taken apart."""
    table = CURVES["a jump at two"].table(80)
    probs, pending = np.array([0.9, 0.5, 0.4, 0.1]), 3
    reached = [1.0, *probs]
    costs = chain_costs(table, probs, pending)
    for n in range(5):
        own = table[pending + n] - (table[pending] - 1)
        left = sum((reached[k] - reached[k + 1]) * (table[pending + 1 + k] - 1) for k in range(n))
        assert costs[n] == pytest.approx(own + left)
    assert costs[0] == pytest.approx(1.0)  # a step without a draft costs the same whatever waits


def test_nothing_waiting_and_a_sure_draft_is_the_plain_rule():
    table = CURVES["steep"].table(80)
    np.testing.assert_allclose(chain_costs(table, np.ones(6), 0), table[:7])
