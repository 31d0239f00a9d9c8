"""A runner that works on its own while the host learns and drafts: the same tokens, and nothing learned that should not
be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_batches import padded, trimmed, truth_source
from test_stopping import StopOn
from transformers import StoppingCriteriaList
from transformers.generation.logits_process import LogitsProcessorList

import pia
from pia.drafting.cache import DraftCache
from pia.drafting.tree import DraftTree
from pia.generate_call import prepare
from pia.models.runner import SlabRunner
from toys import VOCAB, ToySource, prompts

GREEDY = {"max_new_tokens": 40, "do_sample": False}


class Asynchronous:
    """A runner that calls back between launch and result, as on a device of its own."""

    is_asynchronous = True

    def __init__(self, runner):
        self._runner = runner
        self.num_calls = 0

    def __getattr__(self, name):
        return getattr(self._runner, name)

    def forward(self, token_ids, trees, meanwhile):
        logits = self._runner.forward(token_ids, trees)
        self.num_calls += 1
        meanwhile()
        return logits


class OverlappedLookahead(pia.Lookahead):
    def _decoding(self, call, rows, runner, *others):
        return super()._decoding(call, rows, Asynchronous(runner), *others)


class FailsError(Exception):
    pass


class FailsAt:
    """A processor that gives up at some length."""

    def __init__(self, length):
        self.length = length

    def __call__(self, input_ids, scores):
        if input_ids.shape[1] >= self.length:
            raise FailsError
        return scores


@pytest.mark.parametrize("budget", [6, "auto"])
def test_same_tokens_with_the_draft_cache(family, budget):
    """Each prompt twice: the second time most drafts are right."""
    overlapped, synchronous = (kind(budget=budget) for kind in (OverlappedLookahead, pia.Lookahead))
    num_accepted = num_rejected = 0
    for prompt in [*prompts(3, seed=61), *prompts(3, seed=61)]:
        plain = family.generate(prompt, **GREEDY)
        for lookahead in (overlapped, synchronous):
            assert torch.equal(family.generate(prompt, custom_generate=lookahead, **GREEDY), plain)
        stats = overlapped.last_stats
        assert stats.hidden_s > 0 and stats.launch_s > 0 and stats.hidden_s + stats.launch_s < stats.forward_s
        num_accepted += stats.num_accepted
        num_rejected += stats.num_drafted - stats.num_accepted
    if budget != "auto":
        assert num_accepted > 40 and num_rejected > 40
    learned, expected = (lookahead.cache.export_sequences() for lookahead in (overlapped, synchronous))
    assert all(map(lambda one, other: one.tolist() == other.tolist(), learned, expected))
    assert synchronous.last_stats.hidden_s == synchronous.last_stats.num_prepared == 0


def test_the_call_back_comes_between_launch_and_wait(llama, monkeypatch):
    events = []
    runner = SlabRunner(llama)
    launch = runner._call
    monkeypatch.setattr(
        runner, "_call", lambda *inputs, **options: events.append("launch") or launch(*inputs, **options)
    )
    monkeypatch.setattr(runner, "_wait", lambda: events.append("wait"))
    runner.prefill([torch.tensor([3, 4, 5])])
    logits = runner.forward([6], [DraftTree.chain([7, 8])], lambda: events.append("meanwhile"))
    assert logits.shape == (1, 3, VOCAB)
    assert events == ["launch", "wait", "launch", "meanwhile", "wait"]
    assert not runner.is_asynchronous  # on a CPU


def test_prepared_drafts_are_used(llama):
    lookahead = OverlappedLookahead(budget=4, sources=["cache"])  # recycled logits belong into the next draft
    total = []
    for prompt in [*prompts(4, seed=62), *prompts(4, seed=62)]:
        llama.generate(prompt, custom_generate=lookahead, max_new_tokens=80, do_sample=False, eos_token_id=None)
        total.append(lookahead.last_stats)
    stats = pia.Stats.total(total)
    assert 0 < stats.prepared_hits < stats.num_steps
    assert stats.prepared_hits <= stats.num_prepared <= 4 * stats.num_steps
    assert stats.as_dict()["host_s"] == stats.draft_s + stats.launch_s + stats.accept_s + stats.keep_s


@pytest.mark.parametrize("sources", [(), ("cache", "recycled")], ids=["alone", "mixed"])
def test_same_tokens_with_a_jacobi_window(llama, sources):
    config = pia.config.JacobiConfig(window_size=5, ngram_size=4)
    for prompt in prompts(4, seed=65):
        plain = llama.generate(prompt, **GREEDY)
        lookahead = OverlappedLookahead(jacobi=config, sources=sources, budget=24)
        assert torch.equal(llama.generate(prompt, custom_generate=lookahead, **GREEDY), plain)
        assert lookahead.last_stats.num_window > 0 and lookahead.last_stats.hidden_s > 0


@pytest.mark.parametrize("agreement", [0.0, 0.7, 1.0], ids=["never", "sometimes", "always"])
def test_a_source_that_cannot_wait(llama, agreement):
    for prompt in prompts(3, seed=63):
        plain = llama.generate(prompt, **GREEDY)
        lookahead = OverlappedLookahead(cache=ToySource(plain[0].tolist(), agreement), budget=12)
        assert torch.equal(llama.generate(prompt, custom_generate=lookahead, **GREEDY), plain)
        assert lookahead.cache.ended == [True]
        assert lookahead.last_stats.num_prepared == 0


@pytest.mark.parametrize("is_known", [True, False], ids=["toy", "cache"])
def test_ragged_batches(family, is_known):
    rows = prompts(5, seed=64)
    texts = [(prompt, family.generate(prompt, **GREEDY)) for prompt in rows]
    ids, mask = padded(rows)
    lookahead = OverlappedLookahead(**({"cache": truth_source(texts, 0.7)} if is_known else {}), budget=8)
    for _ in range(2):
        out = family.generate(ids, attention_mask=mask, custom_generate=lookahead, **GREEDY)
        for row, (prompt, text) in zip(out, texts, strict=True):
            assert trimmed(row[ids.shape[1] :]) == trimmed(text[0, prompt.shape[1] :])
    if not is_known:
        assert lookahead.last_stats.num_accepted > 20
        assert lookahead.cache.num_tokens == 2 * sum(text.shape[1] - prompt.shape[1] for prompt, text in texts)


def test_sampling_with_a_seed(llama):
    lookahead = OverlappedLookahead(budget=10)
    for seed, prompt in enumerate([*prompts(3, seed=65)] * 2):
        options = {"max_new_tokens": 30, "do_sample": True, "temperature": 0.5}
        torch.manual_seed(seed % 3)
        plain = llama.generate(prompt, **options)
        torch.manual_seed(seed % 3)
        assert torch.equal(llama.generate(prompt, custom_generate=lookahead, **options), plain)
    assert lookahead.last_stats.num_accepted > 0


def test_stops_inside_accepted_drafts(llama):
    for prompt in prompts(4, seed=66):
        full = llama.generate(prompt, eos_token_id=None, **GREEDY)
        stop = StopOn(full[0, prompt.shape[1] + 6 : prompt.shape[1] + 8].tolist())
        options = {**GREEDY, "eos_token_id": None, "stopping_criteria": StoppingCriteriaList([stop])}
        expected = llama.generate(prompt, **options)
        lookahead = OverlappedLookahead(budget=15)
        lookahead.cache.insert(full[0, prompt.shape[1] :].tolist())
        assert torch.equal(llama.generate(prompt, custom_generate=lookahead, **options), expected)
        assert lookahead.last_stats.finish_reason == "stop"


def test_stop_strings(demo):
    model, tokenizer = demo
    ids = tokenizer("Once there were three apples and", return_tensors="pt")["input_ids"]
    full = model.generate(ids, max_new_tokens=30, do_sample=False)
    words = tokenizer.decode(full[0, ids.shape[1] :]).split()
    options = {"max_new_tokens": 30, "do_sample": False, "stop_strings": [words[len(words) // 2]]}
    expected = model.generate(ids, tokenizer=tokenizer, **options)
    assert expected.shape[1] < full.shape[1]
    lookahead = OverlappedLookahead(budget=8)
    lookahead.cache.insert(full[0, ids.shape[1] :].tolist())
    steps = pia.decode(model, ids, lookahead=lookahead, tokenizer=tokenizer, **options)
    assert [token for step in steps for token in step.token_ids] == expected[0, ids.shape[1] :].tolist()


def test_a_consumer_that_leaves_teaches_nothing(llama):
    prompt = prompts(1, seed=67)[0]
    for num_steps in range(4):
        lookahead = OverlappedLookahead(budget=6)
        steps = pia.decode(llama, prompt, lookahead=lookahead, **GREEDY)
        for _ in range(num_steps):
            next(steps)
        steps.close()
        assert lookahead.cache.num_tokens == lookahead.cache.request_memory_usage == 0
    streamed = [token for step in pia.decode(llama, prompt, lookahead=lookahead, **GREEDY) for token in step.token_ids]
    assert streamed == llama.generate(prompt, **GREEDY)[0, prompt.shape[1] :].tolist()
    assert lookahead.cache.num_tokens == len(streamed)


def test_an_exception_teaches_nothing(llama):
    prompt = prompts(1, seed=68)[0]
    lookahead = OverlappedLookahead(budget=6)
    failing = LogitsProcessorList([FailsAt(prompt.shape[1] + 9)])
    with pytest.raises(FailsError):
        llama.generate(prompt, custom_generate=lookahead, logits_processor=failing, eos_token_id=None, **GREEDY)
    assert lookahead.cache.num_tokens == lookahead.cache.request_memory_usage == 0


def test_rows_that_ended_are_learned_though_others_are_broken_off(llama):
    """Their texts are learned during the forward that follows, or at the latest when the call ends."""
    rows = [prompt for prompt in prompts(12, seed=69) if prompt.shape[1] > 2]
    texts = [llama.generate(prompt, **GREEDY)[0, prompt.shape[1] :].tolist() for prompt in rows]
    ids, mask = padded(rows)
    lookahead = OverlappedLookahead(budget=4)
    steps = lookahead.start(prepare(llama, ids, attention_mask=mask, **GREEDY)).steps
    row = next(step.row for step in steps if step.finish_reason is not None)
    steps.close()
    learned, lengths = lookahead.cache.export_sequences()
    learned = [part.tolist() for part in np.split(learned, np.cumsum(lengths)[:-1])]
    assert texts[row] in learned and len(learned) < len(texts)
    assert all(text in texts for text in learned)
    assert lookahead.cache.request_memory_usage == 0


def test_ids_beyond_the_caches_vocabulary(llama):
    """The model has room for ids that the cache has not: such a text cannot be learned."""
    prompt = torch.tensor([[5, 6, 7]])
    plain = llama.generate(prompt, eos_token_id=None, **GREEDY)
    limit = max(8, int(plain[0].max()))
    lookahead = OverlappedLookahead(DraftCache(vocab_size=limit), budget=6)
    assert torch.equal(llama.generate(prompt, eos_token_id=None, custom_generate=lookahead, **GREEDY), plain)
    assert lookahead.cache.num_tokens == 0
