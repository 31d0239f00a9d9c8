"""Replay at full size: the model writes what was recorded, whoever calls it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pia.bench.drafters import find
from pia.bench.forced import replay_case
from pia.bench.forced_logits import ForcedText
from pia.bench.forced_trace import padded
from pia.bench.replay import fixed_budget, play, warm_up
from pia.bench.shapes import Shape, build
from pia.bench.trace import Trace
from pia.errors import ModelError, TraceError
from pia.lookahead import Lookahead

TINY = Shape("tiny", "llama", 64, 96, 2, 4, 2, 97, 512)


@pytest.fixture(scope="module")
def model():
    return build(TINY, dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def forced(model):
    return ForcedText(model)


@pytest.fixture
def trace():
    """Requests that repeat each other in part, so that drafts are accepted in part."""
    rng = np.random.default_rng(3)
    phrases = rng.integers(3, 90, (6, 5)).astype(np.int32)
    outputs = [np.concatenate(phrases[rng.integers(0, 6, 6)]) for _ in range(8)]
    return Trace("toy", [rng.integers(3, 90, 9).astype(np.int32) for _ in range(8)], outputs)


def random_text(length=40, seed=1):
    return torch.randint(3, 97, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def greedy(model, prompt, num_tokens, **extra):
    output = model.generate(prompt, max_new_tokens=num_tokens, do_sample=False, **extra)
    return output[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"prompt_lookup_num_tokens": 5},
        {"use_cache": False},
        {"prefill_chunk_size": 3},
        {"custom_generate": Lookahead(budget=0)},
        {"custom_generate": Lookahead(budget=16)},
        {"custom_generate": Lookahead(budget=16, shape="chain")},
    ],
    ids=lambda extra: next(iter(extra.items()), "plain")[0],
)
def test_every_way_of_decoding_writes_the_text(model, forced, extra):
    text = random_text()
    prompt = torch.tensor([text[:10]])
    free = greedy(model, prompt, 30)
    for _ in range(2):  # the second time PIA has learned the text, and drafts it
        with forced.forcing(text):
            assert greedy(model, prompt, 30, **extra) == text[10:]
    assert greedy(model, prompt, 30) == free != text[10:]


def test_drafts_are_accepted(model, forced):
    text, lookahead = random_text(), Lookahead(budget=16)
    with forced.forcing(text):
        for _ in range(2):
            greedy(model, torch.tensor([text[:10]]), 30, custom_generate=lookahead)
    assert lookahead.last_stats.edl > 5


def test_all_nodes_of_a_position_get_the_same_token(model, forced):
    text = random_text()
    positions = torch.tensor([[5, 6, 6, 7, 6]])
    with forced.forcing(text):
        logits = model(input_ids=torch.tensor([[3, 4, 5, 6, 7]]), position_ids=positions, use_cache=False).logits
    assert logits.argmax(-1)[0].tolist() == [text[p + 1] for p in positions[0].tolist()]


@pytest.mark.parametrize("kept", [0, 1, 3, torch.tensor([0, 4])], ids=["all", "last", "three", "some"])
def test_only_the_kept_logits_are_there(model, forced, kept):
    text = random_text()
    ids, positions = torch.tensor([text[:6]]), torch.arange(6)[None]
    places = positions[0, kept if isinstance(kept, torch.Tensor) else slice(-kept, None)].tolist()
    with forced.forcing(text):
        logits = model(input_ids=ids, position_ids=positions, logits_to_keep=kept, use_cache=False).logits
    assert logits.argmax(-1)[0].tolist() == [text[p + 1] for p in places]


def test_one_logit_changes_and_only_within_the_text(model, forced):
    text = random_text(20)
    ids, positions = torch.tensor([random_text(30, seed=2)]), torch.arange(30)[None]
    free = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    with forced.forcing(text):
        logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    changed = (logits != free).sum(-1)[0].tolist()
    assert changed == [1] * 19 + [0] * 11
    assert torch.equal(model(input_ids=ids, position_ids=positions, use_cache=False).logits, free)


def test_positions_beyond_the_context_are_left_alone(forced):
    logits = torch.randn(1, 2, 97)
    expected = logits.clone()

    class Output:
        pass

    output = Output()
    output.logits = logits
    hook = next(hook for hook in forced._hook.hooks_dict_ref().values())
    with forced.forcing(random_text(512)):
        hook(None, (), {"position_ids": torch.tensor([[600, -1]])}, output)
    assert torch.equal(output.logits[0, 0], expected[0, 0])


def test_a_cache_without_positions_is_refused(model, forced):
    cache = model(torch.tensor([[1, 2]]), use_cache=True).past_key_values
    with pytest.raises(ModelError, match="position_ids"):
        model(input_ids=torch.tensor([[3]]), past_key_values=cache)


def test_a_text_longer_than_the_context_is_refused(forced):
    with (
        pytest.raises(TraceError, match="513 tokens is longer than the model's context of 512"),
        forced.forcing([1] * 513),
    ):
        pass


@pytest.mark.parametrize(
    ("backend", "freezing"),
    [
        ("aot_eager", False),
        pytest.param("inductor", False, marks=pytest.mark.slow),
        pytest.param("inductor", True, marks=pytest.mark.slow),
    ],
)
def test_a_compiled_forward_takes_the_text_of_the_moment(backend, freezing):
    import torch._inductor.config as inductor

    model = build(TINY, dtype=torch.float32, device="cpu")
    forced = ForcedText(model)

    def forward(ids, positions):
        return model(input_ids=ids, position_ids=positions, use_cache=False).logits

    ids, positions = torch.tensor([random_text(8, seed=5)]), torch.arange(8)[None]
    torch._dynamo.reset()
    with inductor.patch(freezing=freezing), torch.no_grad():
        compiled = torch.compile(forward, fullgraph=True, backend=backend)
        torch.testing.assert_close(compiled(ids, positions), forward(ids, positions), atol=1e-5, rtol=1e-5)
        for seed in (1, 2):
            text = random_text(9, seed)
            with forced.forcing(text):
                assert compiled(ids, positions).argmax(-1)[0].tolist() == text[1:]
        torch.testing.assert_close(compiled(ids, positions), forward(ids, positions), atol=1e-5, rtol=1e-5)


def test_a_case_replays_what_a_replay_without_a_model_counts(trace):
    case = replay_case(trace, TINY, dtype=torch.float32, warm=5, limit=2)
    assert case.label == "tiny shape, random weights, tokens from toy"
    assert case.max_new_tokens == [30, 30]
    lookahead = Lookahead(case.new_cache(), budget=8, max_depth=32, sources=["cache"])
    steps = 0
    for index, prompt in enumerate(case.prompts):
        with case.forcing(index):
            answer = greedy(case.model, prompt, case.max_new_tokens[index], custom_generate=lookahead)
        assert answer == case.outputs[index] == trace.outputs[5 + index].tolist()
        steps += lookahead.last_stats.num_steps
    assert steps == replayed(trace, 5, 2, budget=8).num_steps
    assert steps < 58


def replayed(trace, warm, limit, budget):
    drafter = find("pia").new()
    warm_up(drafter, trace.part(0, warm))
    return play(drafter, trace.part(warm, warm + limit), fixed_budget(budget))


def test_caches_of_a_case_are_apart(trace):
    case = replay_case(trace, TINY, dtype=torch.float32, warm=5, limit=2)
    first, second = case.new_cache(), case.new_cache()
    num_bytes = second.memory_usage
    first.insert(list(range(3, 90)) * 50)
    assert second.memory_usage == num_bytes


def test_padding_reaches_the_context_and_leaves_acceptance(trace):
    longer = padded(trace, 60, TINY.vocab, 0, beside=trace)
    assert {len(prompt) for prompt in longer.prompts} == {60}
    assert all((prompt[-9:] == short).all() for prompt, short in zip(longer.prompts, trace.prompts, strict=True))
    assert not set(np.concatenate([prompt[:-9] for prompt in longer.prompts])) & set(np.concatenate(trace.outputs))
    assert replayed(longer, 4, 4, 8).num_emitted == replayed(trace, 4, 4, 8).num_emitted
    case = replay_case(trace, TINY, dtype=torch.float32, warm=4, limit=3, context=60)
    assert [prompt.shape[1] for prompt in case.prompts] == [60] * 3


def test_ids_beyond_the_vocabulary_are_renumbered_one_to_one(trace):
    distant = Trace("far", [prompt * 1000 for prompt in trace.prompts], [output * 1000 for output in trace.outputs])
    case = replay_case(distant, TINY, dtype=torch.float32, warm=4, limit=4)
    texts = [[*prompt[0].tolist(), *output] for prompt, output in zip(case.prompts, case.outputs, strict=True)]
    originals = [[*prompt, *output] for prompt, output in distant.part(4, 8)]
    pairs = {pair for text, original in zip(texts, originals, strict=True) for pair in zip(text, original, strict=True)}
    assert max(max(text) for text in texts) < TINY.vocab
    assert len(pairs) == len({new for new, _ in pairs}) == len({old for _, old in pairs})


def test_more_tokens_than_the_vocabulary_has_are_refused():
    trace = Trace("wide", [np.arange(200, dtype=np.int32)] * 2, [np.arange(5, dtype=np.int32)] * 2)
    with pytest.raises(TraceError, match="wide uses 200 different tokens, and the vocabulary of tiny has 97"):
        replay_case(trace, TINY, warm=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"warm": 8}, "none is left"), ({"warm": 4, "context": 500}, "a request of 530 tokens, .* takes 512")],
)
def test_what_cannot_be_measured_is_refused(trace, options, message):
    with pytest.raises(TraceError, match=message):
        replay_case(trace, TINY, dtype=torch.float32, **options)


def test_cases_share_a_model_and_random_tokens_are_a_case(trace):
    case = replay_case(trace, TINY, dtype=torch.float32, warm=4, limit=1)
    noise = replay_case("random", TINY, limit=2, warm=3, seed=4, like=case)
    assert noise.model is case.model
    assert noise.label.endswith("random tokens")
    assert noise.max_new_tokens == [192, 192]
    assert len(noise.model._forward_hooks) == 1
    with noise.forcing(1):
        assert greedy(noise.model, noise.prompts[1], 10) == noise.outputs[1][:10]
