"""A causal language model in two halves: hidden states of a batch, and logits of some of them."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from pia.ipad.data import Batch
from pia.ipad.structure import structure_of


class Decoder:
    """Runs a model without its logits, which are made where and when they are needed.

    Args:
        model: a causal language model of Transformers.

    Raises:
        ShrinkError: the model is of no supported family.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.structure = structure_of(model)

    def hidden(self, batch: Batch) -> torch.Tensor:
        """Final hidden states `[n, hidden]` at the places of a batch whose targets have any weight."""
        backbone = self.structure.backbone(self.model)
        # no mask: padding stands on the right, where the causal mask hides it
        states = backbone(input_ids=batch.ids, use_cache=False).last_hidden_state
        chosen: torch.Tensor = states.flatten(0, 1)[batch.places]
        return chosen

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[n, vocab]` of `[n, hidden]`, in float32 or wider."""
        logits: torch.Tensor = self.structure.logits(self.model, hidden)
        return logits if logits.dtype == torch.float64 else logits.float()

    def head_parameters(self) -> list[torch.Tensor]:
        """Those of the head that are trained."""
        return [p for p in self.structure.head(self.model).parameters() if p.requires_grad]

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return int(self.model.config.get_text_config().vocab_size)


def weights_fingerprint(model: Any) -> str:
    """SHA-256 over names, types, shapes and bytes of all parameters, in hexadecimal digits."""
    whole = hashlib.sha256()
    for name, parameter in model.named_parameters():
        whole.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
        whole.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()
