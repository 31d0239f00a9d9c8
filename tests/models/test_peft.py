"""Models that PEFT has wrapped: adapters come, go and merge between calls; virtual prompts decode plainly."""

from __future__ import annotations

import pytest
import torch

import pia
from pia.errors import UnsupportedOptionError
from quick_check import OPTIONS, assert_drafts_used, compare
from toys import prompts, tiny_model

peft = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.filterwarnings("ignore:Position ids are not supported"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),
]


def lora(model, **options):
    """A LoRA model whose adapter changes what is said."""
    torch.manual_seed(1)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False, **options
    )
    return peft.get_peft_model(model, config).eval()


def plain_text(model, prompt):
    return model.generate(input_ids=prompt, **OPTIONS)


def test_adapters_may_change_between_calls():
    base = tiny_model("llama")
    prompt = prompts(1, seed=3)[0]
    texts = [plain_text(base, prompt)]
    assert_drafts_used(compare(base, prompt))
    model = lora(base)
    assert_drafts_used(compare(model, prompt))
    texts.append(plain_text(model, prompt))
    second = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["k_proj"], init_lora_weights=False)
    model.add_adapter("second", second)
    model.set_adapter("second")
    assert_drafts_used(compare(model, prompt))
    texts.append(plain_text(model, prompt))
    with model.disable_adapter():
        assert_drafts_used(compare(model, prompt))
    model.set_adapter("default")
    model.merge_adapter()
    assert_drafts_used(compare(model, prompt))
    model.unmerge_adapter()
    assert_drafts_used(compare(model.merge_and_unload(), prompt))
    assert len({tuple(text[0].tolist()) for text in texts}) == 3  # else the adapters were without effect


@pytest.mark.parametrize("name", ["dora", "ia3", "adaption-prompt"])
def test_other_adapters(name):
    configs = {
        "dora": lambda: peft.LoraConfig(
            task_type="CAUSAL_LM", use_dora=True, r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False
        ),
        "ia3": lambda: peft.IA3Config(
            task_type="CAUSAL_LM",
            target_modules=["k_proj", "v_proj", "down_proj"],
            feedforward_modules=["down_proj"],
            init_ia3_weights=False,
        ),
        "adaption-prompt": lambda: peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=4, adapter_layers=2),
    }
    base = tiny_model("llama")
    torch.manual_seed(3)
    model = peft.get_peft_model(base, configs[name]()).eval()
    for parameter_name, parameter in model.named_parameters():
        if "adaption" in parameter_name:  # begins without effect
            parameter.data.normal_(0, 0.5)
    texts = [plain_text(model, prompt)[0].tolist() for prompt in prompts(3, seed=5)]
    assert texts != [plain_text(tiny_model("llama"), prompt)[0].tolist() for prompt in prompts(3, seed=5)]
    for prompt in prompts(3, seed=5):
        assert_drafts_used(compare(model, prompt))


def test_accelerated():
    model = pia.accelerate(lora(tiny_model("llama")), pia.Lookahead(budget=8))
    num_accepted = 0
    for prompt in prompts(3, seed=7):
        expected = model.generate(input_ids=prompt, decoding_kwargs={"use_lookahead": False}, **OPTIONS)
        for _ in range(2):
            out = model.generate(prompt, return_dict_in_generate=True, **OPTIONS)
            assert torch.equal(out.sequences, expected) and out.stats.mode == "tree"
            num_accepted += out.stats.num_accepted
    assert num_accepted > 10


def test_steps_of_a_lora_model():
    model = lora(tiny_model("llama"))
    prompt = prompts(1, seed=8)[0]
    token_ids = prompt[0].tolist()
    for step in pia.decode(model, prompt, lookahead=pia.Lookahead(budget=8), **OPTIONS):
        token_ids += step.token_ids
    assert token_ids == plain_text(model, prompt)[0].tolist()


VIRTUAL_PROMPTS = {
    "prompt-tuning": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "prefix-tuning": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "p-tuning": lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16),
}


@pytest.mark.parametrize("name", VIRTUAL_PROMPTS)
def test_virtual_prompts_decode_plainly(name):
    base = tiny_model("llama")
    prompt = prompts(1, seed=9)[0]
    assert_drafts_used(compare(base, prompt))  # remembered of the base model, and not true of the wrapped one
    torch.manual_seed(3)
    model = peft.get_peft_model(base, VIRTUAL_PROMPTS[name]()).eval()
    for parameter in model.prompt_encoder.parameters():
        parameter.data.normal_(0, 0.5)
    out = compare(model, prompt)
    assert out.stats.mode == "plain" and "prepares its inputs" in out.stats.reason
    assert not torch.equal(out.sequences, plain_text(base, prompt))
    with pytest.raises(UnsupportedOptionError, match="only while its own generate runs"):
        list(pia.decode(model, prompt, **OPTIONS))
    assert_drafts_used(compare(base, prompt))


def test_adapters_that_count_rows_or_tokens_decode_plainly():
    prompt = prompts(1, seed=3)[0]
    model = lora(tiny_model("llama"))
    assert_drafts_used(compare(model, prompt))
    out = compare(model, prompt, adapter_names=["default"])
    assert out.stats.mode == "plain" and "adapter_names" in out.stats.reason
    assert_drafts_used(compare(model, prompt))
    activated = lora(tiny_model("llama"), alora_invocation_tokens=prompt[0, -3:].tolist())
    out = compare(activated, prompt)
    assert out.stats.mode == "plain" and "activated LoRA" in out.stats.reason
