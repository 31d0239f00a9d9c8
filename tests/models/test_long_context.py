"""Long texts at small sizes: pieces of prompts, grouped attention, and a slab that grows without a second copy."""

from __future__ import annotations

import threading
import weakref

import pytest
import torch
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from zoo import build, is_known

import pia
from pia.drafting.tree import DraftTree
from pia.models import attention_gqa, kv, prefill
from pia.models.attention_gqa import GroupedAttention
from pia.models.capability import declared_capability
from pia.models.kv import SlabCache
from pia.models.prefill import default_chunk_size
from pia.models.runner import SlabRunner
from quick_check import OPTIONS, assert_drafts_used
from toys import VOCAB, ToySource, tiny_model

_KINDS = ["llama", "gpt2", "mistral", "gemma3_text", "bloom", "gpt_neo", "llama4_text", "deepseek_v3", "opt", "mpt"]
"""Rotary, learned, windowed, mixed, ALiBi, buffered, chunked, latent and position-scaled: one family of each kind."""


@pytest.fixture
def small_pieces(monkeypatch):
    """Sizes at which a text of 60 tokens is a long one."""
    monkeypatch.setattr(prefill, "_WHOLE", 16)
    monkeypatch.setattr(prefill, "_MAX_MASK", 400)
    monkeypatch.setattr(prefill, "_MIN_CHUNK", 3)


def fed(model, texts, size=None, *, can_branch=True):
    """Logits after prompts, and what the slab holds of each."""
    runner = SlabRunner(model, can_branch=can_branch, prefill_chunk_size=size, num_rows=len(texts))
    logits = runner.prefill(texts)
    held = [
        states[:, row, ..., :length, :]
        for _, states in runner.cache.states()
        for row, length in enumerate(runner.cache.lengths)
    ]
    return logits, held


def random_text(length, seed=0):
    return torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", _KINDS)
def test_pieces_of_a_prompt_are_the_prompt(name):
    if not is_known(name):
        pytest.skip("unknown to this release")
    model = build(name)
    capability = declared_capability(model)
    assert capability.can_verify_trees
    texts = [random_text(61)]
    if capability.can_batch:
        texts = [random_text(57, seed=1), *texts]
    whole, held = fed(model, texts, 61)
    for size in (7, 30, 60):
        logits, pieces = fed(model, texts, size)
        torch.testing.assert_close(logits, whole, atol=1e-3, rtol=1e-3)
        for piece, expected in zip(pieces, held, strict=True):
            torch.testing.assert_close(piece, expected, atol=1e-3, rtol=1e-3)


def test_models_without_masks_of_ours_take_pieces_too():
    model = tiny_model("llama")
    text = random_text(40)
    whole, _ = fed(model, [text], 40, can_branch=False)
    torch.testing.assert_close(fed(model, [text], 9, can_branch=False)[0], whole, atol=1e-4, rtol=1e-4)


def test_long_prompts_are_fed_in_pieces(small_pieces, family):
    """Nobody asks for it, and the text stays what plain decoding makes of it."""
    text = random_text(60)[None]
    expected = family.generate(text, **OPTIONS)
    lengths = []
    handle = family.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        source = ToySource(expected[0].tolist(), 0.7)
        lookahead = pia.Lookahead(cache=source, budget=8, self_check=False)
        out = family.generate(text, custom_generate=lookahead, return_dict_in_generate=True, **OPTIONS)
    finally:
        handle.remove()
    assert torch.equal(out.sequences, expected)
    assert_drafts_used(out)
    assert lengths[:10] == [6] * 10 and max(lengths) <= 9  # 400 / 60, in threes; then trees


def test_a_callers_size_is_heeded(small_pieces):
    lengths = []
    model = tiny_model("llama")
    model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    lookahead = pia.Lookahead(budget=0, self_check=False)
    model.generate(random_text(60)[None], custom_generate=lookahead, prefill_chunk_size=25, **OPTIONS)
    assert lengths[:3] == [25, 25, 10]


def test_sizes_of_pieces():
    llama = tiny_model("llama")
    assert default_chunk_size(llama, 4096) == 4096
    sizes = {length: default_chunk_size(llama, length) for length in (4097, 16384, 32768, 131072, 10**7)}
    assert list(sizes.values()) == [2048, 2048, 1024, 256, 128]
    eager = tiny_model("llama", _attn_implementation="eager")
    assert default_chunk_size(eager, 32768) == 1024 // eager.config.num_attention_heads


@pytest.mark.parametrize("name", ["llama (dynamic rope)", "phi3 (longrope)", "minicpm3 (longrope)"])
def test_positions_that_depend_on_the_text_are_fed_whole(small_pieces, name):
    """Their first pieces would be rotated as those of a short text."""
    model = build(name)
    assert default_chunk_size(model, 61) == 61
    text = random_text(61)
    whole, cut = fed(model, [text])[0], fed(model, [text], 9)[0]
    assert not torch.allclose(whole, cut, atol=1e-2)


class Spy:
    """Stands in for PyTorch's attention and notes how it is called."""

    def __init__(self, monkeypatch):
        self.calls = []
        self.original = torch.nn.functional.scaled_dot_product_attention
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", self)

    def __call__(self, query, key, *args, **kwargs):
        self.calls.append((tuple(query.shape), tuple(key.shape), kwargs.get("enable_gqa", False)))
        return self.original(query, key, *args, **kwargs)


def test_keys_are_not_repeated(monkeypatch):
    """4 heads over 2: a step's queries are packed, a large piece's go to PyTorch as they are; never 4 heads of keys."""
    model, spy = tiny_model("llama"), Spy(monkeypatch)
    runner = SlabRunner(model, prefill_chunk_size=200)
    runner.prefill([random_text(400)])
    assert spy.calls[-1] == ((1, 4, 200, 8), (1, 2, 400, 8), True)
    runner.forward([5], [DraftTree.chain([6, 7])])
    assert spy.calls[-1] == ((1, 2, 6, 8), (1, 2, 403, 8), False)
    runner.keep([[0]])
    runner.forward([5], [DraftTree.empty()])
    assert spy.calls[-1] == ((1, 2, 2, 8), (1, 2, 402, 8), False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("q", [1, 3, 100])
@pytest.mark.parametrize("kind", ["none", "additive", "boolean", "by head"])
def test_grouped_attention_is_the_stock_one(kind, q, dtype):
    model = tiny_model("llama")
    module = model.model.layers[0].self_attn
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn((2, heads, size, 8), generator=generator, dtype=dtype)
        for heads, size in ((4, q), (2, 130), (2, 130))
    )
    seen = torch.rand((2, 4 if kind == "by head" else 1, q, 130), generator=generator) < 0.5
    seen[..., 0] = True
    mask = None if kind == "none" else seen if kind == "boolean" else torch.zeros(seen.shape, dtype=dtype)
    mask = mask if mask is None or kind == "boolean" else mask.masked_fill(~seen, torch.finfo(dtype).min)
    expected, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, scaling=0.3)
    with GroupedAttention(model).used():
        assert module.config._attn_implementation != "sdpa" and model.config._attn_implementation == "sdpa"
        for _ in range(2):  # the second takes the mask that was made for the first
            got, _ = attention_gqa.grouped_attention(module, query, key, value, mask, scaling=0.3)
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert module.config is model.config


def test_what_only_the_stock_function_knows_is_left_to_it():
    model = tiny_model("llama")
    module = model.model.layers[0].self_attn
    query, key = torch.randn(1, 4, 1, 8), torch.randn(1, 2, 9, 8)
    called = (module, query, key, key, None)
    with GroupedAttention(model).used():
        try:
            expected = ALL_ATTENTION_FUNCTIONS["sdpa"](*called, softcap=30.0)[0]
        except ValueError:
            with pytest.raises(ValueError, match="softcap"):
                attention_gqa.grouped_attention(*called, softcap=30.0)
        else:  # older releases leave it out without a word
            assert torch.equal(attention_gqa.grouped_attention(*called, softcap=30.0)[0], expected)


def test_the_models_configuration_is_put_back(monkeypatch):
    """After an error, and when the last of several forwards ends; other threads have the stock function meanwhile."""
    model, spy = tiny_model("llama"), Spy(monkeypatch)
    modules = [layer.self_attn for layer in model.model.layers]
    first, second = GroupedAttention(model), GroupedAttention(model)
    ids = torch.randint(3, VOCAB, (1, 5))
    with torch.no_grad():
        expected = model(ids).logits
        with first.used():
            late = GroupedAttention(model)  # made while another is at work
            thread = threading.Thread(target=torch.no_grad()(lambda: results.append(model(ids).logits)))
            results: list[torch.Tensor] = []
            spy.calls.clear()
            thread.start()
            thread.join()
            assert torch.equal(results[0], expected)
            with second.used():
                pass
            with late.used(), pytest.raises(IndexError):
                model(torch.tensor([[VOCAB + 1]]))
            assert all(module.config._attn_implementation == attention_gqa._NAME for module in modules)
    assert all(module.config is model.config for module in modules) and not attention_gqa._users


def test_models_that_share_nothing_or_attend_otherwise_are_left_alone():
    assert not GroupedAttention(tiny_model("gpt2"))._places
    assert not GroupedAttention(tiny_model("llama", _attn_implementation="eager"))._places
    config = transformers.LlamaConfig(**{**tiny_model("llama").config.to_dict(), "num_key_value_heads": 4})
    assert not GroupedAttention(transformers.LlamaForCausalLM(config))._places


def states(start, size, layers_value):
    """Recognisable states `[1, 2, size, 4]`."""
    positions = torch.arange(start, start + size, dtype=torch.float32) + layers_value
    return positions[None, None, :, None].expand(1, 2, size, 4)


def test_growth_never_holds_two_copies_of_everything(monkeypatch):
    alive: list[weakref.ref] = []
    most: list[int] = []
    original = kv._new

    def new(like, shape, is_reused):
        tensor = original(like, shape, is_reused)
        alive.append(weakref.ref(tensor))
        most.append(sum(ref().numel() for ref in alive if ref() is not None))
        return tensor

    monkeypatch.setattr(kv, "_new", new)
    monkeypatch.setattr(kv, "_BLOCK_BYTES", 2 * 3000 * 2 * 4 * 4)  # two layers of what is reserved first
    cache = SlabCache(6)
    cache.reserve(1900)
    for start, size in ((0, 1900), (1900, 3000)):
        for layer in range(6):
            keys, values = cache.update(states(start, size, layer), -states(start, size, layer), layer)
            assert torch.equal(keys[0, 0, :, 0], torch.arange(start + size) + float(layer))
            assert torch.equal(values, -keys)
    assert len(cache._slab.blocks) == 6
    final = sum(block.data.numel() for block in cache._slab.blocks)
    assert max(most) <= final + max(block.data.numel() for block in cache._slab.blocks)


def test_rooms_of_rows_that_left_are_given_up():
    cache = SlabCache(1, num_rows=4)
    rows = torch.cat([states(0, 20, 100 * row) for row in range(4)])
    with cache.filling(slice(0, 4)):
        cache.update(rows, -rows, 0)
    cache.set_lengths([20] * 4)
    before = cache.memory_usage
    cache.retire(1)
    assert cache.memory_usage == before
    cache.retire(0)
    assert cache.memory_usage == before // 2
    assert [int(cache.layers[0].keys[row, 0, 0, 0]) for row in range(2)] == [200, 300]
    cache.begin_step()
    keys, _ = cache.update(rows[:2, :, :1], rows[:2, :, :1], 0)
    assert keys.shape == (2, 2, 21, 4)


@pytest.mark.slow
def test_32k_tokens():
    """A real one: pieces, growth, trees behind it; greedy text as plain decoding's."""
    config = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    config |= dict(num_key_value_heads=2, max_position_embeddings=40000, initializer_range=0.25)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).eval()
    text = random_text(32768)[None]
    options = dict(max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)
    expected = model.generate(text, **options)
    lookahead = pia.Lookahead(cache=ToySource(expected[0].tolist(), 0.8), budget=8)
    out = model.generate(text, custom_generate=lookahead, return_dict_in_generate=True, **options)
    assert torch.equal(out.sequences, expected)
    assert out.stats.num_accepted > 0
