"""A copy of a model's recurrent state, to go back to when a draft was accepted in part only.

It is taken at every step that drafts, so it copies as little as it can: what a layer may write in place goes into
buffers that are used again and again, what a layer only ever replaces is remembered by reference, and of keys and
values that only ever grow nothing but the length is kept.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from transformers.cache_utils import DynamicLayer


class StateSnapshot:
    """Remembers the state that a cache is in, and puts it back.

    A cache is a Transformers `Cache`, an object of the model's own that holds tensors in its attributes, or a list of
    tensors.
    """

    def __init__(self) -> None:
        self._places: list[tuple[Any, Any, _Care]] = []
        self._saved: list[Any] = []

    def take(self, cache: Any) -> None:
        """Remembers the state of `cache`, in place of what was remembered before."""
        self._places = _places(cache)
        earlier = [*self._saved, *[None] * (len(self._places) - len(self._saved))]
        copies = _Copies()
        self._saved = [
            care.save(holder[key], old, copies) for (holder, key, care), old in zip(self._places, earlier, strict=False)
        ]
        copies.run()

    def restore(self) -> None:
        """Puts the cache back as it was when the snapshot was taken; once for each snapshot.

        The tensors saved become the live ones and the live ones the next snapshot's buffers, so nothing is copied.
        """
        for number, (holder, key, care) in enumerate(self._places):
            live = holder[key]
            holder[key] = care.restored(self._saved[number], live)
            self._saved[number] = live if care is _COPIED else None


class _Copies:
    """Copies to be made together: on a GPU one launch instead of one for each layer."""

    def __init__(self) -> None:
        self._targets: list[torch.Tensor] = []
        self._sources: list[torch.Tensor] = []

    def add(self, source: torch.Tensor, old: Any) -> torch.Tensor:
        """A tensor that will hold a copy of `source`: `old` where it fits, else a new one."""
        fits = isinstance(old, torch.Tensor) and old.shape == source.shape and old.is_contiguous()
        if not (fits and old.dtype == source.dtype and old.device == source.device and old is not source):
            return source.clone(memory_format=torch.contiguous_format)
        self._targets.append(old)
        self._sources.append(source)
        target: torch.Tensor = old
        return target

    def run(self) -> None:
        if self._targets:
            torch._foreach_copy_(self._targets, self._sources)


class _Care(Protocol):
    """How one attribute is saved and put back."""

    def save(self, value: Any, old: Any, copies: _Copies) -> Any: ...

    def restored(self, saved: Any, live: Any) -> Any: ...


class _Copied:
    """For what may be written in place: tensors are copied."""

    def save(self, value: Any, old: Any, copies: _Copies) -> Any:
        if isinstance(value, torch.Tensor):
            return copies.add(value, old)
        if isinstance(value, dict):
            known = old if isinstance(old, dict) else {}
            return {key: self.save(item, known.get(key), copies) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            known_items = (
                list(old) if isinstance(old, (list, tuple)) and len(old) == len(value) else [None] * len(value)
            )
            return type(value)(self.save(*pair, copies) for pair in zip(value, known_items, strict=True))
        return value

    def restored(self, saved: Any, live: Any) -> Any:
        return saved


class _Shared:
    """For tensors that are replaced and never written: a reference is enough."""

    def save(self, value: Any, old: Any, copies: _Copies) -> Any:
        return dict(value) if isinstance(value, dict) else value

    def restored(self, saved: Any, live: Any) -> Any:
        return saved


class _Cut:
    """For keys and values that only grow, `[batch, heads, length, head_dim]`: the length is enough."""

    def save(self, value: Any, old: Any, copies: _Copies) -> Any:
        return None if value is None or value.dim() < 2 else value.shape[-2]

    def restored(self, saved: Any, live: Any) -> Any:
        return live if live is None or saved is None else live.narrow(-2, 0, saved)


_COPIED, _SHARED, _CUT = _Copied(), _Shared(), _Cut()


def _places(cache: Any) -> list[tuple[Any, Any, _Care]]:
    """Where the state lies: holders, the keys in them, and how each is to be treated."""
    if isinstance(cache, list):
        return [(cache, index, _COPIED) for index in range(len(cache))]
    owners = [cache, *getattr(cache, "layers", ())]
    return [(vars(owner), name, _care(owner, name)) for owner in owners for name in vars(owner)]


def _care(owner: Any, name: str) -> _Care:
    """Transformers' growing layers replace their keys and values by longer ones. All else may be written in place."""
    if not isinstance(owner, DynamicLayer):
        return _COPIED
    if name in ("keys", "values"):
        return _SHARED if owner.is_sliding else _CUT
    return _COPIED if hasattr(owner, "recurrent_states") else _SHARED
