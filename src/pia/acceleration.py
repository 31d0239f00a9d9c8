"""Makes a model's own `generate` use PIA, and takes that back."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from transformers import GenerationMixin

from pia.errors import ModelError, UnsupportedOptionError
from pia.generate_call import with_stop_criterion
from pia.lookahead import Lookahead

_POSITIONAL = tuple(inspect.signature(GenerationMixin.generate).parameters)[1:]


def accelerate(model: Any, lookahead: Lookahead | None = None) -> Any:
    """Makes `model.generate(...)`, and with it pipelines and existing scripts, decode through PIA.

    The seed's `decoding_kwargs={"use_lookahead": True, "decoding_length": 64, "branch_length": 12, "decoding_mode":
    "hier"}` is understood; with `use_lookahead` false the call runs as if the model were not accelerated.

    Args:
        model: a causal language model of Transformers. Only this object is changed, not its class.
        lookahead: shared by all calls; a new one by default.

    Returns:
        the same model.

    Raises:
        ModelError: the object has no `generate`.
    """
    if not callable(getattr(model, "generate", None)):
        raise ModelError(f"{type(model).__name__} has no generate(); give a causal language model of Transformers")
    restore(model)
    original = model.generate
    model.generate = functools.partial(_generate, model, original, lookahead or Lookahead())
    return model


def restore(model: Any) -> Any:
    """Gives an accelerated model its own `generate` back; other models are left as they are."""
    if is_accelerated(model):
        del model.generate
    return model


def is_accelerated(model: Any) -> bool:
    """Whether `accelerate` was called on this model."""
    wrapper = vars(model).get("generate")
    return isinstance(wrapper, functools.partial) and wrapper.func is _generate


def _generate(model: Any, original: Any, lookahead: Lookahead, *args: Any, **kwargs: Any) -> Any:
    """`generate` of an accelerated model: the original one with PIA as its decoding method."""
    if kwargs.get("custom_generate") is not None:
        return original(*args, **kwargs)
    decoding_kwargs = kwargs.get("decoding_kwargs")
    if decoding_kwargs is not None and not decoding_kwargs.get("use_lookahead", True):
        del kwargs["decoding_kwargs"]
        kwargs.pop("predicted_output_ids", None)  # only drafts have a use for it
        if kwargs.pop("seeds", None) is not None:
            raise UnsupportedOptionError("seeds need PIA, and use_lookahead is off: leave one of them out")
        return original(*args, **kwargs)
    kwargs.update(zip(_POSITIONAL, args, strict=False))
    return original(custom_generate=lookahead, **with_stop_criterion(model, kwargs))
