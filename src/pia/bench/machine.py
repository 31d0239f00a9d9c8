"""Names the machine and the software that a measurement was made with."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def describe_host(*packages: str) -> dict[str, Any]:
    """CPU, cores, system and the versions of packages that are installed; imports none of them."""
    facts: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": num_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }
    for package in packages:
        with suppress(PackageNotFoundError):
            facts[package] = version(package)
    return facts


def describe_machine(model: Any = None) -> dict[str, Any]:
    """CPU, cores, accelerator and versions; with a model also its dtype, device and attention.

    Figures are only worth something together with this.
    """
    import torch
    import transformers

    facts: dict[str, Any] = {
        **describe_host(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }
    if model is not None:
        facts["model"] = f"{type(model).__name__}, {model.num_parameters() / 1e6:.1f} M parameters"
        facts["dtype"] = str(model.dtype).removeprefix("torch.")
        facts["device"] = str(model.device)
        facts["attention"] = getattr(model.config, "_attn_implementation", None)
    return facts


def machine_line(machine: Mapping[str, Any]) -> str:
    """What `describe_machine` says, in a sentence."""
    parts = [
        f"{machine['cpu']} ({plural(machine['cores'], 'core')}, {plural(machine['threads'], 'thread')})",
        machine["gpu"],
    ]
    parts += [f"torch {machine['torch']}", f"transformers {machine['transformers']}"]
    parts += [machine.get("dtype"), machine.get("device")]
    return ", ".join(part for part in parts if part)


def device_name(machine: Mapping[str, Any]) -> str:
    """The processor or accelerator that the model runs on."""
    is_cpu = str(machine.get("device", "cpu")) == "cpu" or not machine["gpu"]
    return f"{machine['cpu']}, {plural(machine['threads'], 'thread')}" if is_cpu else str(machine["gpu"])


def plural(count: int, noun: str) -> str:
    """A number and its noun."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
