"""Position schemes that depend on the length of the text: where drafts have to stop, and what has to be fed anew.

Rotary frequencies of the types `dynamic` and `longrope` are worked out anew at each forward from the largest position
in it. So all tokens of a drafted step must be rotated as plain decoding, one token at a time, would rotate them.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PositionLimits:
    """Where drafts end.

    Attributes:
        max_tree_position: no drafted step may feed this position or any after it: there, tokens are fed one by one.
        crossing: no drafted step may hold positions on both sides: before this one, and from it on.
        refill_at: when the token at this position is fed, the cache is thrown away first and the whole text is fed.
        reason: why, for the user.
    """

    max_tree_position: int | None = None
    crossing: int | None = None
    refill_at: int | None = None
    reason: str | None = None

    def max_depth(self, position: int) -> int | None:
        """How many tokens a draft may run ahead of the last accepted token at `position`; `None` is any number."""
        if position == self.refill_at:
            return 0  # the whole text is fed, and nothing beside it
        is_before = self.crossing is not None and position < self.crossing
        ends = [self.max_tree_position, self.crossing if is_before else None]
        depths = [end - 1 - position for end in ends if end is not None]
        return max(0, min(depths)) if depths else None


NO_LIMITS = PositionLimits()


def context_length(model: Any) -> int | None:
    """Most tokens the model is made for, as its configuration says; `None` when it does not."""
    return getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)


def position_limits(model: Any) -> PositionLimits:
    """What the model's rotary embedding asks for."""
    config = model.config.get_text_config(decoder=True)
    types = rope_types(config)
    if "dynamic" in types:
        end = int(config.max_position_embeddings)
        reason = f"dynamic rope: one token at a time beyond its original length (position {end})"
        return PositionLimits(max_tree_position=end, reason=reason)
    if "longrope" in types:
        end = min(int(group["original_max_position_embeddings"]) for group in _groups(config, "longrope"))
        refill_at = int(config.original_max_position_embeddings) if _feeds_anew(model) else None
        there = "" if refill_at is None else ", where the text is fed anew"
        reason = f"longrope: no draft crosses its original length{there} (position {end})"
        return PositionLimits(crossing=end, refill_at=refill_at, reason=reason)
    return NO_LIMITS


def lost_text_reason(model: Any) -> str | None:
    """Why nobody can do as `generate` does beyond the original length: it goes on without most of the text.

    Older releases throw the cache away there and feed the last token alone; later ones ask for the whole text.
    """
    prepare = inspect.unwrap(type(model).prepare_inputs_for_generation)
    if position_limits(model).refill_at is None or "next_sequence_length" in prepare.__code__.co_consts:
        return None
    return "this release of Transformers forgets the text where its longrope changes; 5.23 does not"


def rope_types(config: Any) -> set[str]:
    """Rope types of the configuration, whether it holds one set of parameters or one per layer type."""
    return {str(group["rope_type"]) for group in _groups(config)}


def _groups(config: Any, rope_type: str | None = None) -> list[dict[str, Any]]:
    """Sets of rope parameters, all or those of one type."""
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(parameters, dict):
        return []
    groups = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    return [group for group in groups if group.get("rope_type") and rope_type in (None, group["rope_type"])]


def _feeds_anew(model: Any) -> bool:
    """Whether `generate` throws the cache away where the frequencies change, as Phi-3 does."""
    file = getattr(model.prepare_inputs_for_generation, "__module__", "")
    knows_the_place = hasattr(model.config, "original_max_position_embeddings")
    return knows_the_place and file.split(".")[-2:-1] in (["phi3"], ["phimoe"], ["phi4_multimodal"])
