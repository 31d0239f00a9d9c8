"""Predicted outputs: what a caller may give, what comes of it, and how edits are survived."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pia
from edits import blocks, moved, replay_edl, scattered, source_file
from pia.drafting.budget import BudgetPolicy, Calibrator, CostCurve
from pia.errors import PredictionError
from pia.prediction import prediction_ids
from toys import VOCAB, prompts, tiny_model

GREEDY = {"do_sample": False, "max_new_tokens": 40, "eos_token_id": None}
QUESTION = [{"role": "user", "content": "Tom has 3 apples and buys 4 more. How many apples does he have in all?"}]


@pytest.fixture(scope="module")
def text(demo):
    return source_file(demo[1])


# --- How many tokens a forward yields, by counting forwards -----------------------------------------------------------


def test_a_file_that_comes_back_unchanged(text):
    assert replay_edl(text, text, budget=16) > 16
    assert replay_edl(text, text, budget=64) > 56


@pytest.mark.parametrize("seed", range(4))
def test_a_file_with_a_twentieth_of_its_tokens_edited(text, seed):
    output = scattered(text, 0.05, seed)
    assert replay_edl(output, text, budget=16) > 8
    assert replay_edl(output, text, budget=64) > 11


@pytest.mark.parametrize("edit", [blocks, moved])
def test_blocks_of_a_file_edited(text, edit):
    for seed in range(3):
        output = edit(text, 5, 20, seed)
        assert replay_edl(output, text, budget=16) > 9
        assert replay_edl(output, text, budget=64) > 15


def test_a_deletion_beyond_the_followers_reach(text):
    assert replay_edl(text[:500] + text[1200:], text, budget=16) > 15


def test_a_wrong_prediction_costs_next_to_nothing(text):
    rng = np.random.default_rng(1)
    wrong = rng.integers(0, 500, 2000).tolist()
    assert replay_edl(text, wrong, budget=16) > 0.95 * replay_edl(text, [], budget=16)


# --- In generation ----------------------------------------------------------------------------------------------------


def test_the_previous_answer(demo):
    model, tokenizer = demo
    options = {"do_sample": False, "max_new_tokens": 100}
    cold = pia.generate(model, tokenizer, QUESTION, lookahead=pia.Lookahead(budget=16), **options)
    for predicted in (cold.text, cold.token_ids, torch.tensor(cold.token_ids), np.array(cold.token_ids)):
        again = pia.generate(
            model, tokenizer, QUESTION, lookahead=pia.Lookahead(budget=16), predicted_output=predicted, **options
        )
        assert again.token_ids == cold.token_ids
        assert again.stats.edl > 2 * cold.stats.edl
        assert again.stats.accepted_by_source["predicted"] > 0.7 * len(cold.token_ids)


def test_streams_take_it_too(demo):
    model, tokenizer = demo
    cold = pia.generate(model, tokenizer, QUESTION, do_sample=False, max_new_tokens=100)
    options = {"lookahead": pia.Lookahead(budget=16), "predicted_output": cold.text, "do_sample": False}
    steps = list(pia.stream(model, tokenizer, QUESTION, max_new_tokens=100, **options))
    assert "".join(step.text for step in steps) == cold.text
    assert {piece.source for step in steps for piece in step.pieces} >= {"predicted"}


def test_a_prediction_may_have_the_whole_tree_at_once():
    """Under the automatic budget; and if nothing comes of it, less and less."""
    calibrator = Calibrator()
    calibrator.num_wanted = 2.0  # so little did earlier requests want
    policy = BudgetPolicy(CostCurve([1], [1.0]), max_nodes=64, calibrator=calibrator)
    assert policy.limit < 64
    policy.expect_much()
    assert policy.limit == 64
    for _ in range(12):
        policy.choose(np.empty(0, np.float32))
    assert policy.limit < 64


def test_earlier_requests_whose_drafts_did_not_pay_do_not_hold_a_prediction_back():
    calibrator = Calibrator()
    calibrator.payoff = -1.0
    sure = np.full(8, 0.99, np.float32)
    usual, told = (BudgetPolicy(CostCurve([1], [1.0]), max_nodes=8, calibrator=calibrator) for _ in range(2))
    told.expect_much()
    assert usual.choose(sure) == 0
    assert told.choose(sure) == 8


def test_the_automatic_budget_takes_long_drafts(llama):
    prompt = prompts(1, seed=91)[0]
    options = {**GREEDY, "max_new_tokens": 150}
    expected = llama.generate(prompt, **options)
    lookahead = pia.Lookahead()
    lookahead._new_policy = lambda *_: BudgetPolicy(CostCurve([1, 64], [1.0, 1.1]), max_nodes=64)
    out = llama.generate(
        prompt,
        custom_generate=lookahead,
        predicted_output_ids=expected[0, prompt.shape[1] :],
        return_dict_in_generate=True,
        **options,
    )
    assert torch.equal(out.sequences, expected)
    assert out.stats.edl > 30


@pytest.mark.parametrize("how", ["custom_generate", "accelerated"])
def test_the_plug_in_takes_token_ids(how):
    model = tiny_model("llama")
    prompt = prompts(1, seed=92)[0]
    expected = model.generate(prompt, **GREEDY)
    output = expected[:, prompt.shape[1] :]
    lookahead = pia.Lookahead(budget=16)
    if how == "accelerated":
        pia.accelerate(model, lookahead)
    options = {} if how == "accelerated" else {"custom_generate": lookahead}
    for predicted in (output, output[0], output[0].tolist(), output[0].numpy()):
        out = model.generate(prompt, predicted_output_ids=predicted, return_dict_in_generate=True, **options, **GREEDY)
        assert torch.equal(out.sequences, expected)
        assert out.stats.accepted_by_source["predicted"] > 30 and out.stats.edl > 10
    out = model.generate(prompt, predicted_output_ids=None, **options, **GREEDY)
    assert torch.equal(out, expected)


def test_what_runs_plainly_says_that_it_goes_unused():
    model = tiny_model("llama")
    prompt = prompts(1, seed=93)[0]
    rows = prompt.repeat(2, 1)
    options = {**GREEDY, "guidance_scale": 1.5}  # works on rows in step only
    expected, alone = model.generate(rows, **options), model.generate(prompt, **GREEDY)
    out = model.generate(
        rows, predicted_output_ids=rows, custom_generate=pia.Lookahead(), return_dict_in_generate=True, **options
    )
    assert torch.equal(out.sequences, expected)
    assert "batch of 2 rows" in out.stats.reason and "predicted output goes unused" in out.stats.reason
    out = model.generate(
        prompt,
        predicted_output_ids=[5],
        custom_generate=pia.Lookahead(),
        use_cache=False,
        return_dict_in_generate=True,
        **GREEDY,
    )
    assert out.stats.mode == "plain" and "use_cache=False" in out.stats.reason
    assert "predicted output goes unused" in out.stats.reason
    pia.accelerate(model)
    off = model.generate(rows[:1], predicted_output_ids=[5], decoding_kwargs={"use_lookahead": False}, **GREEDY)
    assert torch.equal(off, alone)


def test_no_budget_no_use(llama):
    prompt = prompts(1, seed=94)[0]
    expected = llama.generate(prompt, **GREEDY)
    lookahead = pia.Lookahead(budget=0)
    out = llama.generate(prompt, custom_generate=lookahead, predicted_output_ids=[5, 6], **GREEDY)
    assert torch.equal(out, expected) and lookahead.last_stats.num_drafted == 0


def test_ids_that_the_cache_does_not_know(llama, caplog):
    """Embeddings are often padded beyond the tokenizer: no reason to stop."""
    prompt = prompts(1, seed=95)[0].clamp(max=89)
    lookahead = pia.Lookahead(cache=pia.DraftCache(vocab_size=90), budget=8)
    out = llama.generate(prompt, custom_generate=lookahead, predicted_output_ids=[5, 95], **GREEDY)
    assert torch.equal(out, llama.generate(prompt, **GREEDY))
    assert "95" in caplog.text


# --- What may be given ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (3, "int"),
        (3.5, "float"),
        ({"text": 3}, "dict"),
        (b"text", "bytes"),
        ([1.5, 2.0], "whole numbers"),
        ([True, False], "whole numbers"),
        (["a", "b"], "whole numbers"),
        ([[1, 2], [3]], "flat"),
        ([[1, 2], [3, 4]], "flat"),
        (torch.ones(2, 3, dtype=torch.long), "flat"),
        (torch.ones(3), "whole numbers"),
        (torch.ones(3, dtype=torch.bfloat16), "whole numbers"),
        ([1, VOCAB], str(VOCAB)),
        ([1, -1], "-1"),
        (np.array([1, -1], np.int32), "-1"),
        ([2**40], str(2**40)),
        ("text", "tokenizer"),
    ],
)
def test_what_cannot_be_predicted(llama, given, part):
    prompt = prompts(1, seed=96)[0]
    with pytest.raises(PredictionError, match="predicted_output") as caught:
        pia.decode(llama, prompt, predicted_output=given, **GREEDY)
    assert part in str(caught.value)
    with pytest.raises(PredictionError, match="predicted_output_ids"):
        llama.generate(prompt, custom_generate=pia.Lookahead(), predicted_output_ids=given, **GREEDY)


def test_forms_of_the_same_prediction(demo):
    tokenizer = demo[1]
    text = "Tom has 7 apples."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    for given in (
        text,
        ids,
        tuple(ids),
        np.array(ids),
        np.array(ids, np.uint16),
        torch.tensor(ids),
        torch.tensor([ids]),
    ):
        got = prediction_ids(given, name="it", vocab_size=5000, tokenizer=tokenizer)
        assert got.tolist() == ids and got.dtype == np.int32
    for nothing in (None, "", [], torch.empty(0, dtype=torch.long), torch.empty(1, 0, dtype=torch.long), np.empty(0)):
        assert len(prediction_ids(nothing, name="it", vocab_size=5000, tokenizer=tokenizer)) == 0
