"""Overrides of `prepare_inputs_for_generation` are judged by what they feed, not by their being there."""

from __future__ import annotations

import pytest
import torch
import transformers

from pia.models.capability import declared_capability
from pia.models.inputs_probe import skipped_inputs
from toys import VOCAB, tiny_model

_BASE = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)


class Overriding(transformers.LlamaForCausalLM):
    """Prepares its inputs through `change`, which gets the prepared inputs and the arguments."""

    change = staticmethod(lambda model, inputs, cache: inputs)

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, **kwargs):
        inputs = super().prepare_inputs_for_generation(input_ids, past_key_values=past_key_values, **kwargs)
        return self.change(self, inputs, past_key_values)


def _note(model, inputs, cache):
    model.model.last_length = object()
    return inputs


def _run(model, inputs, cache):
    if cache.get_seq_length() == 0:
        model(input_ids=torch.tensor([[9, 8, 7]]), past_key_values=cache, use_cache=True)
    return inputs


def _count_in_place(model, inputs, cache):
    inputs["position_ids"] += 1
    return inputs


def _hide_first(model, inputs, cache):
    mask = torch.ones(1, cache.get_seq_length() + inputs["input_ids"].shape[1], dtype=torch.long)
    mask[:, 0] = 0
    return {**inputs, "attention_mask": mask}


def _causal(model, inputs, cache):
    past, q = cache.get_seq_length(), inputs["input_ids"].shape[1]
    return {**inputs, "attention_mask": torch.ones(past + q, past + q).tril()[None, None, past:].bool()}


HARMLESS = {
    "nothing": lambda model, inputs, cache: inputs,
    "none": lambda model, inputs, cache: {**inputs, "token_type_ids": None},
    "default": lambda model, inputs, cache: {**inputs, "labels": None, "logits_to_keep": 1},
    "causal mask": _causal,
}
HARMFUL = {
    "labels": (lambda model, inputs, cache: {**inputs, "labels": inputs["input_ids"]}, "labels"),
    "constant": (lambda model, inputs, cache: {**inputs, "output_attentions": True}, "output_attentions"),
    "positions": (lambda model, inputs, cache: {**inputs, "position_ids": inputs["position_ids"] + 1}, "position_ids"),
    "positions in place": (_count_in_place, "position_ids|changes"),
    "no positions": (lambda model, inputs, cache: {**inputs, "position_ids": None}, "position_ids"),
    "ids": (lambda model, inputs, cache: {**inputs, "input_ids": inputs["input_ids"] + 1}, "input_ids"),
    "mask": (_hide_first, "attention_mask"),
    "no cache": (lambda model, inputs, cache: {**inputs, "past_key_values": None}, "another cache"),
    "behind the prompt": (
        lambda model, inputs, cache: {**inputs, "labels": inputs["input_ids"] if cache.get_seq_length() else None},
        "behind 4",
    ),
    "notes": (_note, "changes the model"),
    "runs": (_run, "changes the cache"),
    "raises": (lambda model, inputs, cache: {}["pixels"], "KeyError"),
}


def overriding(change):
    torch.manual_seed(0)
    model = Overriding(transformers.LlamaConfig(**_BASE)).eval()
    model.change = change
    return model


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_overrides_cost_nothing(name):
    model = overriding(HARMLESS[name])
    assert skipped_inputs(model) is None
    assert declared_capability(model).can_verify_trees


@pytest.mark.parametrize("name", HARMFUL)
def test_overrides_that_feed_something_else_are_found(name):
    change, reason = HARMFUL[name]
    model = overriding(change)
    found = skipped_inputs(model)
    assert found is not None and any(part in found for part in reason.split("|"))
    assert not declared_capability(model).can_verify_chains


def test_an_override_on_the_object_is_judged_too():
    model = tiny_model("llama")
    model.prepare_inputs_for_generation = model.prepare_inputs_for_generation  # what PEFT leaves behind
    assert skipped_inputs(model) is None
    model.prepare_inputs_for_generation = lambda input_ids, **kwargs: {"input_ids": input_ids[:, :1]}
    assert skipped_inputs(model) is not None


NATIVE = {
    "phi3": lambda: transformers.Phi3ForCausalLM(transformers.Phi3Config(**_BASE)),
    "phimoe": lambda: transformers.PhimoeForCausalLM(transformers.PhimoeConfig(**_BASE, num_local_experts=2)),
    "ctrl": lambda: transformers.CTRLLMHeadModel(
        transformers.CTRLConfig(vocab_size=VOCAB, n_positions=64, n_embd=32, dff=48, n_layer=2, n_head=4)
    ),
    "gemma3": lambda: transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**_BASE, head_dim=8)),
    "falcon-h1": lambda: transformers.FalconH1ForCausalLM(
        transformers.FalconH1Config(**_BASE, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8)
    ),
}


@pytest.mark.parametrize("name", NATIVE)
def test_native_overrides_are_harmless(name):
    assert skipped_inputs(NATIVE[name]()) is None
