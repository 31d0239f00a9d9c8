"""How long a chain should be where the accepted part of a draft has to be fed again.

A model with a recurrent state that accepts a draft in part goes back to the state before the step, and its next
forward carries the accepted tokens again. That is a debt, and the step that made it must answer for it: r tokens
waiting are worth c(r + 1) - c(1), what it costs to feed them along with a step that drafts nothing. A step is charged
for its own forward and for the debt it is expected to leave, less the debt that it found. So a step without a draft
always costs c(1), whatever is waiting, and a draft is verified only if it is worth more than that after all is paid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pia.drafting.budget import BudgetPolicy, Calibrator, CostCurve

_MOST_PENDING = 32
"""With so many tokens waiting, a step drafts nothing and feeds them, whatever the size asked for."""


class ChainBudgetPolicy(BudgetPolicy):
    """Chooses the length of each step's chain on a model with a recurrent state.

    Args:
        num_pending: says how many accepted tokens wait to be fed again in front of the coming step.
        curve: cost of a forward, a snapshot of the state included; `None` with a fixed size.
        max_nodes: no chain is longer.
        fixed: verify this many nodes at every step instead of asking the rule.
        calibrator: what earlier requests showed; a new one by default.
    """

    def __init__(
        self,
        num_pending: Callable[[], int],
        curve: CostCurve | None,
        *,
        max_nodes: int,
        fixed: int | None = None,
        calibrator: Calibrator | None = None,
    ) -> None:
        super().__init__(curve, max_nodes=max_nodes, fixed=fixed, calibrator=calibrator)
        self._num_pending = num_pending
        self._chain_table = curve.table(_MOST_PENDING + self.max_nodes + 2) if curve is not None else None

    @property
    def limit(self) -> int:
        return 0 if self._num_pending() >= _MOST_PENDING else super().limit

    def choose_rows(self, probs: Sequence[np.ndarray]) -> list[int]:
        if self._chain_table is not None:
            self._costs = chain_costs(self._chain_table, self.calibrator(probs[0]), self._num_pending())
        return super().choose_rows(probs)


def chain_costs(table: np.ndarray, probs: np.ndarray, num_pending: int) -> np.ndarray:
    """What steps over the first 0 .. n nodes of a chain cost in all, in forwards over one token.

    Args:
        table: relative cost c(q) / c(1) of q = 1, 2, ...
        probs: path probabilities of the chain's nodes, `[n]`.
        num_pending: tokens that wait to be fed again.

    Returns:
        costs, `[n + 1]`: own forward, less the debt found, and the debt that is to be expected.
    """
    size = len(probs)
    reached = np.minimum.accumulate(np.concatenate(([1.0], probs)))
    own = table[num_pending : num_pending + size + 1] - table[num_pending] + 1.0
    stops_after = reached[:-1] - reached[1:]  # [n]: exactly so many nodes are accepted, if more were fed
    debts = table[num_pending + 1 : num_pending + size + 1] - 1.0  # with the root, one more token waits than nodes
    return np.asarray(own + np.concatenate(([0.0], np.cumsum(stops_after * debts))))
