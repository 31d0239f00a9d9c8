"""Steps as captured graphs and as functions of tensors: logits, text and cache are those of the model itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from checks import prompts
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_graphs import RecordedGraphs
from zoo import ZOO, build, is_known

import pia
import pia.plan
from pia.drafting.shape import ancestors
from pia.drafting.tree import DraftTree
from pia.models.attention.probe import probed
from pia.models.attention.reference import reference_attention
from pia.models.capability import declared_capability
from pia.models.engine import Engine, engine_of_steps, find_engine
from pia.models.layout import layout
from pia.models.runner import SlabRunner
from pia.models.self_check import why_not_right
from pia.models.static import graph_steps
from pia.models.static.captured import GraphRunner
from pia.models.static.compiled import CompiledRunner, Programs
from pia.models.static.graph_steps import GraphSteps, StepsBusyError
from pia.models.static.inputs import StepInputs
from pia.models.static.programs import _example
from pia.models.static.support import why_not_static
from pia.models.static.weights import WeightsWatch, weights_digest
from toys import VOCAB, ToySource, tiny_model

SIZES = (1, 4, 8, 16)
FEW = ("llama", "gpt2", "mistral", "qwen2 (windows)", "gemma2")
LOOKS_AT_VALUES = {"dbrx", "gemma3n_text", "longcat_flash"}
KEEPS_MORE = {"axk2", "deepseek_v32", "dots3_note_text", "glm_moe_dsa", "hy_v4"}


@pytest.fixture(autouse=True)
def _short_texts(monkeypatch):
    monkeypatch.setattr(graph_steps, "LEAST_SLOTS", 32)


def random_tree(rng: np.random.Generator, most: int) -> DraftTree:
    size = int(rng.integers(0, most + 1))
    parents = [int(rng.integers(-1, node)) for node in range(size)]
    ids = rng.integers(3, VOCAB, size).astype(np.int32)
    probs = np.linspace(0.9, 0.1, size, dtype=np.float32)
    return DraftTree(ids, np.array(parents, np.int32), probs, np.zeros(size, np.uint8))


def compare(
    model, expected: SlabRunner, runner: SlabRunner, seed: int, num_steps: int = 12, atol: float = 1e-9
) -> None:
    """Both decode the same text by the same trees; logits and what the caches keep must be equal."""
    rng = np.random.default_rng(seed)
    text = torch.tensor(rng.integers(3, VOCAB, 9 + 5 * seed))
    assert torch.equal(expected.prefill([text]), runner.prefill([text]))
    for _ in range(num_steps):
        tree, token = random_tree(rng, 11), int(rng.integers(3, VOCAB))
        logits, wanted = runner.forward([token], [tree]), expected.forward([token], [tree])
        torch.testing.assert_close(logits, wanted, rtol=0, atol=atol)
        kept = [0, *(node + 1 for node in ancestors(tree.parents.tolist(), int(rng.integers(-1, len(tree)))))]
        for one in (expected, runner):
            one.keep([kept])
    wanted_cache, cache = expected.cache.as_dynamic(), runner.cache.as_dynamic()
    for mine, other in zip(cache.layers, wanted_cache.layers, strict=True):
        torch.testing.assert_close(mine.keys, other.keys, rtol=0, atol=atol)
        torch.testing.assert_close(mine.values, other.values, rtol=0, atol=atol)


@pytest.mark.parametrize("name", FEW)
def test_replayed_steps_equal_direct_ones(name):
    model = build(name).double()
    graphs = RecordedGraphs()
    steps = GraphSteps(model, graphs)
    for seed in range(4):
        compare(model, SlabRunner(model), GraphRunner(model, steps.take(), SIZES), seed)
    captured = graphs.num_captures
    compare(model, SlabRunner(model), GraphRunner(model, steps.take(), SIZES), 3)
    assert graphs.num_captures == captured, "a request like one before it is captured anew"
    assert graphs.num_replays >= 12 * 5


@pytest.mark.parametrize("name", FEW)
def test_replayed_steps_attend_without_masks(name):
    model = build(name).double()
    reason = probed(model, reference_attention).reason
    if reason is not None:  # Transformers 5.19 leaves Gemma 2's softcap out under a mask
        pytest.skip(reason)
    graphs = RecordedGraphs()
    steps = GraphSteps(model, graphs, choose_attention=lambda num_slots, size: reference_attention)
    for seed in range(2):  # Gemma's softmax is float32 whatever the dtype
        compare(model, SlabRunner(model), GraphRunner(model, steps.take(), SIZES), seed, atol=1e-5)


def test_steps_are_captured_anew_when_the_slab_grows():
    model = build("llama").double()
    graphs = RecordedGraphs()
    steps = GraphSteps(model, graphs)
    compare(model, SlabRunner(model), GraphRunner(model, steps.take(), SIZES), 0, num_steps=2)
    lay_at, captured = steps.cache.blocks[0].data.data_ptr(), graphs.num_captures
    runner = GraphRunner(model, steps.take(), SIZES)
    runner.prefill([torch.arange(2000) % VOCAB])
    assert steps.cache.blocks[0].data.data_ptr() != lay_at
    expected = SlabRunner(model)
    expected.prefill([torch.arange(2000) % VOCAB])
    tree = random_tree(np.random.default_rng(5), 7)
    torch.testing.assert_close(runner.forward([4], [tree]), expected.forward([4], [tree]), rtol=0, atol=1e-9)
    assert graphs.num_captures > captured


def test_larger_trees_go_through_the_model():
    model = build("llama").double()
    graphs = RecordedGraphs()
    runner, expected = GraphRunner(model, GraphSteps(model, graphs).take(), (1, 4)), SlabRunner(model)
    compare(model, expected, runner, 1)
    assert graphs.num_captures


def test_an_infinity_of_the_last_request_does_not_spoil_the_next():
    model = build("llama").double()
    steps = GraphSteps(model, RecordedGraphs())
    runner = GraphRunner(model, steps.take(), SIZES)
    runner.prefill([torch.arange(3, 60)])
    with torch.inference_mode():
        for block in steps.cache.blocks:
            block.data.fill_(float("inf"))
    del runner
    compare(model, SlabRunner(model), GraphRunner(model, steps.take(), SIZES), 0)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_family_is_captured_or_refused(name):
    if not is_known(name):
        pytest.skip("this release of Transformers does not have it")
    model = build(name)
    capability = declared_capability(model)
    if why_not_static(model, capability) is not None:
        return
    steps = GraphSteps(model, RecordedGraphs())
    assert why_not_right(model, partial(GraphRunner, model, steps.take())) is None
    expected = "looks at values" if name in LOOKS_AT_VALUES else "more than keys" if name in KEEPS_MORE else "None"
    assert expected in str(steps.failure)


def graph_engine(model, graphs: RecordedGraphs) -> Engine:
    return engine_of_steps(GraphSteps(model, graphs), "graph", "recorded")


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_whole_generations_are_those_of_generate(name, monkeypatch):
    model = tiny_model(name)
    graphs = RecordedGraphs()
    engine = graph_engine(model, graphs)
    monkeypatch.setattr(pia.plan, "engine_of", lambda *_: engine)
    accepted = rejected = 0
    for number, prompt in enumerate(prompts(6, VOCAB)):
        kwargs = dict(max_new_tokens=25, do_sample=number % 2 == 1, eos_token_id=None)
        torch.manual_seed(number)
        expected = model.generate(prompt, **kwargs)
        lookahead = pia.Lookahead(ToySource(expected[0].tolist(), 0.7, seed=number), budget=10)
        torch.manual_seed(number)
        output = model.generate(prompt, custom_generate=lookahead, return_dict_in_generate=True, **kwargs)
        assert output.sequences.tolist() == expected.tolist()
        assert (output.stats.engine, output.stats.engine_reason) == ("graph", "recorded")
        accepted += output.stats.num_accepted
        rejected += output.stats.num_drafted - output.stats.num_accepted
    assert graphs.num_replays > 20 and accepted and rejected


def test_a_cache_handed_out_is_not_written_over(monkeypatch):
    model = tiny_model("llama")
    engine = graph_engine(model, RecordedGraphs())
    monkeypatch.setattr(pia.plan, "engine_of", lambda *_: engine)
    kwargs = dict(max_new_tokens=9, do_sample=False, return_dict_in_generate=True, eos_token_id=None)
    first, second = prompts(2, VOCAB)
    output = model.generate(first, custom_generate=pia.Lookahead(), **kwargs)
    keys = output.past_key_values.layers[0].keys.clone()
    model.generate(second, custom_generate=pia.Lookahead(), **kwargs)
    assert torch.equal(output.past_key_values.layers[0].keys, keys)


def test_a_second_request_at_the_same_time_runs_the_model_as_it_is(monkeypatch):
    model = tiny_model("llama")
    engine = graph_engine(model, RecordedGraphs())
    monkeypatch.setattr(pia.plan, "engine_of", lambda *_: engine)
    lookahead = pia.Lookahead()
    options = dict(custom_generate=lookahead, max_new_tokens=4, do_sample=False)
    prompt = prompts(1, VOCAB)[0]
    model.generate(prompt, **options)  # measures what steps cost
    first = engine.new_runner(model)
    model.generate(prompt, **options)
    assert lookahead.last_stats.engine == "eager" and "another request" in lookahead.last_stats.engine_reason
    with pytest.raises(StepsBusyError, match="another request"):
        engine.new_runner(model)
    del first
    model.generate(prompt, **options)
    assert lookahead.last_stats.engine == "graph"


def test_threads_share_a_model_without_harm(monkeypatch):
    model = tiny_model("llama")
    engine = graph_engine(model, RecordedGraphs())
    monkeypatch.setattr(pia.plan, "engine_of", lambda *_: engine)
    texts = prompts(8, VOCAB)
    options = dict(max_new_tokens=12, do_sample=False, eos_token_id=None)
    expected = [model.generate(text, **options).tolist() for text in texts]
    lookahead = pia.Lookahead()
    with ThreadPoolExecutor(4) as pool:
        outputs = pool.map(lambda text: model.generate(text, custom_generate=lookahead, **options).tolist(), texts)
        assert list(outputs) == expected


@pytest.mark.parametrize("ending", ["exception", "left alone"])
def test_a_broken_off_request_gives_the_steps_free(ending, monkeypatch):
    model = tiny_model("llama")
    engine = graph_engine(model, RecordedGraphs())
    monkeypatch.setattr(pia.plan, "engine_of", lambda *_: engine)
    lookahead = pia.Lookahead()
    prompt = prompts(1, VOCAB)[0]
    options = dict(custom_generate=lookahead, max_new_tokens=20, do_sample=False, eos_token_id=None)
    model.generate(prompt, **options)
    if ending == "exception":

        def refuse(ids, scores):
            if ids.shape[1] > prompt.shape[1] + 3:
                raise KeyboardInterrupt
            return scores

        with pytest.raises(KeyboardInterrupt) as held:  # the exception holds the frames, as a notebook does
            model.generate(prompt, logits_processor=[refuse], **options)
        assert held.tb is not None
    else:
        steps = pia.decode(model, prompt[0].tolist(), lookahead=lookahead, max_new_tokens=20)
        next(steps)
        steps.close()
    model.generate(prompt, **options)
    assert lookahead.last_stats.engine == "graph"


def test_a_capture_that_fails_does_not_end_the_request(monkeypatch, caplog):
    model = tiny_model("llama")
    graphs = RecordedGraphs()
    engine = graph_engine(model, graphs)
    monkeypatch.setattr(pia.plan, "engine_of", lambda *_: engine)
    prompt = prompts(1, VOCAB)[0]
    options = dict(max_new_tokens=12, do_sample=False, eos_token_id=None)
    expected = model.generate(prompt, **options)
    source = ToySource(expected[0].tolist(), 0.7)

    def fail(function):
        raise torch.OutOfMemoryError("no memory for a graph")

    monkeypatch.setattr(graphs, "capture", fail)
    for words in ("recorded", "no memory for a graph"):
        lookahead = pia.Lookahead(source, budget=6)
        assert model.generate(prompt, custom_generate=lookahead, **options).tolist() == expected.tolist()
        assert words in lookahead.last_stats.engine_reason
    assert "goes on without captured steps" in caplog.text


def test_adapters_are_not_captured():
    peft = pytest.importorskip("peft")
    model = build("llama")
    capability = declared_capability(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=2))
    assert "adapters" in why_not_static(adapted.base_model.model.eval(), capability)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.sampled_from([1, 4, 16, 64, 65, 128]))
def test_step_inputs_say_who_sees_whom(seed, size):
    tree = random_tree(np.random.default_rng(seed), size - 1)
    inputs = StepInputs(size, torch.device("cpu"))
    inputs.load(7, random_tree(np.random.default_rng(seed + 1), size - 1), 3)  # is overwritten whole
    inputs.load(5, tree, 40)
    depths, visible = layout(tree)
    used = len(tree) + 1
    assert inputs.start.tolist() == [40]
    assert inputs.ids[0].tolist() == [5, *tree.token_ids.tolist(), *[0] * (size - used)]
    assert inputs.depths[0].tolist() == [*depths.tolist(), *[0] * (size - used)]
    wanted = np.eye(size, dtype=bool)
    wanted[:used, :used] = visible
    assert np.array_equal(inputs.visible()[0].numpy(), wanted)


def step_programs(model) -> Programs:
    """The step itself in place of compiled programs."""
    module, _ = _example(model, 8)
    return Programs(module, module, WeightsWatch(model))


@pytest.mark.parametrize("name", FEW)
def test_programs_run_on_the_slab(name):
    model = build(name).double()
    for seed in range(2):
        compare(model, SlabRunner(model), CompiledRunner(model, step_programs(model)), seed)


@pytest.mark.parametrize("kind", ["compiled", "captured"])
def test_hooks_on_the_whole_model_are_called(kind):
    model = build("llama")
    seen = []

    def force(module, args, kwargs, output):
        seen.append(kwargs["position_ids"].tolist())
        output.logits = output.logits.clone()
        output.logits[..., 11] = 1e9
        return output

    if kind == "compiled":
        runner = CompiledRunner(model, step_programs(model))
    else:
        runner = GraphRunner(model, GraphSteps(model, RecordedGraphs()).take(), SIZES)
    runner.prefill([torch.arange(3, 20)])
    model.register_forward_hook(force, with_kwargs=True)
    logits = runner.forward([4], [DraftTree.chain([5, 6])])
    assert logits.argmax(-1).tolist() == [[11, 11, 11]] and seen == [[[17, 18, 19]]]


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.lm_head.weight.data.add_(1e-3),
        lambda model: model.load_state_dict({k: v * 1.01 for k, v in model.state_dict().items()}),
        lambda model: setattr(model.lm_head, "weight", torch.nn.Parameter(model.lm_head.weight.detach().clone())),
        lambda model: model.model.layers[0].mlp.up_proj.weight.detach().mul_(2),
    ],
    ids=["data", "load", "replaced", "in place"],
)
def test_changed_weights_are_noticed(change):
    model = build("llama")
    digest, watch = weights_digest(model), WeightsWatch(model)
    assert not watch.has_changed() and weights_digest(build("llama")) == digest
    change(model)
    assert watch.has_changed()


def test_what_a_program_would_not_follow_is_said():
    capability = declared_capability(build("llama"))
    model = build("llama")
    assert why_not_static(model, capability) is None
    model.train()
    assert "model.eval()" in why_not_static(model, capability)
    model.eval()
    handle = model.model.layers[0].register_forward_hook(lambda *_: None)
    assert "hooks" in why_not_static(model, capability)
    handle.remove()
    with torch.autocast("cpu"):
        assert "autocast" in why_not_static(model, capability)
    bloom = build("bloom")
    assert "slots" in why_not_static(bloom, declared_capability(bloom))


def test_cuda_graphs_need_cuda():
    model = build("llama")
    engine = find_engine(model, declared_capability(model), "graph")
    assert engine.name == "eager" and "CUDA device" in engine.reason
