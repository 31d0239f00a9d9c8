"""How much of a lookahead window a step should carry: what the hardware has to spare.

Window nodes are never accepted themselves; they are worth what their n-grams win later. That is learned: n-gram tokens
accepted per step with the window, less those without it, which the pool goes on to win for a while. Fed behind a tree
of n nodes, m window nodes cost c(1 + n + m) - c(1 + n). Where that is nothing, on an idle accelerator, the whole window
rides; where it is more than the window has won of late, it stays out.

Now and then the opposite of what seems best is tried for some steps, so rarely that trying in vain costs one step in a
hundred; where even the best that a window may win would not pay, nothing is tried.
"""

from __future__ import annotations

import numpy as np

from pia.config import JacobiConfig
from pia.drafting.budget import CostCurve

_DECAY = 0.95
_FIRST_WIN = 0.5
"""Tokens a step that a window is believed to win before it has shown anything; published ones win 0.6 and more."""
_MOST_WIN = 1.5
"""No window is believed to win more."""
_TRY_STEPS = 24
_TRY_COST = 0.01
"""Part of all time that tries may cost."""
_FREE = 0.01
"""Part of a plain step that is not worth asking about."""


class WindowWorth:
    """What a window has been worth on one model, over all requests."""

    def __init__(self) -> None:
        self.with_window = _FIRST_WIN
        """N-gram tokens accepted at a step, fading, while the window was fed ..."""
        self.without = 0.0
        """... and while it was not."""
        self.rate = 1.0
        """Tokens that the time of a plain step yields, fading."""
        self.num_steps = 0
        """Steps since a try began or ended."""
        self.is_trying = False

    @property
    def win(self) -> float:
        """Tokens a step that the whole window wins."""
        return min(max(0.0, self.with_window - self.without), _MOST_WIN)


class WindowPolicy:
    """Chooses how many window nodes each row of a step may feed, and learns what they were worth.

    Args:
        config: the window.
        curve: cost of a forward; `None` feeds the whole window at every step.
        max_tree: no tree has more nodes.
        num_rows: requests in the batch at first.
        worth: what earlier requests showed; a new one by default.
    """

    def __init__(
        self,
        config: JacobiConfig,
        curve: CostCurve | None,
        *,
        max_tree: int,
        num_rows: int = 1,
        worth: WindowWorth | None = None,
    ) -> None:
        self.config = config
        self.worth = WindowWorth() if worth is None else worth
        self._table = None if curve is None else curve.table(num_rows * (1 + max_tree + config.num_nodes))
        self._most_tokens = 0 if curve is None else curve.sizes[-1]
        self._share_fed = 0.0
        self._cost = 1.0

    def choose(self, num_nodes: int, num_rows: int = 1) -> int:
        """The most window nodes to feed in each row, behind trees of at most `num_nodes` nodes."""
        if self._table is None:
            return self.config.num_nodes
        whole = self.config.num_nodes
        costs = self._table[num_rows - 1 :: num_rows] / self._table[num_rows - 1]
        behind = costs[num_nodes : num_nodes + whole + 1]
        extra = max(self.worth.rate, 1.0) * (behind - behind[0])  # [whole + 1], in tokens
        share = np.linspace(0.0, 1.0, whole + 1)
        room = self._most_tokens // num_rows - 1 - num_nodes  # beyond what was measured, costs are guesses
        chosen = self._best(share[: max(0, room) + 1], extra[: max(0, room) + 1])
        self._share_fed, self._cost = float(share[chosen]), float(behind[chosen])
        return chosen

    def _best(self, share: np.ndarray, extra: np.ndarray) -> int:
        """The number of nodes that wins most, or while trying the opposite."""
        most = _MOST_WIN * share - extra
        hoped = int(most.argmax())
        if most[hoped] <= 0:
            return 0
        gains = self.worth.win * share - extra
        best = int(gains.argmax())
        if extra[hoped] > _FREE and self._is_trial(float(gains[best] if best else extra[hoped])):
            return 0 if best else hoped
        return best

    def _is_trial(self, loss: float) -> bool:
        """Whether this step belongs to a try of what seems to lose so many tokens a step."""
        worth = self.worth
        worth.num_steps += 1
        if worth.num_steps > (_TRY_STEPS if worth.is_trying else _TRY_STEPS * max(loss / _TRY_COST, 4.0)):
            worth.num_steps, worth.is_trying = 1, not worth.is_trying
        return worth.is_trying

    def observe(self, num_fed: int, num_won: float, num_tokens: float) -> None:
        """Learns from a step.

        Args:
            num_fed: window nodes that were fed, in all rows together.
            num_won: tokens of n-grams that were accepted, for each row.
            num_tokens: tokens emitted, for each row.
        """
        worth = self.worth
        if self._table is None:
            return
        worth.rate += (1 - _DECAY) * (num_tokens / self._cost - worth.rate)
        if num_fed and self._share_fed:
            worth.with_window += (1 - _DECAY) * (num_won / self._share_fed - worth.with_window)
        else:
            worth.without += (1 - _DECAY) * (num_won - worth.without)
