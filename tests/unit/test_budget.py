"""The budget rule: nodes must pay for themselves, at measured costs and corrected probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pia.drafting.budget import BudgetPolicy, Calibrator, CostCurve
from pia.drafting.separate_budget import SeparateBudgetPolicy
from pia.drafting.tree import DraftTree


def tree_of(probs, parents=None, token_ids=None):
    size = len(probs)
    return DraftTree(
        np.arange(size, dtype=np.int32) if token_ids is None else np.array(token_ids, np.int32),
        np.full(size, -1, np.int32) if parents is None else np.array(parents, np.int32),
        np.array(probs, np.float32),
        np.zeros(size, np.uint8),
    )


@given(
    st.lists(st.floats(0.01, 1.0), min_size=0, max_size=20),
    st.lists(st.floats(0.1, 3.0), min_size=1, max_size=6),
)
def test_choice_is_the_best_of_all_sizes(probs, increments):
    sizes = [1, *range(3, 3 + 4 * (len(increments) - 1), 4)]
    curve = CostCurve(sizes, np.cumsum(increments).tolist())
    policy = BudgetPolicy(curve, max_nodes=20)
    probs = np.sort(np.array(probs, np.float32))[::-1]
    costs = curve.table(21)
    rates = [(1 + float(probs[:n].sum())) / costs[n] for n in range(len(probs) + 1)]
    assert rates[policy.choose(probs)] == pytest.approx(max(rates), rel=1e-5)


def test_a_step_in_the_cost_is_looked_beyond():
    """The first nodes do not pay, all together do: float32 on a CPU jumps at the second token and is flat behind it."""
    policy = BudgetPolicy(CostCurve([1, 2, 8], [1.0, 1.6, 1.6]), max_nodes=7)
    assert policy.choose(np.array([0.5], np.float32)) == 0
    assert policy.choose(np.full(7, 0.3, np.float32)) == 7


def test_expensive_tokens_are_not_drafted():
    policy = BudgetPolicy(CostCurve([1, 2, 3], [1.0, 2.0, 3.0]), max_nodes=2)
    assert policy.choose(np.array([0.98, 0.97], np.float32)) == 0


def test_curve_never_falls_and_goes_on():
    curve = CostCurve([1, 2, 4], [1.0, 0.9, 2.0])
    assert curve.table(6).tolist() == pytest.approx([1.0, 1.0, 1.5, 2.0, 2.5, 3.0])
    for sizes, seconds in (([2, 4], [1, 1]), ([1, 4, 2], [1, 1, 1]), ([], []), ([1, 2], [1])):
        with pytest.raises(ValueError, match="cost curve"):
            CostCurve(sizes, seconds)


def test_calibration_follows_what_is_accepted():
    rng = np.random.default_rng(0)
    calibrator = Calibrator()
    for _ in range(400):
        probs = rng.uniform(0.05, 0.95, 100).astype(np.float32)
        calibrator.observe(probs, rng.random(100) < probs / 2)  # the source is twice too sure of itself
    probs = np.linspace(0.2, 0.9, 8, dtype=np.float32)
    assert calibrator(probs) == pytest.approx(probs / 2, rel=0.2)


def test_stops_when_drafts_never_pay_and_starts_again():
    policy = BudgetPolicy(CostCurve([1, 2, 9], [1.0, 1.2, 1.4]), max_nodes=8)
    wrong = tree_of([0.85, 0.5, 0.3], token_ids=[1, 2, 3])

    num_idle = 0

    def step(first_token, accepted):
        nonlocal num_idle
        num_idle += policy.limit == 0
        proposed = wrong if policy.limit else DraftTree.empty()
        size = policy.choose(proposed.probs)
        policy.observe(proposed, size, accepted if size else [], first_token)
        return size

    sizes = [step(9, []) for _ in range(300)]
    assert sizes[0] > 0
    assert not any(sizes[-150:])
    assert num_idle > 100  # the source is not even asked
    back = [step(1, [0]) for _ in range(300)]
    assert any(back) and all(back[-20:])


def test_fixed_size():
    policy = BudgetPolicy(None, max_nodes=5, fixed=5)
    assert policy.limit == 5
    assert policy.choose(np.full(9, 0.01, np.float32)) == 5
    assert BudgetPolicy(None, max_nodes=0, fixed=0).limit == 0
    with pytest.raises(ValueError, match="cost curve or a fixed size"):
        BudgetPolicy(None, max_nodes=3)


@pytest.mark.parametrize("num_rows", [1, 3, 4, 8])
def test_rows_with_forwards_of_their_own_rest_as_one_row_does(num_rows):
    """Looking for drafts pauses after steps that paid nothing, however many rows each step has."""
    policy = SeparateBudgetPolicy(CostCurve([1, 64], [1.0, 64.0]), max_nodes=16)
    limits = []
    for _ in range(28):
        limits.append(policy.limit)
        policy.choose_rows([np.array([0.01], np.float32)] * num_rows)
    assert all(limits[:16])
    assert [limit > 0 for limit in limits[16:]] == [True, False, False, False] * 3
