"""Models with a recurrent state: chains, snapshots and replays give the very tokens that plain decoding gives."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from zoo_recurrent import BY_NAME, CHAIN, ROWS, Row

import pia
from pia.drafting.tree import DraftTree
from pia.models.capability import Mode, declared_capability
from pia.models.recurrent import RecurrentRunner
from pia.models.self_check import proved_capability
from pia.models.snapshot import StateSnapshot
from pia.models.twin import verifying_twin
from toys import VOCAB, ToySource, prompts, tiny_model

KNOWN = [pytest.param(row, id=row.name) for row in ROWS if row.is_known]
CHAINS = [param for param in KNOWN if param.values[0].mode == "chain"]
SAMPLING = {"do_sample": True, "temperature": 0.8, "top_k": 20}
NUM_NEW = 20


def generate(model, prompt, seed=0, **options):
    torch.manual_seed(seed)
    return model.generate(prompt, **{"max_new_tokens": NUM_NEW, "do_sample": False, "eos_token_id": None, **options})


def texts(row: Row, num: int, seed: int = 5) -> list[torch.Tensor]:
    """Prompts of mixed length, the shortest and one longer than any window among them."""
    rng = np.random.default_rng(seed)
    extremes = [torch.tensor(rng.integers(3, VOCAB, (1, length))) for length in (row.shortest, 40)]
    return [*extremes, *(p for p in prompts(2 * num, seed=seed) if p.shape[1] >= row.shortest)][:num]


def check(row: Row, model, num: int, options) -> pia.decoding.stats.Stats:
    """Drafted decoding equals plain decoding over some prompts; the sums of all statistics."""
    parts = []
    for number, prompt in enumerate(texts(row, num)):
        expected = generate(model, prompt, seed=number, **options)
        source = ToySource(expected[0].tolist(), 0.7, width=1, seed=number)
        lookahead = pia.Lookahead(cache=source, budget=5)
        out = generate(model, prompt, seed=number, custom_generate=lookahead, return_dict_in_generate=True, **options)
        assert torch.equal(out.sequences, expected)
        assert out.stats.mode == row.mode and row.reason in out.stats.reason
        parts.append(out.stats)
    return pia.decoding.stats.Stats.total(parts)


def assert_drafted(total, row: Row) -> None:
    if row.mode == "plain":
        assert total.num_drafted == 0
    else:  # steps accepted whole drafts, parts of drafts, and nothing of a draft
        assert 0.2 < total.acceptance < 0.9
        assert total.edl > 1.5


@pytest.mark.parametrize("row", KNOWN)
def test_text_is_that_of_plain_decoding(row, caplog):
    model = row.build()
    with caplog.at_level(logging.WARNING, logger="pia"):
        assert_drafted(check(row, model, 3, {}), row)
        check(row, model, 2, SAMPLING)
    assert [record.getMessage() for record in caplog.records if row.reason in record.getMessage()]


@pytest.mark.slow
@pytest.mark.parametrize("row", KNOWN)
def test_text_of_fifty_prompts(row):
    model = row.build()
    assert_drafted(check(row, model, 50, {}), row)
    check(row, model, 20, SAMPLING)


ROUNDS = ((2, 4), (0, 3), (1, 1), (3, 5), (0, 0), (0, 2), (0, 2), (2, 2))
"""Nodes accepted and drafted in each step: parts, nothing, everything, no draft, and again after each."""


def verified_rows(model, text: list[int], start: int):
    """Steps over drafts that are right for a while; yields positions and the logits that were kept there."""
    runner = RecurrentRunner(model)
    yield [start - 1], runner.prefill([torch.tensor(text[:start])])
    for num_accepted, num_drafted in ROUNDS:
        right = text[start + 1 : start + 1 + num_accepted]
        wrong = [(token_id + 1) % VOCAB for token_id in text[: num_drafted - num_accepted]]
        logits = runner.forward([text[start]], [DraftTree.chain([*right, *wrong])])[0]
        yield range(start, start + num_accepted + 1), logits[: num_accepted + 1]
        runner.keep([range(num_accepted + 1)])
        start += num_accepted + 1


@pytest.mark.parametrize("row", [param for param in CHAINS if param.values[0].error is not None])
def test_rows_of_chains_are_those_of_one_token_at_a_time(row):
    model = row.build(torch.float64)
    text = np.random.default_rng(3).integers(3, VOCAB, 40).tolist()
    single = RecurrentRunner(model)
    plain = [single.prefill([torch.tensor(text[:14])])]
    for token_id in text[14:]:
        plain.append(single.forward([token_id], [DraftTree.empty()])[0])
        single.keep([[0]])
    expected = torch.cat(plain)
    scale = expected.std()
    num_rows = 0
    for positions, logits in verified_rows(model, text, 14):
        error = (logits - expected[[p - 13 for p in positions]]).abs().max() / scale
        assert error < 20 * row.error  # the worst of all logits; `row.error` is of the root mean square
        num_rows += len(logits)
    assert num_rows == 1 + sum(accepted + 1 for accepted, _ in ROUNDS)


def test_cache_is_that_of_plain_decoding():
    """What is still to be replayed is fed before the cache is handed over."""
    model = BY_NAME["bamba"].build()
    prompt = prompts(1, seed=8)[0]
    expected = generate(model, prompt, return_dict_in_generate=True)
    source = ToySource(expected.sequences[0].tolist(), 0.5, width=1)
    out = generate(model, prompt, custom_generate=pia.Lookahead(cache=source, budget=3), return_dict_in_generate=True)
    assert torch.equal(out.sequences, expected.sequences)
    for ours, theirs in zip(out.past_key_values.layers, expected.past_key_values.layers, strict=True):
        names = ("keys", "values") if hasattr(ours, "keys") else ("conv_states", "recurrent_states")
        for name in names:
            a, b = getattr(ours, name), getattr(theirs, name)
            a, b = (a[0], b[0]) if isinstance(a, dict) else (a, b)
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_chunked_prefill_and_padding():
    model = BY_NAME["bamba"].build()
    prompt = torch.cat(prompts(4, seed=2), dim=1)
    expected = generate(model, prompt, prefill_chunk_size=7)
    assert torch.equal(generate(model, prompt, prefill_chunk_size=7, custom_generate=pia.Lookahead(budget=3)), expected)
    padded = torch.cat([torch.zeros((1, 3), dtype=torch.long), prompt], dim=1)
    mask = (torch.arange(padded.shape[1]) >= 3).long()[None]
    lookahead = pia.Lookahead(budget=3)
    out = generate(model, padded, attention_mask=mask, custom_generate=lookahead)
    assert torch.equal(out, generate(model, padded, attention_mask=mask))
    assert lookahead.last_stats.mode == "plain" and "padded" in lookahead.last_stats.reason


@pytest.mark.parametrize("name", ["mamba", "jamba", "zamba"])
def test_self_check_sees_a_forgotten_state(name):
    """Were these families not known to forget their state, the self-check would find it."""
    model = BY_NAME[name].build()
    claimed = replace(declared_capability(model), mode=Mode.CHAIN, reason=CHAIN)
    assert claimed.is_recurrent
    proved = proved_capability(model, claimed)
    assert proved.mode == Mode.PLAIN and "self-check" in proved.reason


def test_self_check_sees_a_state_that_is_not_restored(monkeypatch):
    model = BY_NAME["qwen3_next"].build()
    declared = declared_capability(model)
    assert proved_capability(model, declared).mode == Mode.CHAIN
    monkeypatch.setattr(StateSnapshot, "restore", lambda self: None)
    assert proved_capability(model, declared).mode == Mode.PLAIN


def test_model_of_somebody_elses_is_not_trusted():
    class Mine(type(BY_NAME["mamba2"].build())):
        pass

    torch.manual_seed(0)
    capability = declared_capability(Mine(BY_NAME["mamba2"].build().config))
    assert capability.mode == Mode.PLAIN and "Transformers' own" in capability.reason


@pytest.mark.parametrize("name", ["zamba2", "nemotron_h"])
def test_clamped_steps_need_the_twin(name, monkeypatch):
    model = BY_NAME[name].build()
    declared = declared_capability(model)
    assert proved_capability(model, declared).mode == Mode.CHAIN
    monkeypatch.setattr("pia.models.recurrent.verifying_twin", lambda model: model)
    assert proved_capability(model, declared).mode == Mode.PLAIN
    model.forward = model.forward  # wrapped, as offloading does: a copy would call the original
    wrapped = declared_capability(model)
    assert wrapped.mode == Mode.PLAIN and "wrapped" in wrapped.reason


def test_twin_shares_weights_and_changes_nothing():
    model = BY_NAME["bamba"].build()
    for layer in model.model.layers:
        if hasattr(layer, "mamba"):
            layer.mamba.chunk_size = 64
    twin = verifying_twin(model)
    ours, theirs = dict(model.named_parameters()), dict(twin.named_parameters())
    assert ours.keys() == theirs.keys() and all(ours[name] is theirs[name] for name in ours)
    assert twin.model.layers[0].mamba.chunk_size == 16 and model.model.layers[0].mamba.chunk_size == 64
    assert twin.model.layers[1] is model.model.layers[1] and twin.lm_head is model.lm_head
    model.model.layers[0].mamba.in_proj = replaced = torch.nn.Linear(1, 1)
    assert twin.model.layers[0].mamba.in_proj is replaced
    llama = tiny_model("llama")
    assert verifying_twin(llama) is llama


@pytest.mark.parametrize("name", ["lfm2", "qwen3_next"])
def test_automatic_budget_changes_nothing(name):
    model = BY_NAME[name].build()
    num_accepted = 0
    lookahead = pia.Lookahead(max_budget=12)
    for number, prompt in enumerate(prompts(3, seed=6)):
        expected = generate(model, prompt, max_new_tokens=40)
        lookahead.cache = ToySource(expected[0].tolist(), 0.95, width=1, depth=10, seed=number)
        assert torch.equal(generate(model, prompt, max_new_tokens=40, custom_generate=lookahead), expected)
        num_accepted += lookahead.last_stats.num_accepted
        assert "measured cost" in lookahead.last_stats.reason
    assert num_accepted > 0
