"""Jacobi lookahead decoding loses nothing, and alone it is the published algorithm."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pia
from jacobi_reference import lookahead_decode
from pia.config import JacobiConfig
from pia.drafting.budget import CostCurve
from pia.drafting.jacobi_window import JacobiWindow
from pia.errors import UnsupportedOptionError
from toys import VOCAB, prompts, tiny_model

SMALL = JacobiConfig(window_size=4, ngram_size=4, max_ngrams=3)
OPTIONS = [{}, {"repetition_penalty": 1.3}, {"eos_token_id": [2, 5, 7, 11, 13, 17]}, {"no_repeat_ngram_size": 4}]
SOURCES = [(), ("cache",), ("cache", "recycled")]


def alone(config: JacobiConfig, **options) -> pia.Lookahead:
    return pia.Lookahead(jacobi=config, sources=(), budget=400, **options)


def greedy(model, prompt, num_new=40, **options):
    return model.generate(prompt, max_new_tokens=num_new, do_sample=False, **options)


def jacobi_tokens(stats) -> int:
    return stats.accepted_by_source["jacobi"]


@pytest.mark.parametrize("sources", SOURCES, ids="-".join)
def test_greedy_output_is_that_of_plain_decoding(family, sources):
    num_window = num_accepted = 0
    for number, prompt in enumerate(prompts(6, seed=41)):
        config = JacobiConfig(window_size=3 + number, ngram_size=2 + number % 4, pool_from_prompt=number % 2 == 1)
        options = OPTIONS[number % len(OPTIONS)]
        expected = greedy(family, prompt, **options)
        lookahead = pia.Lookahead(jacobi=config, sources=sources, budget=60)
        out = greedy(family, prompt, custom_generate=lookahead, return_dict_in_generate=True, **options)
        assert torch.equal(out.sequences, expected)
        num_window += out.stats.num_window
        num_accepted += out.stats.num_accepted
    assert num_window > 0 and num_accepted > 20


@pytest.mark.parametrize("sources", SOURCES, ids="-".join)
@pytest.mark.parametrize("setting", [{}, {"top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2}])
def test_sampling_stays_sampling(family, setting, sources):
    """The same seed gives plain decoding's text, another seed another; the reference can turn greedy (defect a)."""
    texts = set()
    for seed in range(2):
        prompt = prompts(1, seed=21)[0]
        texts_of_seed = []
        for lookahead in (None, pia.Lookahead(jacobi=SMALL, sources=sources, budget=30)):
            torch.manual_seed(seed)
            out = family.generate(prompt, max_new_tokens=20, do_sample=True, custom_generate=lookahead, **setting)
            texts_of_seed.append(tuple(out[0].tolist()))
        assert texts_of_seed[0] == texts_of_seed[1]
        texts.add(texts_of_seed[0])
    assert len(texts) > 1


@pytest.mark.parametrize("pool_from_prompt", [False, True])
@pytest.mark.parametrize("sizes", [(5, 7, 7), (7, 5, 7), (4, 3, None), (6, 2, 2)])
def test_alone_every_step_is_the_published_one(llama, sizes, pool_from_prompt):
    w, n, g = sizes
    config = JacobiConfig(window_size=w, ngram_size=n, max_ngrams=g, pool_from_prompt=pool_from_prompt)

    @torch.no_grad()
    def likeliest(texts: list[list[int]]) -> list[int]:
        """One padded forward without a cache, mask or position of ours."""
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(text) for text in texts], batch_first=True)
        logits = llama(ids).logits
        return [int(logits[row, len(text) - 1].argmax()) for row, text in enumerate(texts)]

    prompt = prompts(1, seed=2, longest=20)[0]
    text = prompt[0].tolist()
    out = greedy(llama, prompt, 101, eos_token_id=None, custom_generate=alone(config), return_dict_in_generate=True)
    steps = lookahead_decode(
        likeliest,
        [*text, *likeliest([text])],
        JacobiWindow(config, np.array(text, np.int32)).levels[0],
        num_prompt=len(text),
        window_size=w,
        ngram_size=n,
        max_ngrams=g,
        pool_from_prompt=pool_from_prompt,
        num_new=100,
    )
    assert out.stats.edls == [1, *map(len, steps)]
    assert out.sequences[0].tolist()[len(text) + 1 :] == [token for step in steps for token in step]
    assert max(out.stats.edls) > 1


def test_a_full_match_is_accepted_in_full(llama):
    """N - 1 drafts and the model's own token; the reference accepts one draft fewer (defect b)."""
    for prompt in prompts(4, seed=5):
        out = greedy(llama, prompt, 120, eos_token_id=None, custom_generate=alone(SMALL), return_dict_in_generate=True)
        if max(out.stats.edls) == SMALL.ngram_size:
            return
    pytest.fail("no guess came true in full")


class Collector:
    def __init__(self):
        self.pieces = []

    def put(self, value):
        self.pieces.append(value.flatten().tolist())

    def end(self):
        self.pieces.append(None)


def test_the_streamer_gets_every_token(llama):
    """The reference hands it the first token of a step only (defect d)."""
    prompt, streamer = prompts(1, seed=5)[0], Collector()
    lookahead = alone(SMALL)
    out = greedy(llama, prompt, 60, custom_generate=lookahead, streamer=streamer)
    assert lookahead.last_stats.num_accepted > 0
    assert streamer.pieces == [prompt[0].tolist(), *([token] for token in out[0, prompt.shape[1] :].tolist()), None]


def test_rows_of_a_batch_have_windows_of_their_own(llama):
    rows = prompts(3, seed=8)
    length = max(row.shape[1] for row in rows)
    ids = torch.cat([torch.nn.functional.pad(row, (length - row.shape[1], 0)) for row in rows])
    mask = torch.tensor([[0] * (length - row.shape[1]) + [1] * row.shape[1] for row in rows])
    plain = greedy(llama, ids, attention_mask=mask)
    lookahead = alone(SMALL)
    assert torch.equal(greedy(llama, ids, attention_mask=mask, custom_generate=lookahead), plain)
    assert lookahead.last_stats.num_window > 0 and jacobi_tokens(lookahead.last_stats) > 0


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_no_window_node_passes_the_end_of_the_context(name):
    """GPT-2 has embeddings for 512 positions and no more."""
    model = tiny_model(name)
    prompt = torch.randint(3, VOCAB, (1, 490), generator=torch.Generator().manual_seed(1))
    expected = greedy(model, prompt, 22, eos_token_id=None)
    out = greedy(
        model, prompt, 22, eos_token_id=None, custom_generate=alone(JacobiConfig()), return_dict_in_generate=True
    )
    assert torch.equal(out.sequences, expected) and out.stats.num_window > 0


@pytest.mark.parametrize(
    ("curve", "rides"), [(CostCurve([1, 256], [1, 1]), True), (CostCurve([1, 2, 64], [1, 3, 60]), False)]
)
def test_the_measured_cost_decides(llama, monkeypatch, curve, rides):
    monkeypatch.setattr("pia.plan.engine_curve_of", lambda model, engine: curve)
    prompt = prompts(1, seed=5)[0]
    lookahead = pia.Lookahead(jacobi=SMALL, sources=())
    assert torch.equal(greedy(llama, prompt, custom_generate=lookahead), greedy(llama, prompt))
    assert (lookahead.last_stats.num_window > 0) == rides
    assert "Jacobi window of 4 columns of 4-grams, as far as it pays" in lookahead.last_stats.reason


def test_a_draft_cache_that_cannot_know_the_prompt_leaves_drafting_to_the_pool(llama):
    prompt = prompts(1, seed=5)[0]
    lookahead = pia.Lookahead(jacobi=SMALL, budget=30)
    lookahead.cache.bind(3, "another")
    assert torch.equal(greedy(llama, prompt, custom_generate=lookahead), greedy(llama, prompt))
    assert jacobi_tokens(lookahead.last_stats) == lookahead.last_stats.num_accepted > 0


def test_true_takes_the_published_sizes(llama):
    prompt = prompts(1, seed=5)[0]
    lookahead = pia.Lookahead(jacobi=True, budget=16)
    greedy(llama, prompt, custom_generate=lookahead)
    assert "Jacobi window of 15 columns of 5-grams, at every step" in lookahead.last_stats.reason
    assert max(lookahead.last_stats.dls) > 15 * 4


@pytest.mark.parametrize("options", [{"budget": 0}, {"exact": True, "budget": 4}])
def test_without_trees_there_is_no_window(llama, options):
    prompt = prompts(1, seed=5)[0]
    lookahead = pia.Lookahead(jacobi=True, **options)
    greedy(llama, prompt, custom_generate=lookahead)
    assert lookahead.last_stats.num_window == 0 and "no Jacobi window" in lookahead.last_stats.reason


@pytest.mark.parametrize("options", [{"jacobi": 7}, {"sources": ()}, {"jacobi": False, "sources": ()}])
def test_options_are_checked(options):
    with pytest.raises(UnsupportedOptionError, match=r"jacobi|sources"):
        pia.Lookahead(**options)


@pytest.mark.parametrize("sources", [(), ("cache", "recycled")], ids=["alone", "mixed"])
def test_broken_logits_break_no_window(sources):
    """Plain decoding goes on from rows that are not numbers, so a window must."""
    model = tiny_model("llama")
    prompt = prompts(1, seed=8)[0]
    call = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}

    def spoil(module, args, output):
        output.logits[:, -1] = float("nan")

    hook = model.register_forward_hook(spoil)
    try:
        expected = model.generate(prompt, **call)
        window = pia.JacobiConfig(window_size=3, ngram_size=3)
        lookahead = pia.Lookahead(jacobi=window, sources=sources, budget=4, self_check=False)
        model.generate(prompt, custom_generate=lookahead, **call)
        assert lookahead.last_stats.num_window > 0
    finally:
        hook.remove()
    assert expected.shape[1] == prompt.shape[1] + 20
