"""A caller's own cache: the text it holds is not fed again, and in the end it holds what was generated."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import transformers
from transformers.cache_utils import DynamicCache, StaticCache

import pia
from quick_check import OPTIONS, assert_drafts_used
from toys import VOCAB, ToySource, prompts, tiny_model

_WINDOWED = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    sliding_window=8,
    initializer_range=0.25,
)


def mistral():
    return transformers.MistralForCausalLM(transformers.MistralConfig(**_WINDOWED))


def gemma3():
    layers = ["sliding_attention", "full_attention"]
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**_WINDOWED, layer_types=layers))


def generate(model, text, cache, lookahead=None, **options):
    options = {"attention_mask": torch.ones_like(text), **OPTIONS, **options}  # else made by looking for padding
    out = model.generate(
        text, past_key_values=cache, custom_generate=lookahead, return_dict_in_generate=True, **options
    )
    assert out.past_key_values is cache
    return out


@torch.no_grad()
def fill(model, text, cache):
    model(input_ids=text, past_key_values=cache)


def assert_same_content(cache, expected):
    assert len(cache.layers) == len(expected.layers)
    for layer, other in zip(cache.layers, expected.layers, strict=True):
        assert type(layer) is type(other)
        torch.testing.assert_close(layer.keys, other.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(layer.values, other.values, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("first_is_plain", [False, True], ids=["ours", "plain"])
def test_several_turns(family, first_is_plain):
    """The second turn's text goes on from the first's, and so does the cache, whoever filled it."""
    caches = DynamicCache(), DynamicCache()
    text = prompts(1, seed=2)[0]
    for turn, question in enumerate(prompts(3, seed=4)):
        text = torch.cat([text, question], dim=1)
        held = caches[0].get_seq_length()
        plain = generate(family, text, caches[0])
        source = ToySource(plain.sequences[0].tolist(), 0.8, seed=turn)
        if first_is_plain and turn == 0:
            caches = caches[0], copy.deepcopy(caches[0])
        else:
            out = generate(family, text, caches[1], pia.Lookahead(cache=source, budget=8))
            assert torch.equal(out.sequences, plain.sequences)
            assert_drafts_used(out)
        assert_same_content(caches[1], caches[0])
        assert caches[1].get_seq_length() == plain.sequences.shape[1] - 1 > held
        text = plain.sequences


def test_what_is_cached_is_believed():
    """Else the cached text would have been fed again."""
    model = tiny_model("llama")
    first, second = torch.tensor([[5, 6, 7, 8, 9, 10]]), torch.tensor([[50, 60, 70, 8, 9, 10]])
    cache = DynamicCache()
    fill(model, second[:, :4], cache)
    expected = generate(model, first, copy.deepcopy(cache))
    out = generate(model, first, cache, pia.Lookahead(cache=ToySource(expected.sequences[0].tolist(), 0.8), budget=8))
    assert torch.equal(out.sequences, expected.sequences)
    assert_drafts_used(out)
    assert not torch.equal(out.sequences, model.generate(first, **OPTIONS))  # which feeds all of it


def test_only_the_new_tokens_are_passed():
    model = tiny_model("llama")
    text, cache = prompts(1, seed=6)[0], DynamicCache()
    fill(model, text, cache)
    new = torch.tensor([[11, 12, 13]])
    mask = torch.ones((1, text.shape[1] + 3), dtype=torch.long)
    expected = generate(model, new, copy.deepcopy(cache), attention_mask=mask)
    lookahead = pia.Lookahead(cache=ToySource(expected.sequences[0].tolist(), 0.8), budget=8)
    out = generate(model, new, cache, lookahead, attention_mask=mask)
    assert torch.equal(out.sequences, expected.sequences)
    assert_drafts_used(out)
    whole = model.generate(torch.cat([text, new], dim=1), **OPTIONS)
    assert torch.equal(out.sequences, whole[:, text.shape[1] :])


def test_an_early_end_and_a_broken_off_request():
    model, text = tiny_model("llama"), prompts(1, seed=3)[0]
    ahead = model.generate(text, **OPTIONS)[0].tolist()
    end = ahead[text.shape[1] + 9]
    for agreement in (0.5, 1.0):  # the end is drafted, or not
        cache, expected = DynamicCache(), DynamicCache()
        plain = generate(model, text, expected, eos_token_id=end)
        lookahead = pia.Lookahead(cache=ToySource(ahead, agreement), budget=8)
        assert torch.equal(generate(model, text, cache, lookahead, eos_token_id=end).sequences, plain.sequences)
        assert_same_content(cache, expected)
    cache = DynamicCache()
    steps = pia.decode(model, text, lookahead=pia.Lookahead(budget=4), past_key_values=cache, **OPTIONS)
    next(steps), next(steps)
    steps.close()
    assert text.shape[1] < cache.get_seq_length() < len(ahead)
    assert generate(model, torch.tensor([ahead]), cache, max_new_tokens=2).sequences.shape[1] == len(ahead) + 2


def test_models_with_windows_and_a_cache_of_full_layers():
    for make in (mistral, gemma3):
        torch.manual_seed(0)
        model = make().eval()
        model.generation_config.pad_token_id = 0
        text, caches = prompts(1, seed=2, longest=40)[0].repeat(1, 2), (DynamicCache(), DynamicCache())
        for turn in range(2):
            plain = generate(model, text, caches[0])
            source = ToySource(plain.sequences[0].tolist(), 0.9, width=1, seed=turn)
            out = generate(model, text, caches[1], pia.Lookahead(cache=source, budget=8))
            assert torch.equal(out.sequences, plain.sequences)
            assert out.stats.mode != "plain" and out.stats.num_accepted > 0
            text = torch.cat([plain.sequences, torch.tensor([[5, 6]])], dim=1)


def test_odd_caches_decode_plainly():
    model, text = tiny_model("llama"), prompts(1, seed=5)[0]
    torch.manual_seed(0)
    windowed = mistral().eval()
    cases = [
        (model, lambda: StaticCache(config=model.config, max_cache_len=64), "StaticCache"),
        (model, lambda: DynamicCache(config=model.config, offloading=True), "offloaded"),
        (windowed, lambda: DynamicCache(config=windowed.config), "DynamicSlidingWindowLayer"),
    ]
    for each, make, reason in cases:
        if reason == "offloaded" and not torch.cuda.is_available():
            continue  # it needs a stream to prefetch with
        expected = generate(each, text, make())
        out = generate(each, text, make(), pia.Lookahead(budget=8))
        assert torch.equal(out.sequences, expected.sequences)
        assert out.stats.mode == "plain" and reason in out.stats.reason


def test_uneven_layers_and_rows_decode_plainly():
    model, text = tiny_model("llama"), torch.tensor([[5, 6, 7, 8, 9]])
    rows, cache = text.repeat(2, 1), DynamicCache()
    lookahead = pia.Lookahead(budget=8)
    expected = generate(model, rows, DynamicCache())
    out = generate(model, rows, cache, lookahead)
    assert torch.equal(out.sequences, expected.sequences) and cache.get_seq_length() == rows.shape[1] + 19
    assert out.stats.mode == "plain" and "several rows" in out.stats.reason
    uneven = DynamicCache()
    fill(model, text[:, :3], uneven)
    uneven.layers[1].keys, uneven.layers[1].values = (
        uneven.layers[1].keys[:, :, :2],
        uneven.layers[1].values[:, :, :2],
    )
    with contextlib.suppress(RuntimeError, ValueError):  # plain decoding's own affair
        generate(model, text, uneven, lookahead)
    assert lookahead.last_stats.mode == "plain" and "one length" in lookahead.last_stats.reason
