"""Where compiled programs lie on disk, and for which model on which machine each was made."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from pia.models.attention.plug_in import own_implementation
from pia.models.placement import compute_dtype
from pia.models.static.weights import weights_digest

_FORMAT = 1
"""Counted up when programs are called otherwise than before."""


@dataclass(frozen=True)
class ProgramFiles:
    """The files of one model's programs. The name of their folder says for what they are."""

    folder: Path

    @property
    def one(self) -> Path:
        """The program that feeds one token."""
        return self.folder / "one.pt2"

    @property
    def tree(self) -> Path:
        """The program that feeds two tokens and more."""
        return self.folder / "tree.pt2"

    @property
    def are_there(self) -> bool:
        return self.one.exists() and self.tree.exists()

    @property
    def size(self) -> int:
        """Bytes on disk, about what the programs take in memory."""
        return sum(path.stat().st_size for path in (self.one, self.tree) if path.exists())


def programs_folder() -> Path:
    """The folder of all programs: `PIA_PROGRAMS`, else `pia/programs` in the user's cache folder."""
    given = os.environ.get("PIA_PROGRAMS")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pia" / "programs"


def files_of(model: Any) -> ProgramFiles:
    """Where the programs of this model, with these weights, on this machine belong."""
    return ProgramFiles(_model_folder(model) / weights_digest(model))


def may_have_programs(model: Any) -> bool:
    """Whether there are programs for a model of this form; if not, its weights need not be looked at."""
    folder = _model_folder(model)
    return folder.is_dir() and any(folder.iterdir())


def _model_folder(model: Any) -> Path:
    facts = json.dumps(_facts(model), sort_keys=True, default=str)
    return programs_folder() / f"{type(model).__name__}-{hashlib.blake2b(facts.encode(), digest_size=8).hexdigest()}"


def _processor() -> str:
    """What the machine code is made for: a processor's name and all that it can do."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = dict.fromkeys(line.strip() for line in file if line.startswith(("model name", "flags", "Features")))
    except OSError:
        lines = {}
    return "\n".join(lines) or f"{platform.processor()} {torch.backends.cpu.get_cpu_capability()}"


def _facts(model: Any) -> dict[str, Any]:
    """All that a program depends on, but the weights."""
    config = model.config.to_dict()
    config.pop("_name_or_path", None)  # the same model may lie elsewhere tomorrow
    return {
        "format": _FORMAT,
        "config": config,
        "class": type(model).__qualname__,
        "attention": own_implementation(model.config),
        "dtype": compute_dtype(model),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": sys.version_info[:2],
        "machine": platform.machine(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
    }
