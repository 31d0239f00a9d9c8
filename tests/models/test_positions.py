"""Rope that depends on the length of the text: drafts stop where they would change it, and texts are fed anew."""

from __future__ import annotations

import pytest
import torch
import transformers
from checks import forget_lengths
from zoo import VOCAB

import pia
import pia.plan
from pia.models.capability import declared_capability
from pia.models.positions import NO_LIMITS, PositionLimits, lost_text_reason
from pia.models.runner import SlabRunner
from toys import ToySource

END = 24
"""The original length; most texts here cross it."""
_BASE = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    initializer_range=0.25,
    tie_word_embeddings=False,
)
_LONGROPE = dict(
    rope_type="longrope",
    rope_theta=10000.0,
    short_factor=[1.0, 1.1, 1.2, 1.3],
    long_factor=[3.0, 5.0, 7.0, 9.0],
    original_max_position_embeddings=END,
)
_DYNAMIC = dict(rope_type="dynamic", factor=4.0, rope_theta=10000.0)


def dynamic():
    config = transformers.LlamaConfig(**_BASE, max_position_embeddings=END, rope_parameters=_DYNAMIC)
    return transformers.LlamaForCausalLM(config)


def longrope():
    config = transformers.LlamaConfig(**_BASE, max_position_embeddings=512, rope_parameters=_LONGROPE)
    return transformers.LlamaForCausalLM(config)


def phi3():
    config = transformers.Phi3Config(
        **_BASE,
        max_position_embeddings=512,
        original_max_position_embeddings=END,
        rope_parameters=_LONGROPE,
        sliding_window=None,
    )
    return transformers.Phi3ForCausalLM(config)


def phimoe():
    config = transformers.PhimoeConfig(
        **_BASE,
        max_position_embeddings=512,
        original_max_position_embeddings=END,
        rope_parameters=_LONGROPE | dict(short_mscale=1.0, long_mscale=1.1),
        sliding_window=None,
        num_local_experts=4,
    )
    return transformers.PhimoeForCausalLM(config)


MODELS = {"dynamic": dynamic, "longrope": longrope, "phi3": phi3, "phimoe": phimoe}
LENGTHS = (1, 9, 14, END - 2, END - 1, END, END + 1, 40)


@pytest.fixture(scope="module", params=sorted(MODELS))
def model(request):
    torch.manual_seed(0)
    made = MODELS[request.param]().eval()
    made.generation_config.pad_token_id = 0
    return made


def texts_of(model, length):
    """A prompt, plain decoding's text, and what PIA makes of it with good drafts."""
    prompt = torch.randint(3, VOCAB, (1, length), generator=torch.Generator().manual_seed(length))
    options = {"max_new_tokens": 28, "do_sample": False, "eos_token_id": None}
    forget_lengths(model)
    expected = model.generate(prompt, **options)
    lookahead = pia.Lookahead(cache=ToySource(expected[0].tolist(), 0.9), budget=10)
    model.generate(prompt[:, :1], max_new_tokens=1, custom_generate=lookahead)  # what it can do is found out
    forget_lengths(model)
    out = model.generate(prompt, custom_generate=lookahead, return_dict_in_generate=True, **options)
    return expected, out


@pytest.mark.parametrize("length", LENGTHS)
def test_output_is_plain_decodings_across_the_original_length(model, length):
    expected, out = texts_of(model, length)
    assert torch.equal(out.sequences, expected)
    if lost_text_reason(model):  # an older Transformers
        assert out.stats.mode == "plain" and "forgets the text" in out.stats.reason
        return
    assert out.stats.mode == "tree"
    is_dynamic = model.config.rope_parameters["rope_type"] == "dynamic"
    if is_dynamic and length >= END - 1:
        assert out.stats.num_drafted == 0
    else:
        assert 0 < out.stats.num_accepted < out.stats.num_drafted


def test_without_the_limits_outputs_are_wrong(model, monkeypatch):
    """Negative control: the texts above do depend on where drafts stop."""
    if lost_text_reason(model):
        pytest.skip("decoded plainly")
    monkeypatch.setattr(PositionLimits, "max_depth", lambda self, position: None)
    monkeypatch.setattr(pia.plan, "context_length", lambda model: None)
    monkeypatch.setattr(pia.plan, "RefillRunner", lambda model, *, refill_at, **options: SlabRunner(model, **options))
    outcomes = [texts_of(model, length) for length in LENGTHS]
    assert not all(torch.equal(out.sequences, expected) for expected, out in outcomes)


def test_text_is_fed_anew_where_phi3_does():
    refills = {name: declared_capability(make()).positions.refill_at for name, make in MODELS.items()}
    assert refills == {"dynamic": None, "longrope": None, "phi3": END, "phimoe": END}


def test_depths():
    dynamic, longrope = PositionLimits(max_tree_position=24), PositionLimits(crossing=24)
    assert [dynamic.max_depth(position) for position in (0, 20, 22, 23, 24, 30)] == [23, 3, 1, 0, 0, 0]
    assert [longrope.max_depth(position) for position in (0, 20, 22, 23, 24, 30)] == [23, 3, 1, 0, None, None]
    assert NO_LIMITS.max_depth(100) is None
    assert PositionLimits(crossing=24, refill_at=24).max_depth(24) == 0


def test_reasons_name_the_place(model):
    capability = declared_capability(model)
    if lost_text_reason(model):
        pytest.skip("decoded plainly")
    assert f"position {END}" in capability.reason
    assert not capability.can_batch  # one frequency for all rows of a forward
