"""Families that place tokens by their slot, made to place them by their position while a tree is verified.

Attention biases that grow with distance (ALiBi) and masks kept in a buffer are computed inside these models from a
slot's index. In a tree several slots share a position, so while a forward runs the model's own builder is asked for all
positions, and each slot gets the row that belongs to its position.

What is replaced is put back when the last forward that needs it is over, and reads the arrangement from a context
variable: without one, and in other threads, it does what it always did.
"""

from __future__ import annotations

import inspect
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import torch


@dataclass(frozen=True)
class Arrangement:
    """Where the tokens of a forward stand.

    Attributes:
        slots: position of each slot, int64 `[rows, slots]`.
        queries: position of each token fed, int64 `[rows, q]`; `None` where they are the last slots of their row.
    """

    slots: torch.Tensor
    queries: torch.Tensor | None = None

    def of_queries(self, num_queries: int) -> torch.Tensor:
        """Positions of the tokens fed, `[rows, q]`."""
        return self.slots[:, -num_queries:] if self.queries is None else self.queries


_arrangement: ContextVar[Arrangement | None] = ContextVar("pia_arrangement", default=None)
_lock = threading.Lock()


@dataclass
class _Users:
    """Forwards under way that need a replacement, and what stood in its place (methods and buffers stand elsewhere)."""

    hidden: Any
    count: int = 0


_users: dict[tuple[int, str], _Users] = {}


class Adapter(ABC):
    """Lets a model of one family verify trees.

    Args:
        model: the model that is adapted.
    """

    can_batch: ClassVar[bool] = True
    """Rows of a batch may hold different positions in the same slot."""
    note: ClassVar[str]
    """What is adapted, for the table of models."""

    def __init__(self, model: Any) -> None:
        self._places = list(self._find(model))

    @classmethod
    def fits(cls, model: Any) -> bool:
        """Whether a model has something that this adapter replaces."""
        return next(iter(cls._find(model)), None) is not None

    @contextmanager
    def arranged(self, slot_positions: torch.Tensor, query_positions: torch.Tensor | None = None) -> Iterator[None]:
        """Enter this around a forward with explicit tree masks.

        Args:
            slot_positions: position of the token in each slot that the forward attends over, int64 `[rows, slots]`.
            query_positions: positions of the tokens fed, int64 `[rows, q]`. May be left out where they stand in the
                last q slots, as they do in a forward of one row.
        """
        with ExitStack() as stack:
            for owner, name in self._places:
                stack.enter_context(_replaced(owner, name, self._wrapped))
            token = _arrangement.set(Arrangement(slot_positions, query_positions))
            try:
                yield
            finally:
                _arrangement.reset(token)

    @staticmethod
    @abstractmethod
    def _find(model: Any) -> Iterator[tuple[Any, str]]:
        """Attributes that have to be replaced: owner (a part of the model, or a Python module) and name."""

    @staticmethod
    @abstractmethod
    def _wrapped(original: Any) -> Any:
        """A stand-in that heeds the arrangement, and without one behaves as the original."""


class BloomAdapter(Adapter):
    """BLOOM: the ALiBi of a slot follows its position."""

    note = "ALiBi by position"

    @staticmethod
    def _find(model: Any) -> Iterator[tuple[Any, str]]:
        for module in model.modules():
            if hasattr(type(module), "build_alibi_tensor"):
                yield module, "build_alibi_tensor"

    @staticmethod
    def _wrapped(original: Any) -> Any:
        return _by_position(original)


class FalconAdapter(Adapter):
    """Falcon with ALiBi. Its builder is a function of the modeling file, which the forward looks up by name.

    So the function has to be replaced there for as long as a forward runs: there is no place on the instance. Other
    models of the family see no difference, since they run without an arrangement.
    """

    note = "ALiBi by position"

    @staticmethod
    def _find(model: Any) -> Iterator[tuple[Any, str]]:
        for module in model.modules():
            if getattr(module, "use_alibi", False):
                file = sys.modules[inspect.unwrap(type(module).forward).__module__]
                if hasattr(file, "build_alibi_tensor"):
                    yield file, "build_alibi_tensor"

    @staticmethod
    def _wrapped(original: Any) -> Any:
        return _by_position(original)


class MptAdapter(Adapter):
    """MPT: as BLOOM, but its bias has no row axis, so all rows of a batch would have to hold the same positions."""

    can_batch = False
    note = "ALiBi by position, one row at a time"

    @staticmethod
    def _find(model: Any) -> Iterator[tuple[Any, str]]:
        for module in model.modules():
            if hasattr(type(module), "build_mpt_alibi_tensor"):
                yield module, "build_mpt_alibi_tensor"

    @staticmethod
    def _wrapped(original: Any) -> Any:
        def build(num_heads: int, sequence_length: int, *args: Any, **kwargs: Any) -> torch.Tensor:
            arrangement = _arrangement.get()
            if arrangement is None:
                return original(num_heads, sequence_length, *args, **kwargs)  # type: ignore[no-any-return]
            slots = arrangement.slots
            assert slots.shape[0] == 1, "one row at a time"
            bias: torch.Tensor = original(num_heads, slots.shape[1], *args, **kwargs)  # [heads, 1, positions]
            return bias[:, :, slots[0].to(bias.device)]

        return build


class GptNeoAdapter(Adapter):
    """GPT-Neo: what a layer sees, a window in local ones, is a buffer `[1, 1, positions, positions]`, cut by slots."""

    note = "local windows by position"

    @staticmethod
    def _find(model: Any) -> Iterator[tuple[Any, str]]:
        for module in model.modules():
            if getattr(module, "attention_type", None) in ("global", "local") and "bias" in module._buffers:
                yield module, "bias"

    @staticmethod
    def _wrapped(original: Any) -> Any:
        return _PositionBuffer(original)


class _PositionBuffer:
    """Stands in for a buffer that is asked for rows of queries and columns of slots: `buffer[:, :, rows, columns]`."""

    def __init__(self, buffer: torch.Tensor) -> None:
        self._buffer = buffer

    def __getitem__(self, key: Any) -> torch.Tensor:
        arrangement = _arrangement.get()
        if arrangement is None:
            return self._buffer[key]
        rows: slice = key[2]
        last = self._buffer.shape[-1] - 1  # slots that nobody sees may count on beyond the buffer
        queries = arrangement.of_queries(rows.stop - rows.start).to(self._buffer.device).clamp(max=last)
        slots = arrangement.slots.to(self._buffer.device).clamp(max=last)
        return self._buffer[0, 0][queries[:, :, None], slots[:, None, :]][:, None]


class Llama4Adapter(Adapter):
    """Llama 4: where its layers without rope scale queries by position, they count positions by slots.

    What they count is divided by `floor_scale`, so that is where the true positions are put in. The result has no row
    axis, so all rows of a batch would have to hold the same positions.
    """

    can_batch = False
    note = "query scale by position, one row at a time"

    @staticmethod
    def _find(model: Any) -> Iterator[tuple[Any, str]]:
        for module in model.modules():
            if getattr(module, "attn_temperature_tuning", None) and not getattr(module, "use_rope", True):
                yield module, "floor_scale"

    @staticmethod
    def _wrapped(original: Any) -> Any:
        return _PositionScale(original)


class _PositionScale:
    """Stands in for a number that positions, counted from one, are divided by."""

    def __init__(self, scale: float) -> None:
        self._scale = scale

    def __rtruediv__(self, counted: torch.Tensor) -> torch.Tensor:
        arrangement = _arrangement.get()
        if arrangement is None:
            return counted / self._scale
        positions = arrangement.of_queries(counted.shape[0])
        assert positions.shape[0] == 1, "one row at a time"
        return (positions[0].to(counted) + 1) / self._scale


ADAPTERS: tuple[type[Adapter], ...] = (BloomAdapter, FalconAdapter, MptAdapter, GptNeoAdapter, Llama4Adapter)


def adapter_of(model: Any) -> Adapter | None:
    """The adapter that a model needs to verify trees, or `None`."""
    for adapter in ADAPTERS:
        if adapter.fits(model):
            return adapter(model)
    return None


def _by_position(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """An ALiBi builder `(mask, num_heads, dtype) -> [rows * heads, 1, slots]` that goes by the arrangement's positions.

    The original is asked for the bias of every position, so that its slopes and its rounding stay its own.
    """

    def build(attention_mask: torch.Tensor, num_heads: int, dtype: torch.dtype) -> torch.Tensor:
        arrangement = _arrangement.get()
        if arrangement is None:
            return original(attention_mask, num_heads, dtype)
        slots = arrangement.slots.to(attention_mask.device)
        rows, num_slots = slots.shape
        every = torch.ones((1, num_slots), dtype=torch.long, device=slots.device)
        bias = original(every, num_heads, dtype)[:, 0]  # [heads, positions]
        return bias[:, slots].transpose(0, 1).reshape(rows * num_heads, 1, num_slots)

    return build


@contextmanager
def _replaced(owner: Any, name: str, wrap: Callable[[Any], Any]) -> Iterator[None]:
    """Puts a stand-in in the place of an attribute for as long as anybody needs it."""
    key = (id(owner), name)
    with _lock:
        if key not in _users:
            _users[key] = _Users(vars(owner).get(name))
            vars(owner)[name] = wrap(getattr(owner, name))
        _users[key].count += 1
    try:
        yield
    finally:
        with _lock:
            users = _users[key]
            users.count -= 1
            if not users.count:
                _restore(owner, name, users.hidden)
                del _users[key]


def _restore(owner: Any, name: str, hidden: Any) -> None:
    if hidden is None:
        del vars(owner)[name]
    else:
        vars(owner)[name] = hidden
