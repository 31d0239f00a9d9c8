"""How many draft nodes a step should verify: they must pay for themselves.

A forward over q tokens costs c(q), measured for the model at hand. With calibrated path probabilities p_1 >= p_2 >=
... a step over the first n nodes is expected to yield 1 + p_1 + ... + p_n tokens, so the best n maximises that over
c(n + 1), zero included. All n are looked at: c has steps, and the first one is often the highest.

A batch is fed as a rectangle: B rows with the most nodes of any, n, cost c(B (n + 1)), whether all rows fill theirs or
not. So n is what the rows choose together: it maximises the sum of what they are expected to yield over that cost. A
row whose drafts are worth little is carried along by those whose drafts are, and gets what is free anyway.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pia.drafting.tree import DraftTree

_EDGES = np.array([0.005, 0.01, 0.02, 0.04, 0.07, 0.12, 0.2, 0.3, 0.42, 0.55, 0.68, 0.8, 0.9, 0.96], dtype=np.float32)
"""Borders of the probability bins, finer where the decision falls."""


class CostCurve:
    """Cost of a forward by number of tokens, linear between the measured sizes.

    Args:
        sizes: numbers of tokens q, ascending, starting with 1.
        seconds: time of a forward over so many tokens (any unit: only ratios count).
    """

    def __init__(self, sizes: Sequence[int], seconds: Sequence[float]) -> None:
        if len(sizes) != len(seconds) or not len(sizes) or sizes[0] != 1 or list(sizes) != sorted(set(sizes)):
            raise ValueError(
                f"a cost curve needs ascending sizes from 1 and one time each, got {list(sizes)} and {list(seconds)}"
            )
        self.sizes = list(sizes)
        # More tokens never cost less: a dip is noise of the measurement.
        self.seconds = np.maximum.accumulate(np.asarray(seconds, dtype=np.float64)).tolist()

    def table(self, max_tokens: int) -> np.ndarray:
        """Relative cost c(q) / c(1) of q = 1 .. `max_tokens`, `[max_tokens]`; the last slope goes on for ever."""
        q = np.arange(1, max_tokens + 1, dtype=np.float64)
        costs = np.interp(q, self.sizes, self.seconds)
        if len(self.sizes) > 1:
            slope = (self.seconds[-1] - self.seconds[-2]) / (self.sizes[-1] - self.sizes[-2])
            costs = np.where(q > self.sizes[-1], self.seconds[-1] + (q - self.sizes[-1]) * slope, costs)
        return np.asarray(costs / self.seconds[0])

    def __repr__(self) -> str:
        points = ", ".join(f"{q}: {s / self.seconds[0]:.2f}" for q, s in zip(self.sizes, self.seconds, strict=True))
        return f"CostCurve({points}; c(1) = {self.seconds[0] * 1e3:.2f} ms)"


class Calibrator:
    """Corrects estimated path probabilities by what was accepted, per bin of probability, forgetting slowly."""

    _PRIOR = 16.0
    _DECAY = 0.99
    _PAYOFF_DECAY = 0.8

    def __init__(self) -> None:
        self._expected = np.zeros(len(_EDGES) + 1)
        self._accepted = np.zeros(len(_EDGES) + 1)
        self._factors = np.ones(len(_EDGES) + 1)
        self.num_wanted = math.inf
        """How many nodes the rule wanted of late, fading; at first nothing is known, so the whole tree is looked at."""
        self.payoff = 0.5
        """What verified steps won of late, in plain steps: tokens accepted less the cost of the nodes."""

    def __call__(self, probs: np.ndarray) -> np.ndarray:
        """Corrected probabilities, same shape, at most 1."""
        return np.minimum(probs * self._factors[_EDGES.searchsorted(probs)], 1.0)

    def observe(self, probs: np.ndarray, accepted: np.ndarray) -> None:
        """Learns from nodes whose fate is known: their estimates and whether they were accepted, `[n]` each."""
        bins = _EDGES.searchsorted(probs)
        size = len(self._factors)
        self._expected *= self._DECAY
        self._expected += np.bincount(bins, weights=probs, minlength=size)
        self._accepted *= self._DECAY
        self._accepted += np.bincount(bins, weights=accepted, minlength=size)
        # A bin with little to show goes by all bins together.
        overall = float(self._accepted.sum() + self._PRIOR) / float(self._expected.sum() + self._PRIOR)
        self._factors = (self._accepted + self._PRIOR * overall) / (self._expected + self._PRIOR)

    def observe_payoff(self, won: float) -> None:
        """Learns what one verified step won."""
        self.payoff = self._PAYOFF_DECAY * self.payoff + (1 - self._PAYOFF_DECAY) * won


class BudgetPolicy:
    """Chooses the size of each step's tree, and learns from how it went.

    Args:
        curve: cost of a forward; `None` with a fixed size.
        max_nodes: no tree is larger.
        fixed: verify this many nodes at every step (as many as there are) instead of asking the rule.
        calibrator: what earlier requests showed; a new one by default.
        num_rows: requests in the batch at first.
    """

    _IDLE_AFTER = 16
    _RETRY_EVERY = 4
    _VERIFY_EVERY = 8
    _HOLD_BELOW = -0.03  # what is cheaper than this share of a step is not worth missing a draft for

    def __init__(
        self,
        curve: CostCurve | None,
        *,
        max_nodes: int,
        fixed: int | None = None,
        calibrator: Calibrator | None = None,
        num_rows: int = 1,
    ) -> None:
        if curve is None and fixed is None:
            raise ValueError("a budget needs either a cost curve or a fixed size")
        self.max_nodes = fixed if fixed is not None else max_nodes
        self.fixed = fixed
        self.calibrator = calibrator or Calibrator()
        size = num_rows * (self.max_nodes + 1)
        self._table = curve.table(size) if curve is not None else np.ones(size)
        self._num_rows = num_rows
        self._costs = self._costs_of(num_rows)
        self._unpaid_steps = 0
        self._num_held = 0
        self._num_wanted = min(self.calibrator.num_wanted, float(self.max_nodes))

    def expect_much(self) -> None:
        """Lets the first steps ask for whole trees and verify the first one that promises to pay.

        The caller has said what to expect, so this request's drafts may be long, whatever earlier ones were worth.
        """
        self._num_wanted = float(self.max_nodes)
        self._num_held = self._VERIFY_EVERY - 1

    @property
    def limit(self) -> int:
        """How many nodes to ask the source for at this step: 0 while drafts do not pay, but for a try now and then.

        A try costs a look-up and no forward: whether its first token was right shows without verifying it.
        """
        if self.fixed is not None:
            return self.fixed
        if self._unpaid_steps >= self._IDLE_AFTER and self._unpaid_steps % self._RETRY_EVERY:
            return 0
        return min(self.max_nodes, int(8 + 2.5 * self._num_wanted))

    def choose(self, probs: np.ndarray) -> int:
        """Number of nodes to verify, of a tree whose nodes have these estimated path probabilities (best first)."""
        return self.choose_rows([probs])[0]

    def choose_rows(self, probs: Sequence[np.ndarray]) -> list[int]:
        """Number of nodes to verify in each row of a batch, of trees with these path probabilities (best first)."""
        if self.fixed is not None:
            return [min(self.fixed, len(row)) for row in probs]
        if len(probs) != self._num_rows:  # rows have left
            self._num_rows, self._costs = len(probs), self._costs_of(len(probs))
        longest = max(map(len, probs))
        gains = np.zeros(longest + 1)
        gains += len(probs)
        for row in probs:
            expected = self.calibrator(row).cumsum()
            gains[1 : len(row) + 1] += expected
            if 0 < len(row) < longest:
                gains[len(row) + 1 :] += expected[-1]
        gains /= self._costs[: longest + 1]
        best = int(gains.argmax())
        self._num_wanted = self.calibrator.num_wanted = max(best, 0.8 * self._num_wanted)
        if best and self._is_held():
            best = 0
        self._unpaid_steps = 0 if best else self._unpaid_steps + 1
        return [min(best, len(row)) for row in probs]

    def _costs_of(self, num_rows: int) -> np.ndarray:
        """Cost of 0, 1, 2 ... nodes in each of so many rows, relative to a plain step over them, `[max_nodes + 1]`."""
        steps = self._table[num_rows - 1 :: num_rows][: self.max_nodes + 1]
        return np.asarray(steps / steps[0])

    def _is_held(self) -> bool:
        """Whether a promising draft is passed over: while what was verified of late did not pay, most are."""
        if self.calibrator.payoff >= self._HOLD_BELOW:
            return False
        self._num_held += 1
        return self._num_held % self._VERIFY_EVERY != 0

    def observe_payoff(self, num_verified: int, num_accepted: int) -> None:
        """Learns what a step won as a whole.

        Args:
            num_verified: the most nodes that any row was fed.
            num_accepted: drafted tokens accepted in all rows together.
        """
        if self.fixed is None and num_verified:
            cost = float(self._costs[num_verified]) - 1.0
            self.calibrator.observe_payoff(num_accepted / self._num_rows - cost)

    def observe(self, proposed: DraftTree, num_verified: int, accepted: Sequence[int], first_token: int) -> None:
        """Learns from a step of one row; arguments as for `observe_row`."""
        self.observe_payoff(num_verified, len(accepted))
        self.observe_row(proposed, num_verified, accepted, first_token)

    def observe_row(self, proposed: DraftTree, num_verified: int, accepted: Sequence[int], first_token: int) -> None:
        """Learns how likely drafts are from one row of a step.

        Args:
            proposed: the whole draft.
            num_verified: so many of its nodes were fed.
            accepted: these of them were accepted.
            first_token: the first token that was emitted.

        Of nodes that were not fed, those of depth one are known too: the token that was emitted there is known.
        """
        if self.fixed is not None or len(proposed) == 0:
            return
        hits = np.zeros(len(proposed), dtype=bool)
        hits[accepted] = True
        if num_verified == len(proposed):
            self.calibrator.observe(proposed.probs, hits)
            return
        known = proposed.parents < 0
        hits[num_verified:] = known[num_verified:] & (proposed.token_ids[num_verified:] == first_token)
        known[:num_verified] = True
        self.calibrator.observe(proposed.probs[known], hits[known])
