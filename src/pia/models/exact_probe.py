"""Shows in which order a kernel adds up, by sums that cancel.

In 16 bits a result is rounded so coarsely that another order of the additions inside rarely shows. So the products
and attentions of a model's forward are noted, and each is done again, in its own shapes and strides, on numbers whose
exact result is zero: what comes out then is nothing but rounding, and another order gives other bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_aten: Any = torch.ops.aten
_PRODUCTS = {
    _aten.linear.default: 0,
    _aten.mm.default: 0,
    _aten.bmm.default: 0,
    _aten.matmul.default: 0,
    _aten.addmm.default: 1,
    _aten.baddbmm.default: 1,
}
"""Matrix products, and where among the arguments the left factor stands."""
_ATTENTION = _aten.scaled_dot_product_attention.default
_ROW_WISE = {
    _aten.mean.dim,
    _aten.softmax.int,
    _aten._softmax.default,
    _aten.layer_norm.default,
    _aten.native_layer_norm.default,
    _aten.silu.default,
    _aten.gelu.default,
}
"""Operations on each row of their first argument."""


_LOUD = 2.0**8
"""Queries and keys of this magnitude have products whose rounding is of the order of one."""


class UnknownShapeError(Exception):
    """An operation treats its tokens in another way than as rows."""


@dataclass(frozen=True)
class Layout:
    """Shape and strides of an argument."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Layout:
        return cls(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)

    def filled(self, values: torch.Tensor) -> torch.Tensor:
        """A tensor of this layout; `values` are broadcast."""
        extents = [n if step else 1 for n, step in zip(self.shape, self.stride, strict=True)]
        size = 1 + sum((n - 1) * step for n, step in zip(extents, self.stride, strict=True))
        tensor = torch.zeros(size, dtype=self.dtype).as_strided(extents, self.stride)
        tensor.copy_(values.expand(self.shape)[tuple(slice(n) for n in extents)])
        return tensor.expand(self.shape)


@dataclass(frozen=True)
class Call:
    """An operation with the layouts of its tensors."""

    operation: Any
    arguments: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...]

    def __call__(self, arguments: Sequence[Any]) -> torch.Tensor:
        result = self.operation(*arguments, **dict(self.options))
        return cast("torch.Tensor", result[0] if isinstance(result, tuple) else result)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operations of a forward that add up."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS or func in _ROW_WISE or func is _ATTENTION:
            layouts = tuple(Layout.of(a) if isinstance(a, torch.Tensor) else _frozen(a) for a in args)
            options = {name: Layout.of(a) if isinstance(a, torch.Tensor) else a for name, a in (kwargs or {}).items()}
            self.calls.append(Call(func, layouts, tuple(sorted(options.items()))))
        return func(*args, **(kwargs or {}))


class Probe:
    """One operation at several sizes of a forward, on rows of numbers that cancel.

    Args:
        calls: the operation by size.
        token_dim: the dimension of the first argument, and of the result, that the tokens lie along.
        num_rows: rows to be had.
    """

    def __init__(self, calls: dict[int, Call], token_dim: int, num_rows: int) -> None:
        self._calls = calls
        self._token_dim = token_dim
        self._num_rows = num_rows
        self._random = torch.Generator().manual_seed(0)
        call = next(iter(calls.values()))
        if call.operation is _ATTENTION:
            self._arguments: Callable[[Call, slice], list[Any]] = self._new_attention(call)
        elif call.operation in _PRODUCTS:
            self._arguments = self._new_product(call)
        else:
            self._arguments = self._new_row_wise(call)

    def feed(self, size: int, first: int, times: int) -> list[torch.Tensor]:
        """Does the operation on the rows from `first` on, `size` rows at a time; returns results, rows first."""
        call = self._calls[size]
        starts = range(first, first + size * times, size)
        results = [call(self._arguments(call, slice(start, start + size))) for start in starts]
        if any(result.shape[self._token_dim] != size for result in results):
            raise UnknownShapeError(call.operation)
        return [torch.cat(results, dim=self._token_dim).movedim(self._token_dim, 0)]

    def _new_product(self, call: Call) -> Callable[[Call, slice], list[Any]]:
        place = _PRODUCTS[call.operation]
        left, right = call.arguments[place : place + 2]
        depth = left.shape[-1]
        token_rows, columns = self._cancelling(depth, self._num_rows, max(right.shape))
        is_linear = call.operation is _aten.linear.default
        width = right.shape[-2] if is_linear else right.shape[-1]
        factor = columns[:width] if is_linear else columns[:width].T

        def arguments(call: Call, rows: slice) -> list[Any]:
            given = list(call.arguments)
            given[place : place + 2] = [given[place].filled(token_rows[rows]), given[place + 1].filled(factor)]
            return [torch.zeros(a.shape, dtype=a.dtype) if isinstance(a, Layout) else a for a in given]

        return arguments

    def _new_attention(self, call: Call) -> Callable[[Call, slice], list[Any]]:
        """Keys come in pairs whose values cancel; behind them, keys without a value.

        Queries and keys cancel as well, and are so large that what rounding leaves of their product decides how much
        weight a key is given.
        """
        key, value = call.arguments[1:3]
        num_slots, dim = key.shape[-2:]
        num_paired = (num_slots - 2 * self._num_rows) // 2 * 2
        if num_paired < 2:
            raise UnknownShapeError(call.operation)
        queries, keys = (_LOUD * factor for factor in self._cancelling(dim, self._num_rows, num_slots))
        values = self._normal(num_slots, value.shape[-1])
        one, other = torch.randperm(num_paired, generator=self._random).view(2, -1)
        keys[other], values[other], values[num_paired:] = keys[one], -values[one], 0.0

        def arguments(call: Call, rows: slice) -> list[Any]:
            layouts = call.arguments
            last_seen = num_paired + torch.arange(rows.start, rows.stop)[:, None]
            mask = _as_mask(torch.arange(num_slots)[None] <= last_seen, layouts[3])
            factors = zip(layouts[:3], (queries[rows], keys, values), strict=True)
            return [*(layout.filled(data) for layout, data in factors), mask, *layouts[4:]]

        return arguments

    def _new_row_wise(self, call: Call) -> Callable[[Call, slice], list[Any]]:
        shape = call.arguments[0].shape
        dim = self._token_dim
        data = self._normal(*shape[:dim], self._num_rows, *shape[dim + 1 :])

        def arguments(call: Call, rows: slice) -> list[Any]:
            first, *others = call.arguments
            weights = [torch.ones(a.shape, dtype=a.dtype) if isinstance(a, Layout) else a for a in others]
            return [first.filled(data.narrow(dim, rows.start, rows.stop - rows.start)), *weights]

        return arguments

    def _cancelling(self, depth: int, num_rows: int, num_columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows `[num_rows, depth]` and columns `[num_columns, depth]` whose products are zero, of mixed magnitude."""
        rows, columns = self._normal(num_rows, depth), self._normal(num_columns, depth)
        one, other = torch.randperm(depth // 2 * 2, generator=self._random).view(2, -1)
        rows[:, other], columns[:, other] = -rows[:, one], columns[:, one]
        rows[:, depth // 2 * 2 :] = 0.0
        return rows, columns

    def _normal(self, *shape: int) -> torch.Tensor:
        magnitudes = torch.randint(-3, 3, shape, generator=self._random)
        return torch.randn(shape, generator=self._random) * torch.pow(2.0, magnitudes)


def probes(calls: dict[int, list[Call]], num_rows: int) -> list[Probe]:
    """A probe for each different operation of a forward.

    Args:
        calls: the operations of a forward, by its size; two sizes at least.
        num_rows: rows that each probe can feed.

    Raises:
        UnknownShapeError: the forwards do not consist of the same operations on tokens.
    """
    if len({tuple(call.operation for call in sequence) for sequence in calls.values()}) != 1:
        raise UnknownShapeError("forwards of different sizes take different steps")
    different = dict.fromkeys(zip(*calls.values(), strict=True))
    found = []
    for steps in different:
        token_dim = _token_dim(calls, steps)
        if token_dim is not None:
            found.append(Probe(dict(zip(calls, steps, strict=True)), token_dim, num_rows))
    return found


def _token_dim(sizes: Iterable[int], steps: Sequence[Call]) -> int | None:
    """The dimension of the first argument that the tokens lie along; `None` of an operation that has nothing to show.

    Raises:
        UnknownShapeError: the first argument depends on the size in another way.
    """
    place = _PRODUCTS.get(steps[0].operation, 0)
    shapes = [step.arguments[place].shape for step in steps]
    if len(set(shapes)) == 1:
        is_free = len({step.arguments for step in steps}) == 1 or shapes[0][-1] == 1  # of tokens, or of sums
        if is_free:
            return None
        raise UnknownShapeError(steps[0].operation)
    if len(set(map(len, shapes))) != 1:
        raise UnknownShapeError(steps[0].operation)
    varying = [dim for dim, extents in enumerate(zip(*shapes, strict=True)) if len(set(extents)) > 1]
    is_product = steps[0].operation in _PRODUCTS or steps[0].operation is _ATTENTION
    if len(varying) != 1 or any(shape[varying[0]] != size for shape, size in zip(shapes, sizes, strict=True)):
        raise UnknownShapeError(steps[0].operation)
    if varying[0] > len(shapes[0]) - 2 or (is_product and varying[0] != len(shapes[0]) - 2):
        raise UnknownShapeError(steps[0].operation)
    return varying[0]


def _as_mask(visible: torch.Tensor, layout: Any) -> torch.Tensor:
    if not isinstance(layout, Layout):
        raise UnknownShapeError("attention without a mask")
    if layout.dtype == torch.bool:
        return visible.expand(layout.shape)
    hidden = torch.zeros(visible.shape, dtype=layout.dtype).masked_fill_(~visible, torch.finfo(layout.dtype).min)
    return hidden.expand(layout.shape)


def _frozen(argument: Any) -> Any:
    return tuple(argument) if isinstance(argument, list) else argument
