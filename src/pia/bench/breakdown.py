"""Where the time of a step goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pia.decoding.stats import Stats

PARTS = ("draft", "forward", "accept", "keep", "other")
"""What a step is made of; `other` is what the call spends outside the loop: its preparation, its stopping, its
output."""


def step_breakdown(stats: Stats, seconds: float) -> dict[str, Any] | None:
    """Mean milliseconds of a decode step, part by part, and their shares.

    Args:
        stats: sums over all requests; of batches, each row bears an equal share of its steps.
        seconds: wall time of the same calls.

    Returns:
        `ms` and `share` by part, the whole `step_ms`, and `host_ms`, the time between forwards inside the loop; `None`
        without decode steps.
    """
    if not stats.num_steps:
        return None
    num_forwards = stats.num_steps + stats.num_requests  # the prefill accepts and keeps as well
    per_step = (
        stats.draft_s / stats.num_steps,
        stats.forward_s / stats.num_steps,
        stats.accept_s / num_forwards,
        stats.keep_s / num_forwards,
        max(0.0, seconds - stats.seconds) / stats.num_steps,
    )
    ms = {part: 1e3 * value for part, value in zip(PARTS, per_step, strict=True)}
    step_ms = sum(ms.values())
    return {
        "ms": {part: round(value, 4) for part, value in ms.items()},
        "share": {part: round(value / step_ms, 4) for part, value in ms.items()},
        "step_ms": round(step_ms, 4),
        "host_ms": round(ms["draft"] + ms["accept"] + ms["keep"], 4),
    }
