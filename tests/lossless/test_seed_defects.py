"""Each way in which the seed's implementation was seen to break its promise, and that it cannot happen here."""

from __future__ import annotations

import copy
import gc
import threading
import weakref

import pytest
import torch

import pia
from toys import ToySource, prompts, tiny_model

GREEDY = {"do_sample": False, "eos_token_id": None}


def test_last_token_with_id_zero(llama):
    """Token id 0 is a token like any other: at the end of a prompt, in drafts, and in outputs."""
    prompt = torch.tensor([[5, 9, 0, 5, 9, 0, 5, 9, 0]])
    expected = llama.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, **GREEDY)
    for source in (None, ToySource(expected[0].tolist(), 1.0)):
        lookahead = pia.Lookahead(cache=source, budget=12)
        out = llama.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, custom_generate=lookahead, **GREEDY
        )
        assert torch.equal(out, expected)
    session = pia.DraftCache().begin([5, 9, 0, 5, 9])
    assert session.propose(4, 4).token_ids[0] == 0


def test_eos_ids_inside_a_chat_prompt():
    """End-of-turn tokens that are EOS ids do not cut the prompt short: what follows them is draftable."""
    session = pia.DraftCache().begin([3, 4, 2, 10, 11, 12, 13, 2, 10, 11], stop_ids=frozenset([2]))
    assert session.propose(4, 4).token_ids.tolist()[:2] == [12, 13]


def test_scores_and_logits_one_per_token(llama):
    prompt = prompts(1, seed=51)[0]
    options = {
        **GREEDY,
        "max_new_tokens": 25,
        "repetition_penalty": 1.2,
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
    }
    expected = llama.generate(prompt, **options)
    lookahead = pia.Lookahead(cache=ToySource(expected.sequences[0].tolist(), 0.8), budget=15)
    out = llama.generate(prompt, custom_generate=lookahead, **options)
    assert out.stats.edl > 1.3
    assert torch.equal(out.sequences, expected.sequences)
    assert len(out.scores) == len(out.logits) == 25
    for name in ("scores", "logits"):
        for ours, theirs in zip(getattr(out, name), getattr(expected, name), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_one_new_token(family):
    prompt = prompts(1, seed=52)[0]
    expected = family.generate(prompt, max_new_tokens=1, do_sample=False)
    out = family.generate(
        prompt, max_new_tokens=1, do_sample=False, custom_generate=pia.Lookahead(budget=8), return_dict_in_generate=True
    )
    assert torch.equal(out.sequences, expected)
    assert (
        out.kwargs["edls"] == [1]
        and out.kwargs["dls"] == [1]
        and len(out.kwargs["fts"]) == 1
        and out.kwargs["qts"] == []
    )


def test_options_object_is_reused_and_never_written(llama):
    options = {"use_lookahead": True, "decoding_length": 16, "branch_length": 8, "decoding_mode": "hier"}
    before = copy.deepcopy(options)
    model = pia.accelerate(tiny_model("llama"))
    for prompt in prompts(8, seed=53):
        expected = llama.generate(prompt, max_new_tokens=15, do_sample=False)
        assert torch.equal(
            model.generate(prompt, max_new_tokens=15, do_sample=False, decoding_kwargs=options), expected
        )
    assert options == before


@pytest.mark.parametrize("end", ["exception", "closed", "forgotten"])
def test_a_broken_request_leaves_no_trace(llama, end):
    prompt = prompts(1, seed=54)[0]
    lookahead = pia.Lookahead(budget=8)
    cache = lookahead.cache
    cache.insert([7, 8, 9, 10])
    before = (cache.num_tokens, cache.num_contexts, cache.memory_usage)
    processors = [_Failing(after=prompt.shape[1] + 9)] if end == "exception" else []
    steps = pia.decode(llama, prompt, lookahead=lookahead, max_new_tokens=40, logits_processor=processors, **GREEDY)
    if end == "exception":
        with pytest.raises(RuntimeError, match="broken processor"):
            list(steps)
    else:
        for _ in range(5):
            next(steps)
        assert cache.request_memory_usage > 0
        if end == "closed":
            steps.close()
        del steps
    gc.collect()
    assert (cache.num_tokens, cache.num_contexts, cache.memory_usage) == before
    assert cache.request_memory_usage == 0
    cache.check_integrity()


class _Failing:
    def __init__(self, after):
        self.after = after

    def __call__(self, input_ids, scores):
        if input_ids.shape[1] >= self.after:
            raise RuntimeError("broken processor")
        return scores


def test_memory_of_a_request_goes_with_it(llama):
    prompt = torch.randint(3, 97, (1, 400), generator=torch.Generator().manual_seed(1))
    lookahead = pia.Lookahead(budget=8)
    steps = pia.decode(llama, prompt, lookahead=lookahead, max_new_tokens=5, **GREEDY)
    next(steps)
    gc.collect()
    kv = next(o for o in gc.get_objects() if type(o).__name__ == "SlabCache")
    storage = weakref.ref(kv._slab)
    del kv
    assert lookahead.cache.request_memory_usage > 400
    gc.disable()  # freed by the last reference, not some day
    try:
        list(steps)
        del steps
        assert storage() is None
    finally:
        gc.enable()
    assert lookahead.cache.request_memory_usage == 0


def test_no_quadratic_mask_at_long_prompts(llama):
    """No tensor of a step grows with the square of the text: the largest ones are caught as they are made."""
    model = tiny_model("llama")
    length = 2000
    model.config.max_position_embeddings = 4096
    prompt = torch.randint(3, 97, (1, length), generator=torch.Generator().manual_seed(2))
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    with Watch():
        out = model.generate(prompt, max_new_tokens=8, custom_generate=pia.Lookahead(budget=16), **GREEDY)
    assert out.shape[1] == length + 8
    assert largest < length * length / 8


def test_own_output_is_draftable_at_once_and_across_the_border():
    session = pia.DraftCache().begin([20, 21, 22, 30])
    session.observe([31, 32, 20, 21, 22, 30])  # from here the prompt's end and the output's beginning follow
    assert session.propose(3, 3).token_ids.tolist() == [31, 32, 20]
    session.observe([40])
    session.observe([22, 30])
    assert 40 in session.propose(4, 1).token_ids.tolist()  # the token emitted two steps ago


@pytest.mark.parametrize("budget", [8, "auto"])
def test_six_threads_on_one_cache(budget):
    llama = tiny_model("llama")  # a new one, so that the threads also race to examine it
    lookahead = pia.Lookahead(budget=budget)
    work = prompts(18, seed=56)
    expected = [llama.generate(p, max_new_tokens=15, **GREEDY) for p in work]
    got: list[torch.Tensor | None] = [None] * len(work)

    def run(first):
        for index in range(first, len(work), 6):
            got[index] = llama.generate(work[index], max_new_tokens=15, custom_generate=lookahead, **GREEDY)

    threads = [threading.Thread(target=run, args=(first,)) for first in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(got, expected, strict=True))
    lookahead.cache.check_integrity()
