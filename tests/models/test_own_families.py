"""Baichuan-13B and GLM through our own modeling files: the original's logits, and everything a family has to pass."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

import pia
from pia.drafting.shape import ancestors
from pia.drafting.tree import DraftTree
from pia.errors import PromptError
from pia.models.layout import layout
from pia.models.modeling.baichuan13b import Baichuan13BConfig, Baichuan13BForCausalLM, alibi_bias
from pia.models.modeling.glm10b import Glm10BConfig, Glm10BForCausalLM
from pia.models.runner import SlabRunner
from toys import VOCAB, ToySource

pia.register_families()

SOP, MASKS, EOP = 96, [95, 94], 2
FIRST_SPECIAL = 94
NUM_NEW = 16
_SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=512,
    initializer_range=0.25,
    bos_token_id=1,
    eos_token_id=EOP,
    pad_token_id=0,
    tie_word_embeddings=False,
)


def baichuan(**changes) -> Baichuan13BForCausalLM:
    torch.manual_seed(0)
    return Baichuan13BForCausalLM(Baichuan13BConfig(**{**_SIZES, **changes})).eval()


def glm(**changes) -> Glm10BForCausalLM:
    torch.manual_seed(0)
    sizes = {name: size for name, size in _SIZES.items() if name != "max_position_embeddings"}
    special = dict(sop_token_id=SOP, mask_token_ids=MASKS, max_sequence_length=128, initializer_range=0.6)
    return Glm10BForCausalLM(Glm10BConfig(**{**sizes, **special, **changes})).eval()


MAKERS = {"baichuan": baichuan, "glm": glm}


@pytest.fixture(scope="module", params=sorted(MAKERS))
def model(request):
    return MAKERS[request.param]()


def prompt_of(model, rng, longest=24) -> torch.Tensor:
    """A random prompt `[1, length]`; GLM's holds a mask token somewhere, and the piece's beginning at its end."""
    ids = rng.integers(3, FIRST_SPECIAL, rng.integers(2, longest))
    if isinstance(model, Glm10BForCausalLM):
        ids[rng.integers(len(ids))] = rng.choice(MASKS)
        ids = np.append(ids, SOP)
    return torch.tensor(ids[None])


def prompts(model, num, seed=0):
    rng = np.random.default_rng(seed)
    return [prompt_of(model, rng) for _ in range(num)]


def generate(model, prompt, **options):
    return model.generate(prompt, max_new_tokens=NUM_NEW, do_sample=False, **options)


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0]


# ---- lossless ----


@pytest.mark.parametrize("shape", ["tree", "branches", "chain"])
def test_greedy_drafts_change_nothing(model, shape):
    num_drafted = num_accepted = 0
    for number, prompt in enumerate(prompts(model, 17)):
        options = [{}, {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}][number % 3]
        expected = generate(model, prompt, **options)
        source = ToySource(expected[0].tolist(), [0.0, 0.6, 1.0][number % 3], seed=number)
        lookahead = pia.Lookahead(cache=source, budget=12, shape=shape)
        out = generate(model, prompt, custom_generate=lookahead, return_dict_in_generate=True, **options)
        assert torch.equal(out.sequences, expected)
        assert out.stats.mode == "tree"
        num_drafted += out.stats.num_drafted
        num_accepted += out.stats.num_accepted
    assert num_accepted > 20
    assert num_drafted - num_accepted > 20


def test_texts_are_lively(model):
    """The equalities prove little if the models repeat one token."""
    seen = {token for prompt in prompts(model, 12) for token in generate(model, prompt)[0, prompt.shape[1] :].tolist()}
    assert len(seen) > 25


@pytest.mark.parametrize("setting", [{}, {"temperature": 0.7, "top_k": 10}, {"top_p": 0.8}], ids=str)
def test_same_seed_same_text(model, setting):
    def sample(seed, prompt, **options):
        torch.manual_seed(seed)
        return model.generate(prompt, max_new_tokens=NUM_NEW, do_sample=True, **setting, **options)

    num_accepted = 0
    for seed, prompt in enumerate(prompts(model, 4, seed=5)):
        stock = sample(seed, prompt)
        lookahead = pia.Lookahead(cache=ToySource(stock[0].tolist(), 0.7, seed=seed), budget=12)
        assert torch.equal(sample(seed, prompt, custom_generate=lookahead), stock)
        num_accepted += lookahead.last_stats.num_accepted
    assert num_accepted > 5


def test_automatic_budget(model):
    """Measuring what a forward costs must not stumble over a family's form of prompt."""
    lookahead = pia.Lookahead(max_budget=8)
    prompt = prompts(model, 1, seed=4)[0]
    expected = generate(model, prompt)
    for _ in range(2):
        assert torch.equal(generate(model, prompt, custom_generate=lookahead), expected)


# ---- trees ----


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", sorted(MAKERS))
def test_tree_rows_are_path_logits(name, implementation):
    """Three random trees behind each other, each partly kept."""
    model = MAKERS[name](attn_implementation=implementation).double()
    assert model.config._attn_implementation == implementation
    rng = np.random.default_rng(1)
    for _ in range(6):
        prompt = prompt_of(model, rng)
        runner = SlabRunner(model)
        first = runner.prefill([prompt[0]])
        text, token = prompt[0].tolist(), int(rng.integers(3, FIRST_SPECIAL))
        torch.testing.assert_close(first[0], logits_of(model, text)[-1], rtol=0, atol=1e-9)
        for _ in range(3):
            tree = random_tree(rng, 9)
            parents = tree.parents.tolist()
            logits = runner.forward([token], [tree])[0]
            for node in range(-1, len(tree)):
                path = [*text, token, *tree.token_ids[ancestors(parents, node)].tolist()]
                torch.testing.assert_close(logits[node + 1], logits_of(model, path)[-1], rtol=0, atol=1e-9)
            kept = ancestors(parents, int(rng.integers(-1, len(tree))))
            runner.keep([[0, *(node + 1 for node in kept)]])
            text += [token, *tree.token_ids[kept].tolist()]
            token = int(rng.integers(3, VOCAB))


def random_tree(rng, size) -> DraftTree:
    parents = np.array([rng.integers(-1, node) if node else -1 for node in range(size)], np.int32)
    tokens = rng.integers(0, VOCAB, size).astype(np.int32)
    return DraftTree(tokens, parents, np.linspace(1, 0.1, size, dtype=np.float32), np.zeros(size, np.uint8))


# ---- batches ----


def test_batch_of_ragged_prompts_is_each_alone(model):
    """Plain `generate` with left padding, with and without beams."""
    rows = prompts(model, 5, seed=8)
    assert len({row.shape[1] for row in rows}) > 3
    padded, mask = left_padded(rows)
    for num_beams in (1, 3):
        options = {"eos_token_id": None, "num_beams": num_beams}
        together = generate(model, padded, attention_mask=mask, **options)[:, padded.shape[1] :]
        for number, row in enumerate(rows):
            assert torch.equal(together[number], generate(model, row, **options)[0, row.shape[1] :])


def test_drafted_batch_of_ragged_prompts_is_each_alone(model):
    """PIA's own batches, learning from one another; rows end at different lengths and leave."""
    rows = prompts(model, 5, seed=8)
    padded, mask = left_padded(rows)
    options = {"eos_token_id": list(range(2, 9)), "pad_token_id": 0}
    alone = [generate(model, row, **options)[0, row.shape[1] :].tolist() for row in rows]
    assert len({len(tokens) for tokens in alone}) > 1
    lookahead = pia.Lookahead(budget=12)
    for _ in range(2):
        together = generate(model, padded, attention_mask=mask, custom_generate=lookahead, **options)
        for tokens, expected in zip(together[:, padded.shape[1] :].tolist(), alone, strict=True):
            assert tokens[: len(expected)] == expected and not any(tokens[len(expected) :])
    stats = lookahead.last_stats
    assert stats.mode == "tree" and stats.num_accepted > 5 and stats.num_drafted > stats.num_accepted


def test_several_answers_to_one_prompt(model):
    """Rows that are copies of a prefilled one; with one token to choose from, sampling is greedy."""
    prompt = prompts(model, 1, seed=15)[0]
    expected = generate(model, prompt, eos_token_id=None)
    source = ToySource(expected[0].tolist(), 0.6)
    options = {"do_sample": True, "top_k": 1, "num_return_sequences": 3, "eos_token_id": None}
    out = model.generate(
        prompt, max_new_tokens=NUM_NEW, custom_generate=pia.Lookahead(cache=source, budget=12), **options
    )
    assert torch.equal(out, expected.expand(3, -1))


def test_a_returned_cache_goes_on(model):
    """What is remembered of a text is in the cache that PIA hands back."""
    prompt = prompts(model, 1, seed=16)[0]
    whole = generate(model, prompt, eos_token_id=None)
    first = model.generate(
        prompt,
        max_new_tokens=NUM_NEW // 2,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
        custom_generate=pia.Lookahead(cache=ToySource(whole[0].tolist(), 0.6), budget=12),
    )
    assert first.stats.num_accepted > 0
    rest = model.generate(
        first.sequences,
        past_key_values=first.past_key_values,
        max_new_tokens=NUM_NEW - NUM_NEW // 2,
        do_sample=False,
        eos_token_id=None,
    )
    assert torch.equal(rest, whole)


def left_padded(rows):
    width = max(row.shape[1] for row in rows)
    padded = torch.cat([torch.nn.functional.pad(row, (width - row.shape[1], 0)) for row in rows])
    mask = torch.cat([torch.arange(width)[None] >= width - row.shape[1] for row in rows]).long()
    return padded, mask


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_trees_of_a_ragged_batch(name):
    """Right-padded rows whose trees stand behind their own prefixes, so that slots and positions differ by row."""
    model = MAKERS[name]().double()
    rng = np.random.default_rng(2)
    rows = [prompt_of(model, rng) for _ in range(4)]
    trees = [random_tree(rng, 6) for _ in rows]
    cache, logits = verify_batch(model, rows, trees)
    for number, (row, tree) in enumerate(zip(rows, trees, strict=True)):
        for node in range(-1, len(tree)):
            nodes = ancestors(tree.parents.tolist(), node)
            path = [*row[0].tolist(), 7, *tree.token_ids[nodes].tolist()]
            torch.testing.assert_close(logits[number, node + 1], logits_of(model, path)[-1], rtol=0, atol=1e-9)
    assert len(cache) == model.config.num_hidden_layers + 1


def verify_batch(model, rows, trees):
    """Prefills rows together, then feeds token 7 and a tree to each: in the slots from the longest row's end on."""
    lengths = torch.tensor([row.shape[1] for row in rows])
    width = int(lengths.max())
    cache = DynamicCache(config=model.config)
    padded = torch.cat([torch.nn.functional.pad(row, (0, width - row.shape[1])) for row in rows])
    with torch.no_grad():
        model(padded, position_ids=torch.arange(width)[None].expand(len(rows), -1), past_key_values=cache)
        ids = torch.tensor([[7, *tree.token_ids.tolist()] for tree in trees])
        layouts = [layout(tree) for tree in trees]
        depths = torch.tensor(np.stack([depths for depths, _ in layouts]))
        visible = torch.tensor(np.stack([visible for _, visible in layouts]))
        prefix = (torch.arange(width) < lengths[:, None])[:, None].expand(-1, ids.shape[1], -1)
        seen = torch.cat([prefix, visible], dim=2)[:, None]
        mask = torch.zeros(seen.shape, dtype=model.dtype).masked_fill(~seen, torch.finfo(model.dtype).min)
        positions = lengths[:, None] + depths
        logits = model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache).logits
    return cache, logits


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_rows_may_be_dropped_and_repeated(name):
    """What a row's tokens mean goes with its keys when a batch is thinned out or multiplied."""
    model = MAKERS[name]().double()
    rows = prompts(model, 3, seed=12)
    padded, mask = left_padded(rows)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(padded, attention_mask=mask, past_key_values=cache)
        chosen = torch.tensor([2, 0, 2])
        cache.reorder_cache(chosen)
        mask = torch.cat([mask[chosen], torch.ones((3, 1), dtype=torch.long)], dim=1)
        logits = model(torch.full((3, 1), 9), attention_mask=mask, past_key_values=cache).logits[:, -1]
    for row, number in enumerate(chosen.tolist()):
        expected = logits_of(model, [*rows[number][0].tolist(), 9])[-1]
        torch.testing.assert_close(logits[row], expected, rtol=0, atol=1e-9)


# ---- defects of the seed ----


def test_alibi_follows_positions_not_slots():
    """In the seed, Baichuan-13B took distances between slots: siblings in a tree were pushed apart."""
    model = baichuan().double()
    text, leaves = [5, 9, 13, 21, 34], [40, 41, 42, 43, 44]
    siblings = DraftTree(
        np.array(leaves, np.int32),
        np.full(5, -1, np.int32),
        np.linspace(0.9, 0.5, 5, dtype=np.float32),
        np.zeros(5, np.uint8),
    )
    runner = SlabRunner(model)
    runner.prefill([torch.tensor(text)])
    logits = runner.forward([7], [siblings])[0]
    for row, leaf in enumerate(leaves, start=1):
        torch.testing.assert_close(logits[row], logits_of(model, [*text, 7, leaf])[-1], rtol=0, atol=1e-9)

    last = torch.tensor([[len(text) + 1]])
    by_position = alibi_bias(last, torch.tensor([[0, 1, 2, 3, 4, 5, *[6] * 5]]), 4, torch.float64)
    by_slot = alibi_bias(last + 4, torch.arange(11)[None], 4, torch.float64)
    seen = [0, 1, 2, 3, 4, 5, 10]
    gap = (by_position - by_slot)[..., seen].softmax(-1).std()
    assert gap > 1e-2  # or the test above could not have told them apart


def test_glm_rows_of_a_batch_have_their_own_blanks():
    """In the seed, the rows of a GLM batch went wrong: each has its own context length and mask position."""
    model = glm().double()
    contexts = [[95, 5, 6], [7, 8, 9, 10, 95, 11, 12], [13, 94, 15, 95]]  # of two mask tokens, the first counts
    rows = [torch.tensor([[*context, SOP]]) for context in contexts]
    padded, mask = left_padded(rows)
    steps = [17, 18, 19]
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        logits = [model(padded, attention_mask=mask, past_key_values=cache).logits[:, -1]]
        for token in steps:
            mask = torch.cat([mask, torch.ones((3, 1), dtype=torch.long)], dim=1)
            logits.append(model(torch.full((3, 1), token), attention_mask=mask, past_key_values=cache).logits[:, -1])
    for row, context in enumerate(contexts):
        blank = next(place for place, token in enumerate(context) if token in MASKS)
        told = told_logits(model, context, [SOP, *steps], blank)
        for step, got in enumerate(logits):
            torch.testing.assert_close(got[row], told[len(context) + step], rtol=0, atol=1e-9)
        elsewhere = told_logits(model, context, [SOP, *steps], len(context))
        assert (elsewhere[len(context)] - told[len(context)]).abs().max() > 1e-2  # the mask's place matters


def told_logits(model, context, piece, blank):
    """Logits of a text with both positions and the mask written out."""
    start, length = len(context), len(context) + len(piece)
    positions = torch.tensor([[[*range(start), *[blank] * len(piece)], [*[0] * start, *range(1, len(piece) + 1)]]])
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    seen[:start, :start] = True
    with torch.no_grad():
        ids = torch.tensor([[*context, *piece]])
        return model(ids, attention_mask=seen[None, None], position_ids=positions, use_cache=False).logits[0]


# ---- GLM's prompts ----


def test_a_glm_context_sees_itself_in_a_causal_mask_of_the_callers_own():
    model = glm().double()
    row = torch.tensor([[5, 95, 7, 8, SOP, 11]])
    causal = torch.zeros(1, 1, 6, 6, dtype=torch.float64).masked_fill(~torch.ones(6, 6).tril().bool(), -1e300)
    with torch.no_grad():
        got = model(row, attention_mask=causal, position_ids=torch.arange(6)[None]).logits[0]
    torch.testing.assert_close(got, logits_of(model, row[0].tolist()), rtol=0, atol=1e-9)


@pytest.mark.parametrize("ids", [[5, 6, SOP], [5, 95, 6], [5, SOP, 95]], ids=["no mask", "no piece", "mask too late"])
def test_malformed_glm_prompts_are_refused(ids):
    model = glm()
    for options in ({}, {"custom_generate": pia.Lookahead(budget=4)}):
        with pytest.raises(PromptError, match=r"mask token"):
            generate(model, torch.tensor([ids]), **options)


def test_glm_prompts_are_not_read_in_chunks():
    """A context token must see those behind it, so a first part alone is something else."""
    model = glm()
    for ids in ([95, 5, 6, 7, 8, SOP], [5, 6, 7, 8, 95, SOP]):
        for options in ({}, {"custom_generate": pia.Lookahead(budget=4)}):
            with pytest.raises(PromptError, match="prefill_chunk_size"):
                generate(model, torch.tensor([ids]), prefill_chunk_size=2, **options)


def test_a_bare_glm_text_is_causal():
    """As in the original: without a piece, positions count on, the block position is 0 and nothing looks ahead."""
    model = glm().double()
    whole, part = logits_of(model, [5, 6, 7, 8, 9]), logits_of(model, [5, 6, 7])
    torch.testing.assert_close(whole[:3], part, rtol=0, atol=1e-9)
    prompt = torch.tensor([[5, 6, 7]])
    expected = generate(model, prompt)
    source = ToySource(expected[0].tolist(), 0.6)
    assert torch.equal(generate(model, prompt, custom_generate=pia.Lookahead(cache=source, budget=8)), expected)


def test_glm_positions_end_somewhere():
    model = glm(max_sequence_length=32)
    prompt = torch.tensor([[*range(3, 43), 95, SOP]])
    with pytest.raises(PromptError, match="no embedding"):
        generate(model, prompt, custom_generate=pia.Lookahead(budget=4))


# ---- Transformers' own ways ----


def test_attention_implementations_agree(model, tmp_path):
    model.save_pretrained(tmp_path)
    eager = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    padded, mask = left_padded(prompts(model, 3, seed=3))
    with torch.no_grad():
        ours, theirs = (m(padded, attention_mask=mask).logits[mask.bool()] for m in (model, eager))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert eager.config._attn_implementation == "eager" and model.config._attn_implementation == "sdpa"


def test_registering_is_asked_for():
    """Neither `import pia` nor looking the function up loads torch; calling it twice is fine."""
    code = "import sys, pia; pia.register_families; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    pia.register_families()
    pia.register_families()


def test_saved_and_loaded(model, tmp_path):
    pia.register_families()
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model)
    prompt = prompts(model, 1)[0]
    with torch.no_grad():
        assert torch.equal(loaded(prompt).logits, model(prompt).logits)


@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"use_cache": False}], ids=str)
def test_other_caches_give_the_same_batch(model, options):
    padded, mask = left_padded(prompts(model, 3, seed=6))
    expected = generate(model, padded, attention_mask=mask, eos_token_id=None)
    assert torch.equal(generate(model, padded, attention_mask=mask, eos_token_id=None, **options), expected)


def test_assisted_generation_of_transformers(model):
    """It crops the cache after rejected candidates, and what is remembered must shrink along."""
    prompt = prompts(model, 1, seed=3)[0]
    expected = generate(model, prompt, eos_token_id=None)
    assert torch.equal(generate(model, prompt, prompt_lookup_num_tokens=3, eos_token_id=None), expected)


def test_baichuan_prompts_may_be_read_in_chunks():
    model = baichuan()
    prompt = prompts(model, 1, seed=3)[0]
    expected = generate(model, prompt)
    assert torch.equal(generate(model, prompt, prefill_chunk_size=3), expected)
    drafted = generate(model, prompt, prefill_chunk_size=3, custom_generate=pia.Lookahead(budget=4))
    assert torch.equal(drafted, expected)


def test_logits_to_keep_and_hidden_states(model):
    prompt = prompts(model, 1)[0]
    with torch.no_grad():
        every = model(prompt, output_hidden_states=True)
        last = model(prompt, logits_to_keep=1).logits
        some = model(prompt, logits_to_keep=torch.tensor([0, 1])).logits
    torch.testing.assert_close(last, every.logits[:, -1:], rtol=0, atol=1e-5)
    torch.testing.assert_close(some, every.logits[:, :2], rtol=0, atol=1e-5)
    assert len(every.hidden_states) == model.config.num_hidden_layers + 1


def test_training_reaches_every_weight(model):
    prompt = prompts(model, 1, seed=9)[0]
    model.zero_grad()
    model(prompt, labels=prompt).loss.backward()
    missing = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    model.zero_grad()
    assert missing == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite(dtype):
    for make in MAKERS.values():
        model = make().to(dtype)
        padded, mask = left_padded(prompts(model, 3, seed=3))
        with torch.no_grad():
            assert model(padded, attention_mask=mask).logits.isfinite().all()


def test_published_sizes():
    """The parameters that the model cards count."""
    sizes = dict(vocab_size=64_000)
    with torch.device("meta"):
        first, second = Baichuan13BForCausalLM(Baichuan13BConfig(**sizes)), Glm10BForCausalLM(Glm10BConfig())
    assert sum(weight.numel() for weight in first.parameters()) == 13_264_901_120  # Baichuan-13B
    assert 9.8e9 < sum(weight.numel() for weight in second.parameters()) < 10.0e9
