"""With `exact=True` drafts change no bit: tokens and logits equal those of exact decoding without drafts."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

import pia
from pia.assets import demo_cache_path, demo_questions
from pia.drafting.cache import DraftCache
from pia.drafting.tree import DraftTree
from pia.errors import UnsupportedOptionError
from pia.models.exact import ExactRows, ExactRunner
from pia.models.exact_cache import ExactCache
from pia.models.exact_check import interchangeable_sizes
from pia.models.exact_probe import Layout, Probe, Recorder
from pia.models.profile import exact_sizes_of
from pia.text import encode
from toys import _ROTARY, FAMILIES, VOCAB, ToySource, prompts, tiny_model

BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
DTYPES = sorted(BITS, key=str)
NUM_NEW = 32


def gemma3() -> torch.nn.Module:
    """A tiny Gemma 3: every second layer sees a window of 8 only."""
    torch.manual_seed(0)
    layer_types = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(
        **_ROTARY | {"num_hidden_layers": 2}, head_dim=8, sliding_window=8, layer_types=layer_types
    )
    return Gemma3ForCausalLM(config).eval()


LONGROPE = dict(
    rope_type="longrope",
    rope_theta=10000.0,
    short_factor=[1.0, 1.1, 1.2, 1.3],
    long_factor=[3.0, 5.0, 7.0, 9.0],
    factor=4.0,
    original_max_position_embeddings=48,
)
"""Other frequencies from position 48 on."""


def generate(model, prompt, lookahead, **options):
    options = {"max_new_tokens": NUM_NEW, "do_sample": False, **options}
    return model.generate(
        prompt, custom_generate=lookahead, return_dict_in_generate=True, output_logits=True, **options
    )


def logits_of(output) -> torch.Tensor:
    """Raw logits, `[tokens, vocab]`, as bits."""
    return torch.cat(output.logits).contiguous().view(torch.int32)


def assert_same_bits(a, b) -> None:
    assert torch.equal(a.sequences, b.sequences)
    assert torch.equal(logits_of(a), logits_of(b))


@pytest.fixture(scope="module")
def questions(demo):
    return [encode(demo[1], [{"role": "user", "content": q["question"]}]) for q in demo_questions(2)]


@pytest.fixture(params=DTYPES, ids=str)
def demo_in(demo, request):
    """The embedded model in a dtype, for a while."""
    model = demo[0]
    yield model.to(request.param)
    model.to(torch.float32)


def test_drafts_change_no_bit_of_the_demo_model(demo_in, questions):
    plain, accepted, rejected = pia.Lookahead(exact=True, budget=0), 0, 0
    drafted = [
        pia.Lookahead(DraftCache.load(demo_cache_path()), exact=True, **options) for options in ({"budget": 12}, {})
    ]
    for prompt in questions:
        expected = generate(demo_in, prompt, plain)
        for lookahead in drafted:
            out = generate(demo_in, prompt, lookahead)
            assert_same_bits(out, expected)
            accepted += out.stats.num_accepted
            rejected += out.stats.num_drafted - out.stats.num_accepted
    assert accepted > 15
    assert rejected > 15


def test_without_exact_drafts_change_bits(demo, questions):
    """What the other tests would see if exact decoding were ordinary decoding."""
    model = demo[0].to(torch.bfloat16)
    try:
        lookahead = pia.Lookahead(DraftCache.load(demo_cache_path()), budget=12)
        expected = generate(model, questions[0], pia.Lookahead(budget=0))
        out = generate(model, questions[0], lookahead)
    finally:
        model.to(torch.float32)
    num_same = int((out.sequences == expected.sequences).long().cumprod(1).sum()) - questions[0].shape[1]
    assert not torch.equal(logits_of(out)[:num_same], logits_of(expected)[:num_same])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*sorted(FAMILIES), "gemma3"])
def test_drafts_change_no_bit_of_any_family(name, dtype):
    model = (gemma3() if name == "gemma3" else tiny_model(name)).to(dtype)
    plain, num_accepted, num_drafted = pia.Lookahead(exact=True, budget=0), 0, 0
    for number, prompt in enumerate(prompts(3, seed=8)):
        expected = generate(model, prompt, plain)
        source = ToySource(expected.sequences[0].tolist(), 0.8, width=1, depth=9, seed=number)
        out = generate(model, prompt, pia.Lookahead(source, exact=True, budget=9))
        assert_same_bits(out, expected)
        num_accepted += out.stats.num_accepted
        num_drafted += out.stats.num_drafted
    assert 15 < num_accepted < num_drafted - 15


@pytest.mark.parametrize("length", [240, 255, 256, 257])
def test_drafts_across_the_border_of_a_bucket(length):
    model = tiny_model("llama").to(torch.bfloat16)
    prompt = prompts(1, seed=1)[0].repeat(1, 256)[:, :length]
    expected = generate(model, prompt, pia.Lookahead(exact=True, budget=0))
    for agreement in (0.5, 0.9):
        source = ToySource(expected.sequences[0].tolist(), agreement, width=1, depth=80, seed=length)
        out = generate(model, prompt, pia.Lookahead(source, exact=True, budget=80, max_depth=80))
        assert_same_bits(out, expected)
        assert out.stats.num_accepted > 5


def test_text_fills_the_context():
    model = tiny_model("gpt2").to(torch.bfloat16)
    prompt = torch.full((1, 480), 5)
    options = {"max_new_tokens": 32, "eos_token_id": None}  # 512 positions in all
    expected = generate(model, prompt, pia.Lookahead(exact=True, budget=0), **options)
    source = ToySource(expected.sequences[0].tolist(), 1.0, width=1, depth=20)
    out = generate(model, prompt, pia.Lookahead(source, exact=True, budget=20), **options)
    assert_same_bits(out, expected)
    assert out.stats.edl > 5


@pytest.mark.parametrize("options", [{"repetition_penalty": 1.3}, {"do_sample": True, "top_k": 20}], ids=str)
@pytest.mark.parametrize("demo_in", [torch.bfloat16], ids=str, indirect=True)
def test_processors_and_sampling(demo_in, questions, options):
    outputs = []
    for lookahead in (
        pia.Lookahead(exact=True, budget=0),
        pia.Lookahead(DraftCache.load(demo_cache_path()), exact=True, budget=7),
    ):
        torch.manual_seed(3)
        outputs.append(generate(demo_in, questions[1], lookahead, **options))
    assert_same_bits(*outputs)
    assert outputs[1].stats.num_accepted > 0


def test_padding_changes_no_bit(llama):
    prompt = prompts(1, seed=9)[0]
    padded = torch.cat([torch.zeros((1, 5), dtype=torch.long), prompt], dim=1)
    mask = (torch.arange(padded.shape[1]) >= 5).long()[None]
    lookahead = pia.Lookahead(exact=True, budget=8)
    alone, out = generate(llama, prompt, lookahead), generate(llama, padded, lookahead, attention_mask=mask)
    assert torch.equal(logits_of(alone), logits_of(out))


def rows_of(logits, chains):
    """What belongs to the tokens of each row, without what fills the rows up."""
    return [row[: 1 + len(chain)] for row, chain in zip(logits, chains, strict=True)]


def test_rows_of_a_batch_have_the_bits_they_have_alone(llama):
    model = llama.to(torch.bfloat16)
    try:
        new_runner = partial(ExactRunner, model, partial(exact_sizes_of, model))
        texts = [torch.randint(3, VOCAB, (1, length)) for length in (3, 40, 17)]
        chains = [DraftTree.chain([5, 6, 7]), DraftTree.chain([]), DraftTree.chain([9] * 6)]
        batch = ExactRows(new_runner)
        together = [*batch.prefill([ids[0] for ids in texts]), *rows_of(batch.forward([4, 5, 6], chains), chains)]
        batch.keep([[0, 1], [0], [0]])
        batch.retire(0)  # the last row takes its place
        left = [chains[2], chains[1]]
        together += rows_of(batch.forward([9, 8], left), left)
        alone = [new_runner() for _ in texts]
        expected = [runner.prefill(ids)[0] for runner, ids in zip(alone, texts, strict=True)]
        expected += [r.forward(t, c) for r, t, c in zip(alone, [4, 5, 6], chains, strict=True)]
        for runner in alone[1:]:
            runner.keep([0])
        expected += [r.forward(t, c) for r, t, c in zip(alone[:0:-1], [9, 8], left, strict=True)]
    finally:
        llama.to(torch.float32)
    assert len(together) == 8
    assert all(torch.equal(a.view(torch.int16), b.view(torch.int16)) for a, b in zip(together, expected, strict=True))


class _Uneven(torch.nn.Linear):
    """A head that rounds its last row in another way when there are more than 16 rows."""

    def forward(self, states):
        logits = super().forward(states)
        if states.shape[1] > 16:
            logits[:, -1] = logits[:, -1].nextafter(torch.tensor(torch.inf))
        return logits


class _RowByRow(torch.nn.Linear):
    """A head that rounds every row as its index says."""

    def forward(self, states):
        logits = super().forward(states)
        return logits * (1 + 1e-3 * torch.arange(logits.shape[1])[:, None])


class _Forgetful(ExactCache):
    """Says that less is in it than there is, so that the model makes a wrong mask."""

    def get_seq_length(self, layer_idx=0):
        return max(0, super().get_seq_length(layer_idx) - 5)


def test_equal_bits_of_a_wrong_forward_are_refused(monkeypatch):
    monkeypatch.setattr("pia.models.exact.ExactCache", _Forgetful)
    with pytest.raises(UnsupportedOptionError, match="off by"):
        generate(tiny_model("llama"), prompts(1)[0], pia.Lookahead(exact=True))


def test_a_batch_generates_the_bits_of_its_rows_alone(llama):
    model = llama.to(torch.bfloat16)
    try:
        texts = prompts(3, seed=12)
        longest = max(text.shape[1] for text in texts)
        batch = torch.cat([torch.nn.functional.pad(text, (longest - text.shape[1], 0)) for text in texts])
        mask = torch.stack([torch.arange(longest) >= longest - text.shape[1] for text in texts]).long()
        lookahead = pia.Lookahead(exact=True, budget=6, sources=["cache"])
        for _ in range(2):  # the second time with drafts that the first has taught
            together = generate(model, batch, lookahead, attention_mask=mask, eos_token_id=None)
        assert 0 < together.stats.num_accepted < together.stats.num_drafted
        for row, text in enumerate(texts):
            alone = generate(model, text, pia.Lookahead(exact=True, budget=0), eos_token_id=None)
            ours = torch.stack([logits[row] for logits in together.logits]).contiguous().view(torch.int32)
            assert torch.equal(ours, logits_of(alone))
    finally:
        llama.to(torch.float32)


def test_probes_of_broadcast_arguments_are_not_empty():
    """Keys that heads share have a stride of zero."""
    shared = torch.randn(1, 1, 5, 8).expand(1, 4, 5, 8)
    filled = Layout.of(shared).filled(torch.ones(5, 8))
    assert filled.stride() == shared.stride()
    assert filled.min() == 1


def with_head(kind: type[torch.nn.Linear]) -> torch.nn.Module:
    model = tiny_model("llama")
    model.lm_head.__class__ = kind
    return model


def test_sizes_that_round_differently_are_not_fed():
    sizes = interchangeable_sizes(tiny_model("llama"), 0)
    assert max(sizes) > 16
    assert interchangeable_sizes(with_head(_Uneven), 0) == tuple(size for size in sizes if size <= 16)
    assert interchangeable_sizes(with_head(_RowByRow), 0) == (1,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_probes_see_the_order_of_additions(dtype):
    """Another order of the same sum shows in most results of a probe, and in few of ordinary products."""
    given = [torch.randn(shape).to(dtype) for shape in ((8, 256), (256, 64))]
    with Recorder() as recorder:
        torch.mm(*given)
    probe = Probe({8: recorder.calls[0]}, 0, num_rows=8)
    rows, columns = (factor.to(dtype) for factor in probe._cancelling(256, 8, 64))
    assert not (rows.double() @ columns.double().T).any()
    order = torch.randperm(256)

    def share_changed(left, right):
        return (torch.mm(left, right) != torch.mm(left[:, order], right[order])).double().mean()

    assert share_changed(rows, columns.T) > 0.5 > 0.1 > share_changed(*given)


def test_refusals(llama):
    prompt = prompts(1)[0]
    lookahead = pia.Lookahead(exact=True)
    experts = MixtralForCausalLM(MixtralConfig(**_ROTARY, num_local_experts=4)).eval()
    with pytest.raises(UnsupportedOptionError, match="mixture of experts"):
        generate(experts, prompt, lookahead)
    with pytest.raises(UnsupportedOptionError, match="round differently by its size"):
        generate(with_head(_RowByRow), prompt, lookahead)
    with pytest.raises(UnsupportedOptionError, match="use_cache"):
        generate(llama, prompt, lookahead, use_cache=False)
    quantised = tiny_model("llama")
    quantised.is_quantized = True
    with pytest.raises(UnsupportedOptionError, match="quantised"):
        generate(quantised, prompt, lookahead)
    with pytest.raises(UnsupportedOptionError, match="exact must be"):
        pia.Lookahead(exact="yes")


def test_the_tiny_models_say_many_things():
    """The tiny models do not just repeat one token, or the equalities above would prove little."""
    lookahead = pia.Lookahead(exact=True, budget=0)
    model = tiny_model("llama").to(torch.bfloat16)
    seen = {t for p in prompts(6) for t in generate(model, p, lookahead).sequences[0, p.shape[1] :].tolist()}
    assert len(seen) > VOCAB // 4


@pytest.mark.parametrize("length", [42, 43, 44])
def test_no_draft_crosses_a_change_of_frequencies(length):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**_ROTARY, rope_parameters=LONGROPE)).eval()
    prompt = torch.tensor(np.random.default_rng(length).integers(3, VOCAB, (1, length)))
    expected = generate(model, prompt, pia.Lookahead(exact=True, budget=0), eos_token_id=None)
    truth = ToySource(expected.sequences[0].tolist(), 1.0, width=1)
    out = generate(model, prompt, pia.Lookahead(cache=truth, exact=True, budget=5), eos_token_id=None)
    assert_same_bits(out, expected)
    assert out.stats.num_accepted > 20


def test_a_text_that_is_fed_anew_is_refused():
    torch.manual_seed(0)
    options = dict(rope_parameters=LONGROPE, original_max_position_embeddings=48)
    model = Phi3ForCausalLM(Phi3Config(**_ROTARY | options)).eval()
    with pytest.raises(UnsupportedOptionError, match="fed anew"):
        generate(model, prompts(1)[0], pia.Lookahead(exact=True))
