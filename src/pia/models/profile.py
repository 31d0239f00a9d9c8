"""What is known of each model after its first use: what it can verify, what a forward costs, how well drafts do."""

from __future__ import annotations

import logging
import threading
import weakref
from dataclasses import dataclass, field
from typing import Any

from pia.drafting.budget import Calibrator, CostCurve
from pia.models.capability import Capability, Mode, declared_capability
from pia.models.costs import measure_costs
from pia.models.self_check import proved_capability

logger = logging.getLogger("pia")


@dataclass(frozen=True)
class ModelProfile:
    """One model, as it was found."""

    capability: Capability
    curve: CostCurve | None
    """Cost of a forward; `None` where no automatic budget asked for it."""
    calibrator: Calibrator = field(default_factory=Calibrator)
    """Goes on from request to request."""


class ModelProfiles:
    """Profiles kept as long as their models, one per dtype, device and attention implementation."""

    def __init__(self) -> None:
        self._profiles: weakref.WeakKeyDictionary[Any, dict[tuple[Any, ...], ModelProfile]] = (
            weakref.WeakKeyDictionary()
        )
        self._lock = threading.Lock()

    def of(self, model: Any, *, self_check: bool, max_nodes: int | None) -> ModelProfile:
        """Examines a model, or remembers.

        Args:
            model: a causal language model of Transformers.
            self_check: prove what the model declares.
            max_nodes: largest tree whose cost is of interest; `None` when costs do not matter.
        """
        implementation = getattr(model.config, "_attn_implementation", None)
        key = (model.dtype, model.device, implementation, self_check, max_nodes)
        with self._lock:
            known = self._profiles.setdefault(model, {})
            if key not in known:
                known[key] = _examine(model, self_check, max_nodes)
            return known[key]


def _examine(model: Any, self_check: bool, max_nodes: int | None) -> ModelProfile:
    was_training = model.training
    model.eval()
    try:
        capability = declared_capability(model)
        if self_check and capability.can_verify_chains:
            capability = proved_capability(model, capability)
        curve = None
        if max_nodes is not None and capability.can_verify_chains:
            curve = measure_costs(model, max_tokens=max_nodes + 1, can_branch=capability.can_verify_trees)
    finally:
        model.train(was_training)
    if capability.mode != Mode.TREE:
        logger.warning("PIA decodes %s in %s mode: %s", type(model).__name__, capability.mode.label, capability.reason)
    return ModelProfile(capability, curve)
