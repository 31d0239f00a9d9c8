"""Three layers: token steps, text steps, the whole result; they tell the same story."""

from __future__ import annotations

import pytest
import torch

import pia
from pia.decoding.stats import Stats, Step
from pia.text import Detokenizer, encode

QUESTION = [{"role": "user", "content": "Tom has 3 apples and buys 4 more. How many apples does he have?"}]
OPTIONS = {"max_new_tokens": 60, "do_sample": False}


def test_layers_agree(demo):
    model, tokenizer = demo
    ids = encode(tokenizer, QUESTION)
    expected = model.generate(ids, **OPTIONS)[0, ids.shape[1] :].tolist()
    lookahead = pia.Lookahead(budget=8)
    tokens = [t for step in pia.decode(model, ids, lookahead=lookahead, **OPTIONS) for t in step.token_ids]
    steps = list(pia.stream(model, tokenizer, QUESTION, lookahead=lookahead, **OPTIONS))
    result = pia.generate(model, tokenizer, QUESTION, lookahead=lookahead, **OPTIONS)
    assert tokens == expected == result.token_ids
    assert [piece.token_id for step in steps for piece in step.pieces] == expected
    text = tokenizer.decode(expected, skip_special_tokens=True)
    assert "".join(step.text for step in steps) == text == result.text
    assert result.prompt_ids == ids[0].tolist()
    assert result.finish_reason == steps[-1].step.finish_reason
    assert result.stats.accepted_by_source["shared"] > 0  # the third time it has seen the answer
    assert any(piece.is_drafted for step in steps for piece in step.pieces)
    assert all(step.pieces[-1].is_drafted is False for step in steps[:-1])  # the model's own token ends a step


def test_prompt_forms(demo):
    _, tokenizer = demo
    ids = tokenizer("Tom has")["input_ids"]
    for prompt in ("Tom has", ids, torch.tensor(ids), torch.tensor([ids])):
        assert encode(tokenizer, prompt).tolist() == [ids]


def test_whole_characters_only(demo):
    _, tokenizer = demo
    text = "naïve — 12 ÷ ½ = 6 😀 ok"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.add(token_id) for token_id in ids]
    assert "".join(pieces) + detokenizer.flush() == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)
    assert len([piece for piece in pieces if piece]) > 8


def test_incomplete_character_at_the_end(demo):
    _, tokenizer = demo
    ids = tokenizer("ok 😀", add_special_tokens=False)["input_ids"][:-1]
    detokenizer = Detokenizer(tokenizer)
    shown = "".join(detokenizer.add(token_id) for token_id in ids)
    assert shown + detokenizer.flush() == tokenizer.decode(ids)


def test_cache_of_another_tokenizer_is_refused(demo):
    model, tokenizer = demo
    lookahead = pia.Lookahead(pia.DraftCache(tokenizer_fingerprint="of-another"))
    with pytest.raises(pia.PiaError, match="another tokenizer"):
        pia.generate(model, tokenizer, QUESTION, lookahead=lookahead, max_new_tokens=3)


def test_warm_texts_are_drafted(demo):
    model, tokenizer = demo
    answer = pia.generate(model, tokenizer, QUESTION, lookahead=pia.Lookahead(budget=0), max_new_tokens=80)
    lookahead = pia.Lookahead(budget=16)
    assert lookahead.warm(tokenizer, [answer.text]) >= len(answer.token_ids) - 1
    again = pia.generate(model, tokenizer, QUESTION, lookahead=lookahead, max_new_tokens=80)
    assert again.token_ids == answer.token_ids
    assert again.stats.edl > 2 * answer.stats.edl


def test_streamer_has_no_place_here(demo):
    model, _ = demo
    with pytest.raises(pia.PiaError, match="streamer"):
        pia.decode(model, [5, 6], streamer=object())


def test_statistics_of_work_beside_a_device():
    stats = Stats()
    for is_prepared in (True, False, False):
        times = {
            "draft_s": 0.01,
            "forward_s": 0.1,
            "accept_s": 0.02,
            "keep_s": 0.03,
            "launch_s": 0.04,
            "hidden_s": 0.05,
        }
        stats.add(Step([6], [None], num_prepared=4, is_prepared=is_prepared, **times))
    assert (stats.num_prepared, stats.prepared_hits) == (12, 1)
    assert stats.host_s == pytest.approx(3 * (0.01 + 0.04 + 0.02 + 0.03))  # launch is a part of the forward, and hidden
    assert stats.seconds == pytest.approx(3 * 0.16) and stats.hidden_s == pytest.approx(0.15)  # is no time of its own
    assert Stats.total([stats, stats]).prepared_hits == 2


def test_statistics_are_sums():
    stats = Stats(mode="tree", reason="because")
    stats.add(Step([5], [None], forward_s=0.5, is_prefill=True))
    stats.add(
        Step([6, 7, 8], ["own", "shared", None], num_nodes=4, draft_s=0.01, forward_s=0.1, accept_s=0.02, keep_s=0.03)
    )
    stats.add(
        Step([9], [None], num_nodes=2, draft_s=0.01, forward_s=0.1, accept_s=0.0, keep_s=0.0, finish_reason="eos")
    )
    assert (stats.num_tokens, stats.num_steps, stats.num_drafted, stats.num_accepted) == (5, 2, 6, 2)
    assert stats.edl == 2.0 and stats.acceptance == pytest.approx(1 / 3)
    assert stats.host_share == pytest.approx(0.07 / 0.27)
    assert stats.kwargs == {"edls": [1, 3, 1], "dls": [1, 5, 3], "fts": [0.5, 0.1, 0.1], "qts": [0.01, 0.01]}
    assert dict(stats.accepted_by_depth) == {1: 1, 2: 1}
    assert dict(stats.accepted_by_source) == {"own": 1, "shared": 1}
    assert stats.finish_reason == "eos"
    total = Stats.total([stats, stats])
    assert total.num_tokens == 10 and total.edl == 2.0 and total.accepted_by_depth[2] == 2
    assert total.as_dict()["accepted_by_depth"] == {"1": 2, "2": 2}
    for word in ("EDL 2.00", "2 of 6", "tree", "because"):
        assert word in repr(stats)
