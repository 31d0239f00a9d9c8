"""How much of a lookahead window rides: as much as the hardware has to spare."""

from __future__ import annotations

import numpy as np
import pytest

from pia.config import JacobiConfig
from pia.drafting.budget import CostCurve
from pia.drafting.window_policy import WindowPolicy, WindowWorth

_CONFIG = JacobiConfig(window_size=8, ngram_size=4)  # 23 nodes
_FLAT = CostCurve([1, 128], [1.0, 1.0])
_STEEP = CostCurve([1, 2, 128], [1.0, 3.0, 40.0])
_SLOPE = CostCurve([1, 101], [1.0, 2.0])  # a node costs a hundredth of a step
_STAIRS = CostCurve([1, 16, 17, 128], [1.0, 1.0, 4.0, 4.0])


def run(policy: WindowPolicy, wins: float, num_steps: int, *, without: float = 0.0) -> list[int]:
    """Steps in which the whole window wins so many tokens, and a part of it that part; returns the nodes fed."""
    fed = []
    for _ in range(num_steps):
        fed.append(policy.choose(0))
        won = without + wins * fed[-1] / _CONFIG.num_nodes
        policy.observe(fed[-1], won, 1.0 + won)
    return fed


def test_a_fixed_budget_feeds_the_whole_window():
    assert set(run(WindowPolicy(_CONFIG, None, max_tree=64), 0.0, 200)) == {_CONFIG.num_nodes}


def test_on_idle_hardware_the_whole_window_rides():
    assert set(run(WindowPolicy(_CONFIG, _FLAT, max_tree=64), 0.1, 500)) == {_CONFIG.num_nodes}


def test_where_no_window_can_pay_nothing_is_even_tried():
    assert set(run(WindowPolicy(_CONFIG, _STEEP, max_tree=64), 1.5, 2000)) == {0}


def test_a_window_that_wins_nothing_goes_and_trying_stays_rare():
    policy = WindowPolicy(_CONFIG, _SLOPE, max_tree=64)
    fed = np.array(run(policy, 0.0, 4000))
    first = fed[:200]
    assert first[0] > 0 and first[-1] == 0
    table = _SLOPE.table(100)
    cost = (table[fed[200:]] - 1.0).mean()
    assert 0 < cost < 0.012


def test_a_window_that_pays_stays_and_comes_back():
    policy = WindowPolicy(_CONFIG, _SLOPE, max_tree=64)
    assert run(policy, 0.0, 400)[-1] == 0
    fed = run(policy, 1.0, 4000)
    assert np.mean(np.array(fed[-1000:]) == _CONFIG.num_nodes) > 0.9


def test_what_the_pool_wins_without_the_window_is_not_the_windows():
    policy = WindowPolicy(_CONFIG, _SLOPE, max_tree=64)
    fed = run(policy, 0.0, 30_000, without=0.6)
    assert np.mean(fed[-5000:]) < 0.05 * _CONFIG.num_nodes


def test_a_part_of_the_window_fills_what_is_free():
    policy = WindowPolicy(_CONFIG, _STAIRS, max_tree=64)
    assert policy.choose(0) == 15 and policy.choose(10) == 5 and policy.choose(15) == 0


@pytest.mark.parametrize("rows", [1, 4])
def test_a_batch_pays_for_all_its_rows(rows):
    policy = WindowPolicy(_CONFIG, _STAIRS, max_tree=64, num_rows=4)
    assert policy.choose(1, rows) == 16 // rows - 2


def test_requests_of_a_model_share_what_was_learned():
    worth = WindowWorth()
    run(WindowPolicy(_CONFIG, _SLOPE, max_tree=64, worth=worth), 0.0, 300)
    assert WindowPolicy(_CONFIG, _SLOPE, max_tree=64, worth=worth).choose(0) == 0
