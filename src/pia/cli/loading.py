"""Loading models for the command line: the demo model, a local folder, or a name on the Hugging Face Hub."""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

from pia.cli.terminal import note
from pia.errors import ModelError
from pia.models.modeling import register_families


def quiet_libraries() -> None:
    """Keeps Transformers and the Hub from talking over our own output; call before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for library in ("transformers", "torchao", "torch.utils._pytree"):  # the last speaks when torchao is imported
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def quiet_bars() -> None:
    """Keeps Transformers from drawing bars of its own while ours are up; imports it."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def stay_offline() -> None:
    """Uses local files only; call before Transformers is imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"


def load_model(name: str, dtype: str = "auto", device: str = "auto") -> tuple[Any, Any]:
    """Loads a causal language model, ready to generate, and its tokenizer.

    Args:
        name: "demo", a folder, or a name on the Hub.
        dtype: of the weights; "auto" is the checkpoint's own, and float32 for the demo model.
        device: "auto" is a GPU if there is one; the demo model stays on the CPU it was made for.

    Raises:
        ModelError: there is no such model, or it cannot be loaded.
    """
    quiet_libraries()
    if name == "demo":
        stay_offline()
        return _load_demo(_dtype(dtype), _device(name, device))
    tokenizer = load_tokenizer(name)
    return load_weights(name, dtype, device), tokenizer


def load_weights(name: str, dtype: str = "auto", device: str = "auto") -> Any:
    """Loads a causal language model without its tokenizer; arguments as for `load_model`.

    Raises:
        ModelError: there is no such model, or it cannot be loaded.
    """
    quiet_libraries()
    _check_place(name)
    if name == "demo":
        return _load_demo(_dtype(dtype), _device(name, device))[0]
    transformers: Any = importlib.import_module("transformers")
    register_families()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=_dtype(dtype))
        model.to(_device(name, device))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"cannot load the model {name!r}: {_first_sentence(error)}") from error
    return model.eval()


def load_tokenizer(name: str) -> Any:
    """Loads the tokenizer of a model.

    Raises:
        ModelError: there is no such model, or it has no tokenizer.
    """
    quiet_libraries()
    is_local = _check_place(name)
    from transformers import AutoTokenizer

    register_families()
    if not is_local:
        note(f"Asking the Hugging Face Hub (or its local cache) for {name} ...")
    try:
        return AutoTokenizer.from_pretrained(_demo_path() if name == "demo" else name)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"cannot load the tokenizer of {name!r}: {_first_sentence(error)}") from error


def _check_place(name: str) -> bool:
    """Whether a model is on this machine; then nothing is looked up elsewhere.

    Raises:
        ModelError: there is no such folder, or no model in it.
    """
    is_local = name == "demo" or _is_folder(name)
    if is_local:
        stay_offline()
    folder = Path(name).expanduser()
    if name != "demo" and is_local and not (folder / "config.json").exists():
        if (folder / "adapter_config.json").exists():
            raise ModelError(
                f"the folder {name!r} holds an adapter and no model: save the whole model with "
                "model.merge_and_unload().save_pretrained(...)"
            )
        raise ModelError(f"the folder {name!r} holds no model: there is no config.json in it")
    if not is_local and _looks_like_a_path(name):
        raise ModelError(
            f"there is no folder {name!r}; give a model's folder, a name on the Hugging Face Hub, or `demo`"
        )
    return is_local


def answer_room(model: Any, tokenizer: Any, prompt: Any, wanted: int) -> int:
    """How many of the wanted new tokens fit behind a prompt; at least 1, since too long a prompt is refused later."""
    from pia.models.positions import context_length
    from pia.text import encode

    limit = context_length(model)
    return wanted if limit is None else max(1, min(wanted, limit - encode(tokenizer, prompt).shape[1]))


def _load_demo(dtype: torch.dtype | str, device: str) -> tuple[Any, Any]:
    from pia.assets import load_demo

    _demo_path()
    transformers: Any = importlib.import_module("transformers")
    transformers.logging.disable_progress_bar()  # a second's work needs none
    model: Any
    model, tokenizer = load_demo(None if isinstance(dtype, str) else dtype)
    return model.to(device), tokenizer


def _demo_path() -> Path:
    from pia.assets import demo_model_path

    try:
        return demo_model_path()
    except FileNotFoundError as error:
        raise ModelError(str(error)) from error


def _dtype(name: str) -> Any:
    import torch

    return "auto" if name == "auto" else getattr(torch, name)


def _device(name: str, device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if name != "demo" and torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(f"the device {device!r} cannot be used: {_first_sentence(error)}") from error
    return device


def _is_folder(name: str) -> bool:
    return Path(name).expanduser().is_dir()


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def _first_sentence(error: Exception) -> str:
    """The start of a library's message, which may run over many lines."""
    text = " ".join(str(error).split())
    if "connect to" in text:
        return "it is not in the local cache and the Hugging Face Hub cannot be reached"
    return text if len(text) <= 300 else text[:300].rstrip() + " ..."
