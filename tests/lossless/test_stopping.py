"""Nothing is emitted after a stop, wherever inside an accepted draft it falls."""

from __future__ import annotations

import torch
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

import pia
from toys import ToySource, prompts


class StopOn(StoppingCriteria):
    """Stops when the last token is one of these, and counts how often it was asked."""

    def __init__(self, token_ids):
        self.token_ids, self.lengths = set(token_ids), []

    def __call__(self, input_ids, scores, **kwargs):
        self.lengths.append(input_ids.shape[1])
        return torch.tensor([int(input_ids[0, -1]) in self.token_ids])


def oracle(model, prompt, **options):
    """Drafts that are always right: the plain output, played back."""
    full = model.generate(prompt, max_new_tokens=40, do_sample=False, eos_token_id=None, **options)
    return full, pia.Lookahead(cache=ToySource(full[0].tolist(), 1.0), budget=15)


def test_custom_criterion_inside_an_accepted_draft(llama):
    for prompt in prompts(6, seed=41):
        full, lookahead = oracle(llama, prompt)
        stop = StopOn(full[0, prompt.shape[1] + 6 : prompt.shape[1] + 8].tolist())
        options = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": None}
        expected = llama.generate(prompt, stopping_criteria=StoppingCriteriaList([stop]), **options)
        plain_lengths, stop.lengths = stop.lengths, []
        out = llama.generate(
            prompt, stopping_criteria=StoppingCriteriaList([stop]), custom_generate=lookahead, **options
        )
        assert torch.equal(out, expected)
        assert stop.lengths == plain_lengths  # asked once for each token, in order, and never after the stop
        assert lookahead.last_stats.finish_reason == "stop"


def test_eos_inside_an_accepted_draft(family):
    for prompt in prompts(6, seed=43):
        full, lookahead = oracle(family, prompt)
        eos = [int(full[0, prompt.shape[1] + 7]), 2]
        expected = family.generate(prompt, max_new_tokens=40, do_sample=False, eos_token_id=eos)
        out = family.generate(prompt, max_new_tokens=40, do_sample=False, eos_token_id=eos, custom_generate=lookahead)
        assert torch.equal(out, expected)
        assert lookahead.last_stats.finish_reason == "eos"
        assert out[0, -1] in eos


def test_every_length_limit(llama):
    prompt = prompts(1, seed=44)[0]
    full, lookahead = oracle(llama, prompt)
    for limit in range(1, 20):
        out = llama.generate(
            prompt, max_new_tokens=limit, do_sample=False, eos_token_id=None, custom_generate=lookahead
        )
        assert torch.equal(out, full[:, : prompt.shape[1] + limit])
        assert lookahead.last_stats.finish_reason == "length"


def test_eos_none_runs_to_the_limit(llama):
    prompt = prompts(1, seed=45)[0]
    lookahead = pia.Lookahead(budget=8)
    out = llama.generate(prompt, max_new_tokens=30, do_sample=False, eos_token_id=None, custom_generate=lookahead)
    assert out.shape[1] == prompt.shape[1] + 30


def test_stop_strings(demo):
    model, tokenizer = demo
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Tom has 3 apples and buys 4 more. How many apples does he have?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )["input_ids"]
    full = model.generate(ids, max_new_tokens=60, do_sample=False)
    words = tokenizer.decode(full[0, ids.shape[1] :]).split()
    stop = words[len(words) // 2]
    expected = model.generate(ids, max_new_tokens=60, do_sample=False, stop_strings=[stop], tokenizer=tokenizer)
    assert expected.shape[1] < full.shape[1]
    pia.accelerate(model, pia.Lookahead(cache=ToySource(full[0].tolist(), 1.0), budget=15))
    try:
        out = model.generate(ids, max_new_tokens=60, do_sample=False, stop_strings=[stop], tokenizer=tokenizer)
    finally:
        pia.restore(model)
    assert torch.equal(out, expected)
    lookahead = pia.Lookahead(budget=8)
    steps = pia.decode(model, ids, lookahead=lookahead, max_new_tokens=60, stop_strings=[stop], tokenizer=tokenizer)
    tokens = [t for step in steps for t in step.token_ids]
    assert tokens == expected[0, ids.shape[1] :].tolist()
