"""What PIA can do for one model, in words and numbers: for `pia models MODEL` and for tests of a user's own model."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pia.models.capability import Capability, Mode, mask_kind
from pia.models.families import all_families
from pia.models.profile import capability_of


def examine(model: Any) -> dict[str, Any]:
    """A model's row: what it can verify, proved on the spot, and the rows of the table that it is like.

    Args:
        model: a causal language model of Transformers.

    Returns:
        `architecture`, `mode`, `masks`, `can_batch`, `reason`, `positions` (limits that depend on the length of the
        text), `like` (names of tested families of this class that come out the same) and `verdict`.
    """
    capability = capability_of(model, self_check=True)
    architecture = type(model).__name__
    masks = mask_kind(model) if capability.can_verify_trees else None
    rows = [family for family in all_families() if family.architecture == architecture]
    shown = (capability.mode.label, capability.can_batch)
    limits = {name: place for name, place in asdict(capability.positions).items() if type(place) is int}
    return {
        "architecture": architecture,
        "mode": capability.mode.label,
        "masks": masks,
        "can_batch": capability.can_batch,
        "reason": capability.reason,
        "positions": limits,
        "like": [row.name for row in rows if (row.mode, row.can_batch) == shown and masks in (row.masks, None)],
        "verdict": verdict_of(capability),
    }


def verdict_of(capability: Capability) -> str:
    """One sentence for the user."""
    if capability.mode == Mode.PLAIN:
        return f"decoded one token at a time, as without PIA: {capability.reason}"
    what = "token trees" if capability.can_verify_trees else "chains of drafts, but no trees"
    batches = "batches too" if capability.can_batch else "one request at a time"
    reason = "" if capability.can_verify_trees else f": {capability.reason}"
    return f"accelerated: {what} are verified ({batches}); the self-check proved it{reason}"
