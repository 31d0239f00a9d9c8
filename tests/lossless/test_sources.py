"""Recycled logits change no output, alone or with other sources, and are what drafts say they come from."""

import pytest
import torch
from transformers.generation.stopping_criteria import MaxLengthCriteria, StoppingCriteriaList

import pia
from pia.decoding.drafter import Drafter
from pia.decoding.request import Request, Stopping
from pia.drafting.budget import CostCurve
from pia.drafting.cache import DraftCache
from pia.models.engine import eager_engine
from toys import FAMILIES, prompts, tiny_model

SOURCES = [("cache",), ("recycled",), ("cache", "recycled")]


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def model(request):
    return tiny_model(request.param)


@pytest.mark.parametrize("sources", SOURCES, ids="+".join)
@pytest.mark.parametrize("options", [{"budget": 6}, {"budget": 24}, {"budget": 5, "shape": "chain"}], ids=str)
def test_greedy_is_the_same(model, sources, options):
    lookahead = pia.Lookahead(sources=sources, **options)
    accepted = set()
    for prompt in [*prompts(2, seed=3)] * 2:
        call = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": None}
        expected = model.generate(prompt, **call)
        assert torch.equal(model.generate(prompt, custom_generate=lookahead, **call), expected)
        accepted |= set(lookahead.last_stats.accepted_by_source)
    if sources == ("recycled",):
        assert accepted == {"recycled"}
    if "recycled" not in sources:
        assert "recycled" not in accepted


@pytest.mark.parametrize("sources", SOURCES, ids="+".join)
def test_sampling_is_the_same_by_seed(model, sources):
    lookahead = pia.Lookahead(sources=sources, budget=16)
    for seed, prompt in enumerate(prompts(3, seed=4)):
        call = {"max_new_tokens": 30, "do_sample": True, "temperature": 0.7, "top_k": 20, "eos_token_id": None}
        torch.manual_seed(seed)
        expected = model.generate(prompt, **call)
        torch.manual_seed(seed)
        assert torch.equal(model.generate(prompt, custom_generate=lookahead, **call), expected)


def test_rows_of_a_batch_recycle_for_themselves(model):
    texts = prompts(3, seed=5)
    longest = max(text.shape[1] for text in texts)
    batch = torch.cat([torch.nn.functional.pad(text, (longest - text.shape[1], 0)) for text in texts])
    mask = torch.stack([torch.arange(longest) >= longest - text.shape[1] for text in texts]).long()
    call = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None}
    lookahead = pia.Lookahead(sources="recycled", budget=8)
    together = model.generate(batch, attention_mask=mask, custom_generate=lookahead, **call)
    assert lookahead.last_stats.num_accepted > 0
    for text, row in zip(texts, together, strict=True):
        assert torch.equal(row[longest:], model.generate(text, **call)[0, text.shape[1] :])


def test_the_shortest_steps_recycle_nothing(monkeypatch):
    model = tiny_model("llama")
    prompt = prompts(1, seed=6)[0]
    for seconds, is_recycled in ((0.0001, False), (0.1, True)):
        curve = CostCurve([1, 64], [seconds, seconds])
        monkeypatch.setattr("pia.plan._engine_and_curve", lambda *_, curve=curve: (eager_engine("a test"), curve))
        lookahead = pia.Lookahead()
        for _ in range(2):
            model.generate(prompt, custom_generate=lookahead, max_new_tokens=40, do_sample=False, eos_token_id=None)
        assert ("recycled" in lookahead.last_stats.drafted_by_source) == is_recycled
        assert ("nothing is recycled" in lookahead.last_stats.reason) != is_recycled


def test_a_row_that_rests_asks_for_nothing():
    drafter = Drafter(DraftCache().begin([1, 2], sources=("cache", "recycled")), max_depth=8)
    request = Request(torch.tensor([[1, 2]]), Stopping(StoppingCriteriaList([MaxLengthCriteria(20)])))
    assert drafter.num_top > 0
    drafter.propose(request, 0)
    assert drafter.num_top == 0
    drafter.propose(request, 4)
    assert drafter.num_top > 0
