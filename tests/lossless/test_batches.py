"""Rows of a batch draft, accept and end on their own; each becomes what it would be alone."""

from __future__ import annotations

import threading
from typing import ClassVar

import numpy as np
import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList

import pia
from pia.errors import PredictionError, UnsupportedOptionError
from toys import VOCAB, ToySource, prompts, tiny_model

NUM_NEW = 20
GREEDY = {"max_new_tokens": NUM_NEW, "do_sample": False}


class TruthSource:
    """Drafts for several requests at once: each row is known by its prompt."""

    vocab_size = None

    def __init__(self, truths, agreement):
        self.sources = {tuple(truth[:length]): ToySource(truth, agreement, seed=n) for n, (truth, length) in truths}

    def begin(self, prompt_ids, **options):
        return self.sources[tuple(prompt_ids.tolist())].begin(prompt_ids, **options)


def truth_source(texts, agreement):
    """A source that knows what each prompt leads to: `texts` are pairs of (prompt, whole text)."""
    return TruthSource(((n, (text[0].tolist(), prompt.shape[1])) for n, (prompt, text) in enumerate(texts)), agreement)


def padded(rows, side="left"):
    """Prompts `[1, length]` as one batch, with its mask."""
    longest = max(row.shape[1] for row in rows)
    batch, mask = (
        torch.zeros((len(rows), longest), dtype=torch.long),
        torch.zeros((len(rows), longest), dtype=torch.long),
    )
    for n, row in enumerate(rows):
        place = slice(longest - row.shape[1], longest) if side == "left" else slice(0, row.shape[1])
        batch[n, place], mask[n, place] = row[0], 1
    return batch, mask


def trimmed(row, eos=2):
    """A row's new tokens up to its end."""
    row = row.tolist()
    return row[: row.index(eos) + 1] if eos in row else row


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("agreement", [0.0, 0.7, 1.0], ids=["never", "sometimes", "always"])
def test_ragged_rows_equal_each_alone(family, side, agreement):
    rows = prompts(5, seed=31, longest=30)
    alone = [family.generate(row, **GREEDY) for row in rows]
    batch, mask = padded(rows, side)
    lookahead = pia.Lookahead(cache=truth_source(zip(rows, alone, strict=True), agreement), budget=12)
    out = family.generate(batch, attention_mask=mask, custom_generate=lookahead, return_dict_in_generate=True, **GREEDY)
    assert out.stats.mode == "tree" and len(out.row_stats) == 5
    assert torch.equal(out.sequences[:, : batch.shape[1]], batch)
    for row, text, generated, stats in zip(rows, alone, out.sequences, out.row_stats, strict=True):
        assert trimmed(generated[batch.shape[1] :]) == trimmed(text[0, row.shape[1] :])
        assert stats.num_tokens == text.shape[1] - row.shape[1]
    if agreement == 1.0:
        assert out.stats.edl > 2.0
    if agreement == 0.0:
        assert out.stats.num_drafted > 0 and out.stats.num_accepted == 0
    assert out.stats.num_requests == 5
    assert out.stats.num_tokens == sum(stats.num_tokens for stats in out.row_stats)


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"eos_token_id": list(range(2, 20))},
        {"min_new_tokens": 6, "eos_token_id": list(range(2, 40))},
        {"encoder_no_repeat_ngram_size": 2},
        {"encoder_repetition_penalty": 1.5},
    ],
    ids=lambda options: next(iter(options)),
)
def test_equals_plain_generate_of_the_batch(family, options):
    """Rows of one length need no padding, so Transformers' own batch is the measure, processors included."""
    batch = torch.tensor(np.random.default_rng(3).integers(3, VOCAB, (4, 9)))
    expected = family.generate(batch, **GREEDY, **options)
    lookahead = pia.Lookahead(budget=8)
    for _ in range(2):  # the second time, from what the first has learned
        assert torch.equal(family.generate(batch, custom_generate=lookahead, **GREEDY, **options), expected)
    assert lookahead.last_stats.num_accepted > 10


def test_own_drafts_with_an_automatic_budget(family):
    rows = prompts(6, seed=37, longest=24)
    batch, mask = padded(rows)
    lookahead = pia.Lookahead(max_budget=16)
    alone = [family.generate(row, **GREEDY) for row in rows]
    for _ in range(2):
        out = family.generate(batch, attention_mask=mask, custom_generate=lookahead, **GREEDY)
        for row, text, generated in zip(rows, alone, out, strict=True):
            assert trimmed(generated[batch.shape[1] :]) == trimmed(text[0, row.shape[1] :])


def test_seeds_make_a_row_what_it_is_alone(family):
    rows, seeds = prompts(4, seed=41, longest=20), [5, 6, 7, 5]
    sampling = {"max_new_tokens": NUM_NEW, "do_sample": True, "temperature": 0.7, "top_k": 20, "eos_token_id": None}
    alone = []
    for row, seed in zip(rows, seeds, strict=True):
        torch.manual_seed(seed)
        alone.append(family.generate(row, **sampling))
    batch, mask = padded(rows)
    lookahead = pia.Lookahead(cache=truth_source(zip(rows, alone, strict=True), 0.8), budget=10)
    out = family.generate(
        batch, attention_mask=mask, seeds=seeds, custom_generate=lookahead, return_dict_in_generate=True, **sampling
    )
    for row, text, generated in zip(rows, alone, out.sequences, strict=True):
        assert generated[batch.shape[1] :].tolist() == text[0, row.shape[1] :].tolist()
    assert 0 < out.stats.num_accepted < out.stats.num_drafted


def test_sampled_sequences_of_one_prompt_differ_and_repeat():
    model, prompt = tiny_model("llama"), prompts(1, seed=43)[0]
    options = {"max_new_tokens": 12, "do_sample": True, "num_return_sequences": 4, "eos_token_id": None}
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(model.generate(prompt, custom_generate=pia.Lookahead(budget=6), **options))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert drawn[0].shape == (4, prompt.shape[1] + 12)
    assert len({tuple(row.tolist()) for row in drawn[0]}) == 4


def fed_shapes(model):
    """A list that grows with the shape `[rows, q]` of each forward."""
    shapes = []
    model.register_forward_pre_hook(lambda _, __, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True)
    return shapes


def test_the_prompt_of_several_sequences_is_fed_once():
    model, prompt = tiny_model("llama"), prompts(1, seed=44)[0]
    fed = fed_shapes(model)
    lookahead = pia.Lookahead(budget=0, self_check=False)
    model.generate(prompt, num_return_sequences=3, do_sample=True, max_new_tokens=3, custom_generate=lookahead)
    assert fed[0] == prompt.shape and fed[1] == (3, 1)


def test_rows_that_end_leave_the_batch():
    model, rows = tiny_model("qwen3"), prompts(6, seed=45, longest=20)
    batch, mask = padded(rows)
    options = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": list(range(2, 14)), "pad_token_id": 0}
    expected = model.generate(batch, attention_mask=mask, **options)
    fed = fed_shapes(model)
    lookahead = pia.Lookahead(budget=0, self_check=False)
    out = model.generate(batch, attention_mask=mask, custom_generate=lookahead, **options)
    assert torch.equal(out, expected)
    in_step = [num_rows for num_rows, q in fed if q == 1]
    assert in_step == sorted(in_step, reverse=True) and len(set(in_step)) > 2


class StopsAfter(StoppingCriteria):
    """Keeps count of its calls: a criterion that minds whose tokens it sees."""

    def __init__(self, calls):
        self.left = calls

    def __call__(self, input_ids, scores, **kwargs):
        self.left -= 1
        return torch.full((input_ids.shape[0],), self.left <= 0)


class BansLast(LogitsProcessor):
    """Bans the token it saw in the call before: a processor with a memory."""

    def __init__(self):
        self.last = None

    def __call__(self, input_ids, scores):
        if self.last is not None:
            scores[torch.arange(len(scores)), self.last] = -torch.inf
        self.last = input_ids[:, -1].clone()
        return scores


def test_processors_and_criteria_with_a_memory_have_one_for_each_row():
    model, rows = tiny_model("llama"), prompts(3, seed=46, longest=12)

    def generate(ids, **options):
        return model.generate(
            ids,
            logits_processor=LogitsProcessorList([BansLast()]),
            stopping_criteria=StoppingCriteriaList([StopsAfter(9)]),
            eos_token_id=None,
            **options,
            **GREEDY,
        )

    batch, mask = padded(rows)
    out = generate(batch, attention_mask=mask, custom_generate=pia.Lookahead(budget=8))
    assert out.shape[1] == batch.shape[1] + 9
    for row, generated in zip(rows, out, strict=True):
        assert generated[batch.shape[1] :].tolist() == generate(row)[0, row.shape[1] :].tolist()


def test_a_prefix_constraint_is_asked_for_its_row():
    model = tiny_model("llama")
    batch = torch.cat(prompts(1, seed=47, longest=9) * 3)

    def allowed(row, ids):
        return list(range(10 + 20 * row, 30 + 20 * row))

    expected = model.generate(batch, prefix_allowed_tokens_fn=allowed, **GREEDY)
    out = model.generate(batch, prefix_allowed_tokens_fn=allowed, custom_generate=pia.Lookahead(budget=6), **GREEDY)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_repetition_penalty_passes_over_the_padding(side):
    """Late in Transformers 5 it is told where each row's text begins, in a tensor with an entry for each row."""
    model, rows = tiny_model("llama"), prompts(4, seed=54, longest=16)
    options = {**GREEDY, "repetition_penalty": 1.3}
    on_the_left, its_mask = padded(rows, "left")
    expected = model.generate(on_the_left, attention_mask=its_mask, **options)
    batch, mask = padded(rows, side)
    out = model.generate(batch, attention_mask=mask, custom_generate=pia.Lookahead(budget=6), **options)
    for plain, generated in zip(expected, out, strict=True):
        assert trimmed(generated[batch.shape[1] :]) == trimmed(plain[batch.shape[1] :])


def test_processors_and_criteria_may_treat_each_row_in_its_own_way():
    model, batch = tiny_model("llama"), torch.cat(prompts(1, seed=55, longest=9) * 4)

    def bans(input_ids, scores):
        for row in range(len(scores)):
            scores[row, 10 + 20 * row :] = -torch.inf
        return scores

    def stops(input_ids, scores, **_):
        return torch.arange(len(input_ids)) < input_ids.shape[1] - batch.shape[1] - 3

    options = {**GREEDY, "logits_processor": [bans], "stopping_criteria": [stops], "pad_token_id": 0}
    expected = model.generate(batch, **options)
    out = model.generate(batch, custom_generate=pia.Lookahead(budget=6), **options)
    assert torch.equal(out, expected)
    assert len({len(trimmed(row[batch.shape[1] :], eos=0)) for row in out}) > 1


class StopsWhenTold(StoppingCriteria):
    """Stops every row once a flag is set, as another thread would set it."""

    is_cancelled = False

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((input_ids.shape[0],), self.is_cancelled)


def test_a_flag_that_is_set_meanwhile_ends_all_rows():
    model, criterion = tiny_model("llama"), StopsWhenTold()
    batch = torch.cat(prompts(3, seed=56, longest=2))

    def sets_the_flag(input_ids, scores):
        criterion.is_cancelled = input_ids.shape[1] >= batch.shape[1] + 5
        return scores

    options = {"logits_processor": [sets_the_flag], "stopping_criteria": [criterion], "eos_token_id": None}
    out = model.generate(batch, custom_generate=pia.Lookahead(budget=0), **GREEDY, **options)
    assert batch.shape[1] + 5 <= out.shape[1] < batch.shape[1] + NUM_NEW


class UsesModel(LogitsProcessor):
    """Holds a model, which is too large for a copy in each row."""

    seen: ClassVar[set[int]] = set()

    def __init__(self, model):
        self.model = model

    def __call__(self, input_ids, scores):
        UsesModel.seen.add(id(self.model))
        return scores


def test_a_model_that_a_processor_holds_is_not_copied():
    model, batch = tiny_model("llama"), torch.cat(prompts(1, seed=57, longest=9) * 3)
    UsesModel.seen.clear()
    model.generate(batch, logits_processor=[UsesModel(model)], custom_generate=pia.Lookahead(budget=0), **GREEDY)
    assert UsesModel.seen == {id(model)}


def test_scores_are_those_of_plain_decoding():
    model = tiny_model("llama")
    batch = torch.tensor(np.random.default_rng(5).integers(3, VOCAB, (3, 7)))
    options = {**GREEDY, "eos_token_id": None, "output_scores": True, "return_dict_in_generate": True}
    expected = model.generate(batch, **options)
    out = model.generate(batch, custom_generate=pia.Lookahead(budget=8), **options)
    assert len(out.scores) == NUM_NEW
    for ours, theirs in zip(out.scores, expected.scores, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_a_prediction_for_each_row():
    model, rows = tiny_model("llama"), prompts(3, seed=48, longest=12)
    batch, mask = padded(rows)
    options = {**GREEDY, "eos_token_id": None, "attention_mask": mask, "return_dict_in_generate": True}
    expected = model.generate(batch, **options).sequences
    told = [expected[0, batch.shape[1] :], None, expected[2, batch.shape[1] :].tolist()]
    out = model.generate(batch, predicted_output_ids=told, custom_generate=pia.Lookahead(budget=16), **options)
    assert torch.equal(out.sequences, expected)
    told_edl, untold_edl = out.row_stats[0].edl, out.row_stats[1].edl
    assert told_edl > untold_edl
    with pytest.raises(PredictionError, match="each of the 3 rows"):
        model.generate(batch, predicted_output_ids=told[:2], custom_generate=pia.Lookahead(), **options)


@pytest.mark.parametrize("seeds", [[1, 2], [1, 2, "x"], [1, 2, True], [1, 2, 2**64], 3])
def test_odd_seeds_are_refused(seeds):
    batch = torch.cat(prompts(1, seed=49, longest=9) * 3)
    with pytest.raises(UnsupportedOptionError, match="one for each of the 3 rows"):
        tiny_model("llama").generate(batch, seeds=seeds, do_sample=True, custom_generate=pia.Lookahead())


def test_seeds_are_refused_where_pia_is_off():
    model = pia.accelerate(tiny_model("llama"))
    batch = torch.cat(prompts(1, seed=49, longest=9) * 2)
    with pytest.raises(UnsupportedOptionError, match="use_lookahead is off"):
        model.generate(batch, seeds=[1, 2], do_sample=True, decoding_kwargs={"use_lookahead": False})


def test_what_cannot_be_taken_apart_is_left_to_transformers():
    """And with seeds, which Transformers has no place for, it is refused."""
    model = tiny_model("llama")
    batch = torch.cat(prompts(1, seed=50, longest=9) * 2)
    options = {**GREEDY, "guidance_scale": 1.5, "return_dict_in_generate": True}
    expected = model.generate(batch, **options)
    out = model.generate(batch, custom_generate=pia.Lookahead(budget=4), **options)
    assert torch.equal(out.sequences, expected.sequences)
    assert out.stats.mode == "plain" and "classifier-free guidance" in out.stats.reason
    with pytest.raises(UnsupportedOptionError, match="seeds cannot be honoured"):
        model.generate(batch, seeds=[1, 2], custom_generate=pia.Lookahead(budget=4), **options)


def test_a_broken_off_batch_leaves_no_trace():
    model, cache = tiny_model("llama"), pia.DraftCache()
    batch = torch.cat(prompts(1, seed=51, longest=9) * 2)

    def fail(input_ids, scores, **_):
        if input_ids.shape[1] > batch.shape[1] + 3:
            raise RuntimeError("enough")
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)

    with pytest.raises(RuntimeError, match="enough"):
        model.generate(batch, stopping_criteria=[fail], custom_generate=pia.Lookahead(cache), **GREEDY)
    assert cache.num_tokens == 0


def test_an_event_ends_a_batch():
    """What threads talk by cannot be copied, so the rows share it."""
    model, batch, cancelled = tiny_model("llama"), torch.cat(prompts(1, seed=52, longest=9) * 3), threading.Event()

    class Cancelled(StoppingCriteria):
        def __init__(self):
            self.event, self.calls = cancelled, 0

        def __call__(self, input_ids, scores, **kwargs):
            self.calls += 1
            if self.calls == 3:
                self.event.set()
            return torch.full((input_ids.shape[0],), self.event.is_set())

    lookahead = pia.Lookahead(budget=0)
    out = model.generate(
        batch,
        stopping_criteria=StoppingCriteriaList([Cancelled()]),
        eos_token_id=None,
        custom_generate=lookahead,
        **GREEDY,
    )
    assert lookahead.last_stats.mode == "tree"  # not left to Transformers
    assert out.shape[1] == batch.shape[1] + 3
