"""One comparison with plain `generate`, with drafts that are often right and often wrong."""

from __future__ import annotations

import torch

import pia
from toys import ToySource

OPTIONS = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}


def compare(model, prompt, *, agreement=0.8, budget=8, **options):
    """Generates plainly and with toy drafts, requires the same text, and returns PIA's output."""
    options = {**OPTIONS, **options}
    expected = model.generate(input_ids=prompt, **options)
    lookahead = pia.Lookahead(cache=ToySource(expected[0].tolist(), agreement, seed=prompt.shape[1]), budget=budget)
    out = model.generate(input_ids=prompt, custom_generate=lookahead, return_dict_in_generate=True, **options)
    assert torch.equal(out.sequences, expected)
    return out


def assert_drafts_used(out, mode="tree"):
    assert out.stats.mode == mode, out.stats.reason
    assert 0 < out.stats.num_accepted < out.stats.num_drafted
