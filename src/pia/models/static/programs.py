"""Compiled programs for the CPU: a step's forward through PyTorch's own compiler, ahead of time, with packed weights.

Two programs serve every step: one for a single token, where reading the weights is all the work, and one for any
number from two on. Both take texts and slabs of any length. See "AOTInductor" in PyTorch's documentation; its matrix
products for small numbers of rows are what makes it worth the time.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pia.models.kv import SlabCache
from pia.models.masks import TreeMasks
from pia.models.runner import SlabRunner
from pia.models.static.step import StepModule, states_of
from pia.models.static.store import ProgramFiles, programs_folder
from pia.models.static.weights import weights_size

MAX_TOKENS = 256
"""The most tokens a program takes in one step."""
_MAX_SLOTS = 1 << 22
_EXAMPLE_START, _EXAMPLE_TOKENS = 24, 8
_EMBEDDED_BYTES = 1 << 30
"""Larger weights lie beside the code of a program, not in it."""

Program = Callable[..., torch.Tensor]
"""A `StepModule`'s forward."""


def build_programs(model: Any, files: ProgramFiles, *, say: Callable[[str], None] = lambda _: None) -> None:
    """Compiles a model's programs into files, each at once or not at all.

    Args:
        model: a model of which `why_not_static` says nothing, on the CPU.
        files: where they go.
        say: told what is being done.
    """
    root = programs_folder()
    root.mkdir(parents=True, exist_ok=True)
    for path, num_tokens in ((files.one, 1), (files.tree, _EXAMPLE_TOKENS)):
        say(f"compiling the program for {'one token' if num_tokens == 1 else 'trees'}")
        with tempfile.TemporaryDirectory(dir=root) as scratch:
            half_made = Path(scratch) / path.name
            _build(model, num_tokens, half_made)
            files.folder.mkdir(parents=True, exist_ok=True)
            os.replace(half_made, path)


def load_program(path: Path) -> Program:
    """Loads a program; it brings its own copy of the weights."""
    program: Program = torch._inductor.aoti_load_package(str(path))
    return program


@torch.no_grad()
def _build(model: Any, num_tokens: int, path: Path) -> None:
    module, arguments = _example(model, num_tokens)
    program = torch.export.export(module, arguments, dynamic_shapes=_free_sizes(arguments), strict=False)
    torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=_compiler_options(model))


def _compiler_options(model: Any) -> dict[str, Any]:
    return {
        "freezing": True,  # weights are packed for the matrix products once and for all
        "max_autotune": True,
        "max_autotune_gemm_backends": "CPP",
        "aot_inductor.force_mmap_weights": weights_size(model) > _EMBEDDED_BYTES,
    }


def _example(model: Any, num_tokens: int) -> tuple[StepModule, tuple[Any, ...]]:
    """The step as a module, with arguments to trace it by: `num_tokens` behind a short text."""
    vocab_size = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(_EXAMPLE_START + num_tokens) % vocab_size
    runner = SlabRunner(model, max_length=_EXAMPLE_START + 2 * num_tokens + 3)
    runner.prefill([ids[:_EXAMPLE_START]])
    cache: SlabCache = runner.cache
    slots = torch.arange(_EXAMPLE_START, _EXAMPLE_START + num_tokens)
    depths = torch.arange(num_tokens)[None]
    visible = torch.ones(1, num_tokens, num_tokens, dtype=torch.bool).tril()
    mask = TreeMasks(model)(torch.tensor([_EXAMPLE_START]), depths, visible, _EXAMPLE_START + num_tokens)
    states = [state.clone() for state in states_of(cache)]  # those of inference mode cannot be traced
    return StepModule(model).eval(), (ids[None, slots], slots[None], mask, slots, states)


def _free_sizes(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Which sizes of the arguments may be any: tokens of a step (but a single one), slots seen, slots of the slab."""
    ids, _, mask, _, states = arguments
    num_slots = torch.export.Dim("num_slots", min=2, max=_MAX_SLOTS)
    capacity = torch.export.Dim("capacity", min=2, max=_MAX_SLOTS)
    fed = {} if ids.shape[1] == 1 else {"q": torch.export.Dim("q", min=2, max=MAX_TOKENS)}
    tokens = {1: fed["q"]} if fed else {}
    one_mask = {3: num_slots, **({2: fed["q"]} if fed else {})}
    masks: Any = one_mask
    if isinstance(mask, dict):
        masks = {kind: None if one is None else one_mask for kind, one in mask.items()}
    return tokens, tokens, masks, {0: fed["q"]} if fed else {}, [{2: capacity} for _ in states]


def fits(states: Sequence[torch.Tensor], q: int) -> bool:
    """Whether a step's sizes are within what programs were made for."""
    return q <= MAX_TOKENS and states[0].shape[2] < _MAX_SLOTS
