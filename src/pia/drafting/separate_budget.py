"""The budget of a batch whose rows have forwards of their own: each row chooses for itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pia.drafting.budget import BudgetPolicy


class SeparateBudgetPolicy(BudgetPolicy):
    """Chooses each row's size as if it were alone; arguments as of `BudgetPolicy`, without `num_rows`."""

    _sizes: Sequence[int] = ()

    def choose_rows(self, probs: Sequence[np.ndarray]) -> list[int]:
        unpaid_steps = self._unpaid_steps
        self._sizes = [super(SeparateBudgetPolicy, self).choose_rows([row])[0] for row in probs]
        self._unpaid_steps = 0 if any(self._sizes) else unpaid_steps + 1  # a step counts once, whatever its rows
        return list(self._sizes)

    def observe_payoff(self, num_verified: int, num_accepted: int) -> None:
        if self.fixed is None and num_verified:
            cost = sum(float(self._costs[size]) - 1.0 for size in self._sizes)
            self.calibrator.observe_payoff((num_accepted - cost) / len(self._sizes))
