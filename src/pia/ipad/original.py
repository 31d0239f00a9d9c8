"""The model to shrink, as it is loaded: its weights in a precision that can be trained from, and that of its file."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from typing import Any

import torch

from pia.errors import ModelError, ShrinkError
from pia.ipad.arithmetic import has_fast_bfloat16


@dataclass(frozen=True)
class Original:
    """A model with its tokenizer."""

    model: Any
    tokenizer: Any
    name: str
    """Where it came from."""
    dtype: torch.dtype
    """Of its weights as they came."""

    @classmethod
    def of(cls, model: Any, tokenizer: Any = None, *, device: str = "auto") -> Original:
        """Loads a model by its name, or takes one that is loaded. A loaded one is not changed.

        Args:
            model: a name on the Hub, a folder, or a model.
            tokenizer: of a model that is loaded.
            device: for a model that is not; "auto" is a GPU if there is one.

        Raises:
            ModelError: it cannot be loaded, or has no tokenizer.
            ShrinkError: its weights are quantised.
        """
        if isinstance(model, (str, os.PathLike)):
            return cls._loaded(os.fspath(model), tokenizer, _device(device))
        if tokenizer is None:
            raise ModelError("give the model's tokenizer too: shrink(model, data, out, tokenizer=tokenizer)")
        dtype = _wide_enough(model.dtype, model.device)
        kept = model if dtype == model.dtype else copy.deepcopy(model).to(dtype)
        return cls(kept.eval(), tokenizer, getattr(model, "name_or_path", "") or type(model).__name__, model.dtype)

    @classmethod
    def _loaded(cls, name: str, tokenizer: Any, device: torch.device) -> Original:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        try:
            config = AutoConfig.from_pretrained(name)
            _check_not_quantised(name, config)
            stored = config.dtype or torch.float32
            model = AutoModelForCausalLM.from_pretrained(name, dtype=_wide_enough(stored, device))
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(name)
        except ShrinkError:
            raise
        except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
            raise ModelError(f"cannot load the model {name!r}: {str(error).splitlines()[0]}") from error
        return cls(model.to(device).eval(), tokenizer, name, stored)


def _check_not_quantised(name: str, config: Any) -> None:
    if getattr(config, "quantization_config", None):
        raise ShrinkError(
            f"{name} holds quantised weights, which cannot be cut or trained: shrink the checkpoint that is not "
            "quantised, and quantise what comes out"
        )


def _wide_enough(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Where bfloat16 is emulated, float32 is several times faster and no less exact."""
    return dtype if has_fast_bfloat16(device) else torch.float32


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(f"the device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return torch.device(name)
