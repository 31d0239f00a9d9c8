"""Which sizes of a forward give the same bits: found by trial, on the model, machine and number of threads at hand.

A kernel is a fixed sequence of roundings for each row of its result, chosen by the shapes alone. Whether two rows of
two forwards go through the same sequence cannot be read off from outside; but if they do not, then some of the many
thousand numbers that a model computes from random weights and texts will differ in a bit. So a size is taken for
interchangeable with another if every row, at another index, with other neighbours and other texts behind the mask,
gives the same keys, values and logits to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pia.models.exact_cache import BUCKET, LARGEST, ExactCache, slots_of
from pia.models.exact_probe import Call, Probe, Recorder, UnknownShapeError, probes
from pia.models.positions import context_length

SIZES = (1, 2, 4, 8, 16, 32, LARGEST)
"""Numbers of tokens a forward may carry."""
_REFERENCES = (8, 16, 4, 32, LARGEST)
"""Sizes that the others are compared with, the first that agrees with itself."""
_OFFSET = 61
"""Where in its bucket the text of the trial begins: at an odd place."""
_SHIFT = 3
"""By how many rows a token moves between the two forwards that are compared."""
_LENGTH = LARGEST + _SHIFT + 5


class _Trial:
    """A random text fed in forwards of some size, from one place in a bucket on."""

    def __init__(self, model: Any, bucket: int) -> None:
        self.model = model
        self._bucket = bucket
        self._start = bucket * BUCKET + _OFFSET
        generator = torch.Generator().manual_seed(bucket)
        vocab_size = model.get_input_embeddings().weight.shape[0]
        self._ids = torch.randint(0, vocab_size, (_OFFSET + _LENGTH,), generator=generator).tolist()
        self._cache = ExactCache()
        self._fill()

    def feed(self, size: int, first: int, times: int) -> list[torch.Tensor]:
        """Feeds the text from token `first` on, `size` tokens at a time.

        Returns:
            logits `[tokens, vocab]`, and the keys and the values of every layer, `[tokens, heads, head_dim]` each.
        """
        self._cache.set_length(self._start + first)
        ids = self._ids[_OFFSET + first :]
        logits = [self._forward(ids[at : at + size]) for at in range(0, size * times, size)]
        new = slice(self._start + first, self._cache.length)
        states = [states[0, :, new] for layer in self._cache.layers for states in (layer.keys, layer.values)]
        return [torch.cat(logits), *(part.transpose(0, 1).clone() for part in states)]

    def _forward(self, ids: list[int]) -> torch.Tensor:
        start = self._cache.length
        positions = torch.arange(start, start + len(ids), device=self.model.device)[None]
        output = self.model(
            input_ids=torch.tensor([ids], device=self.model.device),
            position_ids=positions.clamp(max=self._largest_position()),
            past_key_values=self._cache,
            use_cache=True,
        )
        logits: torch.Tensor = output.logits[0]
        return logits

    def _fill(self) -> None:
        """Fills the slots before the text: a short prompt's keys and values, over and over."""
        num_slots = slots_of(self._bucket)
        self._cache.open(num_slots, sees_all=False)
        self._forward(self._ids[:_OFFSET])
        self._cache.open(num_slots, sees_all=True)
        for layer in self._cache.layers:
            for states in (layer.keys, layer.values):
                copies = -(-self._start // _OFFSET)
                states[:, :, : self._start] = states[:, :, :_OFFSET].repeat(1, 1, copies, 1)[:, :, : self._start]

    def _largest_position(self) -> int:
        return (context_length(self.model) or 1 << 30) - 1


@torch.inference_mode()
def interchangeable_sizes(model: Any, bucket: int) -> tuple[int, ...]:
    """Sizes of forwards whose rows are the same bits, for the positions of a bucket, ascending.

    `(1,)` where no other can be used: tokens that are fed one by one have no neighbours and one row.
    """
    trial = _Trial(model, bucket)
    calls = {size: _calls(trial, size) for size in SIZES}
    for reference in _REFERENCES:
        expected = trial.feed(reference, 0, _LENGTH // reference)
        if _agrees(trial, reference, expected) and _adds_up_alike(calls, reference, reference):
            agreeing = (size for size in SIZES if size == reference or _agrees(trial, size, expected))
            return tuple(size for size in agreeing if size == reference or _adds_up_alike(calls, size, reference))
    return (1,)


def _calls(trial: _Trial, size: int) -> list[Call]:
    """The operations of a forward."""
    recorder = Recorder()
    with recorder:
        trial.feed(size, 0, 1)
    return recorder.calls


def _adds_up_alike(calls: dict[int, list[Call]], size: int, reference: int) -> bool:
    """Whether every operation of a forward gives the reference's bits, at sizes where each bit shows."""
    other = LARGEST if reference != LARGEST else SIZES[-2]  # so that tokens can be told from the rest of a shape
    try:
        found = probes({chosen: calls[chosen] for chosen in (reference, other, size)}, _LENGTH)
        return all(_agrees(probe, size, probe.feed(reference, 0, _LENGTH // reference)) for probe in found)
    except UnknownShapeError:
        return False


def _agrees(witness: _Trial | Probe, size: int, expected: Sequence[torch.Tensor]) -> bool:
    """Whether rows have the expected bits when they are fed in forwards of another size, begun at another row."""
    found = witness.feed(size, _SHIFT, max(1, 8 // size))
    return all(_same_bits(new, known[_SHIFT:]) for new, known in zip(found, expected, strict=True))


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are equal to the bit, as far as both go."""
    num_tokens = min(len(a), len(b))
    a, b = a[:num_tokens].contiguous(), b[:num_tokens].contiguous()
    as_integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.view(as_integers), b.view(as_integers))
