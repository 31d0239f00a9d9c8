"""Models that cannot take trees fall back to a chain or to plain decoding, with the reason, and never to a wrong
output."""

from __future__ import annotations

import logging

import pytest
import torch
import transformers

import pia
from pia.models.capability import Mode, declared_capability
from pia.models.self_check import proved_capability
from toys import VOCAB, ToySource, prompts, tiny_model

_BASE = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    initializer_range=0.25,
)


def mamba():
    return transformers.MambaForCausalLM(
        transformers.MambaConfig(
            vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.25
        )
    )


class NoPositions(transformers.LlamaForCausalLM):
    """A forward of somebody's own that counts positions by itself."""

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)


def no_positions():
    return NoPositions(transformers.LlamaConfig(**_BASE))


def own_window():
    config = transformers.LlamaConfig(**_BASE)
    config.attention_window_size = 8  # of a modeling file that nobody knows
    return transformers.LlamaForCausalLM(config)


def doge():
    return transformers.DogeForCausalLM(transformers.DogeConfig(**_BASE))


class OwnInputs(transformers.LlamaForCausalLM):
    """A model that feeds something in front of every prompt, as prompt tuning does."""

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, **kwargs):
        if past_key_values is not None and past_key_values.get_seq_length() == 0:
            self(input_ids=torch.tensor([[9, 8, 7]]), past_key_values=past_key_values, use_cache=True)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        fed = input_ids if past == 3 else input_ids[:, -1:]
        return {"input_ids": fed, "past_key_values": past_key_values, "use_cache": True}


def own_inputs():
    return OwnInputs(transformers.LlamaConfig(**_BASE))


CASES = {
    "own-window": (own_window, Mode.CHAIN, "attention_window_size"),
    "own-inputs": (own_inputs, Mode.PLAIN, "prepares its inputs"),
    "no-positions": (no_positions, Mode.CHAIN, "position_ids"),
    "doge": (doge, Mode.PLAIN, "highest scores"),
    "mamba": (mamba, Mode.PLAIN, "recurrent"),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_falls_back_with_the_reason(name, caplog):
    make, mode, reason = CASES[name]
    torch.manual_seed(0)
    model = make().eval()
    model.generation_config.pad_token_id = 0
    options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None}
    for prompt in prompts(6, seed=61, longest=60):
        expected = model.generate(prompt, **options)
        lookahead = pia.Lookahead(cache=ToySource(expected[0].tolist(), 0.9), budget=10)
        with caplog.at_level(logging.WARNING, logger="pia"):
            out = model.generate(prompt, custom_generate=lookahead, return_dict_in_generate=True, **options)
        assert torch.equal(out.sequences, expected)
        assert out.stats.mode == mode.label
        assert reason in out.stats.reason
    assert len(caplog.records) == 1  # one warning for the model, not one for each call
    assert declared_capability(model).mode == mode


@pytest.mark.parametrize("name", ["own-window", "no-positions"])
def test_chains_are_used_where_trees_cannot_be(name):
    torch.manual_seed(0)
    model = CASES[name][0]().eval()
    prompt = torch.tensor([[5, 6, 7, 8] * 4])
    expected = model.generate(prompt, max_new_tokens=30, do_sample=False, eos_token_id=None)
    source = ToySource(expected[0].tolist(), 1.0, width=1)
    out = model.generate(
        prompt,
        max_new_tokens=30,
        do_sample=False,
        eos_token_id=None,
        custom_generate=pia.Lookahead(cache=source, budget=4),
        return_dict_in_generate=True,
    )
    assert torch.equal(out.sequences, expected)
    assert out.stats.mode == "chain" and out.stats.edl > 3


class MaskBlind(transformers.LlamaForCausalLM):
    """A forward of somebody's own that makes a causal mask whatever it is given."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, **kwargs):
        return super().forward(input_ids=input_ids, attention_mask=None, position_ids=position_ids, **kwargs)


class PositionBlind(transformers.GPT2LMHeadModel):
    """A forward that counts positions by itself."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, **kwargs):
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("cls", [MaskBlind, PositionBlind])
def test_self_check_finds_what_is_not_declared(cls, dtype):
    honest = tiny_model("llama" if cls is MaskBlind else "gpt2")
    torch.manual_seed(0)
    model = cls(honest.config).eval().to(dtype)
    declared = declared_capability(model)
    assert declared.can_verify_trees
    proved = proved_capability(model, declared)
    assert proved.mode == Mode.CHAIN and "self-check" in proved.reason
    assert proved_capability(honest.to(dtype), declared).can_verify_trees


def test_self_check_can_be_switched_off():
    torch.manual_seed(0)
    model = MaskBlind(tiny_model("llama").config).eval()
    prompt = prompts(1)[0]
    trusted = pia.Lookahead(budget=4, self_check=False)
    model.generate(prompt, max_new_tokens=2, custom_generate=trusted)
    assert trusted.last_stats.mode == "tree"
    checked = pia.Lookahead(budget=4)
    expected = model.generate(prompt, max_new_tokens=20, do_sample=False)
    assert torch.equal(model.generate(prompt, max_new_tokens=20, do_sample=False, custom_generate=checked), expected)
    assert checked.last_stats.mode == "chain"


def test_trees_of_every_attention_that_takes_masks():
    for name in ("llama", "gpt2"):
        for implementation in ("sdpa", "eager"):
            model = tiny_model(name)
            model.set_attn_implementation(implementation)
            assert declared_capability(model).can_verify_trees
            assert proved_capability(model, declared_capability(model)).can_verify_trees


def test_weights_in_training_mode_are_left_so():
    model = tiny_model("llama").train()
    model.model.layers[0].eval()
    model.generate(prompts(1)[0], max_new_tokens=2, do_sample=False, custom_generate=pia.Lookahead(budget=2))
    assert model.training and not model.model.layers[0].mlp.training
