"""What an optimizer has learned about the gradients, carried over a cut: units that stay keep their moments.

Without them every round would begin with steps that know nothing of the loss' shape, and a round has few steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from pia.drafting.atomic_file import replacing
from pia.ipad.cut import what_stays
from pia.ipad.selection import Selection
from pia.ipad.structure import Structure

Moments = dict[str, dict[str, torch.Tensor]]
"""By kind, such as `exp_avg`, and by the parameter's name. What is no tensor of the parameter's shape, such as Adam's
count of steps, is there as it is."""


def moments_of(model: Any, optimizers: Sequence[torch.optim.Optimizer]) -> Moments:
    """The state of the optimizers, by name; nothing is copied."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found: Moments = {}
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for kind, value in state.items():
                if isinstance(value, torch.Tensor):
                    found.setdefault(kind, {})[names[parameter]] = value
    return found


def load_moments(model: Any, optimizers: Sequence[torch.optim.Optimizer], moments: Moments) -> None:
    """Lets optimizers begin with what is known; parameters of which nothing is known begin anew.

    The tensors are given away: optimizers change them in place, so that they are never in memory twice.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = names[parameter]
                state = {kind: values[name] for kind, values in moments.items() if name in values}
                if state:
                    is_fused = bool(group.get("fused"))
                    optimizer.state[parameter] = {
                        kind: _placed(value, parameter, is_fused=is_fused) for kind, value in state.items()
                    }


def _placed(value: torch.Tensor, parameter: torch.Tensor, *, is_fused: bool) -> torch.Tensor:
    """Where optimizers expect it: counts of steps are on the CPU, unless one kernel does the whole step."""
    return value.to(parameter.device) if is_fused or value.shape == parameter.shape else value


def cut_moments(moments: Moments, model: Any, structure: Structure, selection: Selection) -> Moments:
    """The moments of the units that stay, under the names that their weights have in the cut model.

    Args:
        moments: of the model.
        model: before the cut.
        structure: its map.
        selection: units of this model.
    """
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    cut: Moments = {}
    for kind, values in moments.items():
        whole = {name: value for name, value in values.items() if value.shape == shapes[name]}
        others = {name: value.expand(shapes[name]) for name, value in values.items() if name not in whole}
        cut[kind] = dict(what_stays(whole, structure, selection))
        cut[kind] |= {name: value.flatten()[0].clone() for name, value in what_stays(others, structure, selection)}
    return cut


def save_moments(moments: Moments, path: Path) -> None:
    """Writes them to a safetensors file.

    Raises:
        OSError: it cannot be written; what stood there still stands.
    """
    flat = {f"{kind}/{name}": value.contiguous() for kind, values in moments.items() for name, value in values.items()}
    with replacing(path) as file:
        file.write(save(flat))


def read_moments(path: Path) -> Moments | None:
    """What `save_moments` wrote; none where there is no file."""
    if not path.exists():
        return None
    moments: Moments = {}
    for label, value in load_file(path).items():
        kind, _, name = label.partition("/")
        moments.setdefault(kind, {})[name] = value
    return moments
