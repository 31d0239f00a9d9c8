"""Whether quantised layers give a token the same result whatever else is in its forward.

Weights may be stored as coarsely as you like: a layer that multiplies by them treats each token by itself. Not so one
that rounds its inputs as well ("dynamic activation quantisation"):

* With one scale for the whole forward, or columns chosen by looking at all tokens (LLM.int8), a token's result depends
  on its neighbours, and a tree's nodes are such neighbours. Never lossless.
* With a scale for each token rows stay apart, but a difference in an input's last bit may be rounded to a whole step.
  Measured: float32 logits are then as far apart as bfloat16 ones (3e-2) between Transformers' own two cache classes.
  That is what 16-bit models live with; in float32, where PIA promises equal texts, it is not.

Names of methods say little, so each quantised layer is asked with inputs on which the three kinds differ by far.
"""

from __future__ import annotations

from typing import Any

import torch

from pia.models.placement import compute_dtype, input_device

_LARGE, _SMALL = 5.875, 2**-7
"""Below LLM.int8's threshold of 6; and what an int8 scale for the large one rounds to zero. Exact in 16 bits."""
_GIANT = 64 * _LARGE
"""A neighbour beside whom ordinary values vanish on a common int8 scale."""
_COUPLED = 0.5
"""Part of a token's result by which a neighbour must have changed it. Rounding to 16 bits stays below 0.2."""
_ROUNDED = 1e-3
"""Relative error of a sum in float32: 5e-6 where only weights are quantised, 0.5 and more where inputs are."""


def dependent_rows(model: Any) -> str | None:
    """Why a token's result would depend on what shares its forward, or `None`."""
    needs_equality = compute_dtype(model).itemsize >= 4
    for name, layer in model.named_modules():
        if not _is_quantised(layer):
            continue
        try:
            reason = _reason(_Probe(layer, model), needs_equality)
        except Exception as error:  # kernels refuse in any way they like; that is an answer too
            reason = f"cannot be tried alone ({type(error).__name__}: {str(error)[:120]})"
        if reason is not None:
            return f"its layer {name} ({_described(layer)}) {reason}"
    return None


def weight_kinds(model: Any) -> frozenset[type]:
    """The types of the model's weights, which change when it is quantised in place."""
    return frozenset(map(type, model.parameters()))


def _reason(probe: _Probe, needs_equality: bool) -> str | None:
    if probe.couples_rows():
        return "quantises the tokens of a forward together"
    if needs_equality and probe.rounds_inputs():
        return (
            "rounds its inputs, which makes whole steps of differences in the last bit; load the model in bfloat16, "
            "or quantise its weights only"
        )
    return None


def _described(layer: torch.nn.Module) -> str:
    weight = getattr(layer, "weight", None)
    return type(layer).__name__ if weight is None else f"{type(layer).__name__} of {type(weight).__name__}"


def _is_quantised(layer: torch.nn.Module) -> bool:
    """Whether a layer multiplies by weights that are not ordinary floats."""
    if not isinstance(getattr(layer, "in_features", None), int) or any(True for _ in layer.children()):
        return False
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, torch.Tensor):
        return bool(list(layer.buffers(recurse=False)))  # packed by GPTQ, AWQ or the like
    is_ordinary = type(weight) in (torch.Tensor, torch.nn.Parameter) and type(weight.data) is torch.Tensor
    return not is_ordinary or not weight.dtype.is_floating_point or weight.dtype.itemsize == 1


class _Probe:
    """One layer, fed with made-up tokens `[1, tokens, in_features]`."""

    def __init__(self, layer: Any, model: Any) -> None:
        self._layer = layer
        self._device, self._dtype = input_device(model), compute_dtype(model)
        random = torch.Generator().manual_seed(7)
        self._whole = torch.randint(-7, 8, (2, layer.in_features), generator=random).float()
        self._signs = torch.where(self._whole[0] < 0, -1.0, 1.0)
        self._small = _SMALL * self._signs
        self._small[0] = 0
        self._large = torch.zeros(layer.in_features)
        self._large[0] = _LARGE

    def couples_rows(self) -> bool:
        """Whether a token's result is another beside a very large token."""
        giant = torch.full_like(self._signs, _GIANT)
        alone, beside = self._run(self._signs)[0], self._run(self._signs, giant)[0]
        if _relative(beside - alone, alone) > _COUPLED:
            return True
        apart = self._run(self._large + self._small)[0] - self._run(self._large)[0]
        together = self._run(self._large + self._small, self._large, giant)
        return _relative(together[0] - together[1] - apart, self._run(self._small)[0]) > _COUPLED

    def rounds_inputs(self) -> bool:
        """Whether the layer is other than linear in its input."""
        first, second = self._whole
        return any(self._sum_error(a, b) > _ROUNDED for a, b in ((self._large, self._small), (first, second / 16)))

    def _sum_error(self, a: torch.Tensor, b: torch.Tensor) -> float:
        """How far the result for a sum is from the sum of the results, relative to the second."""
        bias = self._run(torch.zeros_like(a))[0]
        signal = self._run(b)[0] - bias
        return _relative(self._run(a + b)[0] - self._run(a)[0] - signal, signal)

    @torch.no_grad()
    def _run(self, *tokens: torch.Tensor) -> torch.Tensor:
        """Results `[tokens, out_features]` of one forward."""
        fed = torch.stack(tokens)[None].to(self._device, self._dtype)
        result: torch.Tensor = self._layer(fed)[0]
        return result.float().cpu()


def _relative(error: torch.Tensor, signal: torch.Tensor) -> float:
    return float(error.norm() / signal.norm().clamp(min=1e-12))
