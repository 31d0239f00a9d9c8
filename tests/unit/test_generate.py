"""The face for Transformers: options, refusals, streamers, pipelines, odd calls."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
import transformers
from transformers import DynamicCache, GenerationConfig, TextIteratorStreamer, TextStreamer
from transformers.generation.stopping_criteria import MaxTimeCriteria, StoppingCriteriaList

import pia
from pia.drafting.budget import CostCurve
from pia.errors import CacheMismatchError, ModelError, PromptError, UnsupportedOptionError
from pia.models import engine
from toys import ToySource, prompts, tiny_model

GREEDY = {"do_sample": False, "max_new_tokens": 20}


class Recorder(transformers.generation.streamers.BaseStreamer):
    def __init__(self):
        self.put_values, self.num_ends = [], 0

    def put(self, value):
        self.put_values += value.flatten().tolist()

    def end(self):
        self.num_ends += 1


@pytest.mark.parametrize("how", ["custom_generate", "accelerated"])
@pytest.mark.parametrize("batch", [1, 2])
def test_streamer_gets_every_token(how, batch):
    model = tiny_model("llama")
    prompt = prompts(1, seed=71)[0]
    if batch == 2:
        with pytest.raises(ValueError, match="batch"):  # Transformers' own streamers take one row
            model.generate(
                prompt.repeat(2, 1), streamer=TextStreamer(None), custom_generate=pia.Lookahead(budget=8), **GREEDY
            )
        return
    plain, ours = Recorder(), Recorder()
    model.generate(prompt, streamer=plain, **GREEDY)
    if how == "accelerated":
        pia.accelerate(model, pia.Lookahead(budget=8)).generate(prompt, streamer=ours, **GREEDY)
    else:
        model.generate(prompt, streamer=ours, custom_generate=pia.Lookahead(budget=8), **GREEDY)
    assert ours.put_values == plain.put_values
    assert ours.num_ends == 1


def test_text_iterator_streamer_in_a_thread(demo):
    model, tokenizer = demo
    inputs = tokenizer("Tom has 3 apples.", return_tensors="pt")
    texts = []
    for options in ({}, {"custom_generate": pia.Lookahead(budget=8)}):
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
        kwargs = dict(input_ids=inputs["input_ids"], streamer=streamer, **GREEDY, **options)
        thread = threading.Thread(target=model.generate, kwargs=kwargs)
        thread.start()
        texts.append("".join(streamer))
        thread.join()
    assert texts[0] == texts[1] and texts[0]


def test_accelerate_and_restore():
    model = tiny_model("llama")
    prompt = prompts(1, seed=72)[0]
    expected = model.generate(prompt, **GREEDY)
    lookahead = pia.Lookahead(budget=8)
    assert pia.accelerate(model, lookahead) is model
    assert torch.equal(model.generate(prompt, **GREEDY), expected)
    assert lookahead.last_stats.num_tokens == expected.shape[1] - prompt.shape[1]
    pia.accelerate(model, lookahead)  # twice is once
    pia.restore(model)
    lookahead.last_stats = None
    assert torch.equal(model.generate(prompt, **GREEDY), expected)
    assert lookahead.last_stats is None and "generate" not in vars(model)


def test_seed_decoding_kwargs():
    model = pia.accelerate(tiny_model("llama"))
    prompt = torch.tensor([[5, 6, 7, 8] * 5])
    pia.restore(model)
    expected = model.generate(prompt, **GREEDY)
    pia.accelerate(model)
    for mode in ("hier", "par", "one", "hier_mix"):
        options = {"use_lookahead": True, "decoding_length": 9, "branch_length": 4, "decoding_mode": mode}
        out = model.generate(prompt, decoding_kwargs=options, return_dict_in_generate=True, **GREEDY)
        assert torch.equal(out.sequences, expected)
        assert set(out.kwargs) == {"edls", "dls", "fts", "qts"}
        assert sum(out.kwargs["edls"]) == expected.shape[1] - prompt.shape[1]
        assert len(out.kwargs["edls"]) == len(out.kwargs["dls"]) == len(out.kwargs["fts"]) == len(out.kwargs["qts"]) + 1
        assert out.kwargs["edls"][0] == out.kwargs["dls"][0] == 1
        assert 1 < max(out.kwargs["dls"]) <= 9
        assert max(out.kwargs["edls"]) <= 5  # a branch of 4 and the model's own token
    off = model.generate(prompt, decoding_kwargs={"use_lookahead": False}, return_dict_in_generate=True, **GREEDY)
    assert torch.equal(off.sequences, expected) and not hasattr(off, "stats")


@pytest.mark.parametrize(
    "options",
    [
        {"decoding_length": 0},
        {"decoding_length": "many"},
        {"branch_length": 0},
        {"decoding_mode": "up"},
        {"decodinglength": 3},
    ],
)
def test_unknown_decoding_kwargs_are_refused(options):
    model = pia.accelerate(tiny_model("llama"))
    with pytest.raises(UnsupportedOptionError, match=next(iter(options))):
        model.generate(prompts(1)[0], decoding_kwargs=options, **GREEDY)


@pytest.mark.parametrize(
    "options",
    [
        {"budgett": 3},
        {"budget": -1},
        {"budget": "much"},
        {"max_depth": 0},
        {"shape": "bush"},
        {"namespace": 3},
        {"budget": True},
    ],
)
def test_unknown_options_are_refused(options):
    with pytest.raises(UnsupportedOptionError, match=next(iter(options))):
        pia.Lookahead(**options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("num_beams", {"num_beams": 3}),
        ("prompt_lookup_num_tokens", {"prompt_lookup_num_tokens": 3}),
        ("assistant_model", {"assistant_model": "tiny"}),
        ("output_attentions", {"output_attentions": True, "return_dict_in_generate": True}),
        ("output_hidden_states", {"output_hidden_states": True, "return_dict_in_generate": True}),
        ("dola_layers", {"dola_layers": "high"}),
        ("penalty_alpha", {"penalty_alpha": 0.6, "top_k": 4}),
    ],
)
def test_other_ways_of_decoding_are_refused_by_name(name, options):
    model = tiny_model("llama")
    if name == "assistant_model":
        options = {"assistant_model": tiny_model("llama")}
    with pytest.raises(ValueError, match=name):
        model.generate(
            prompts(1)[0], custom_generate=pia.Lookahead(budget=4), trust_remote_code=True, **GREEDY, **options
        )


def test_encoder_decoder_is_refused():
    config = transformers.T5Config(
        vocab_size=50, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0, pad_token_id=0
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    with pytest.raises(UnsupportedOptionError, match="encoder-decoder"):
        model.generate(torch.tensor([[3, 4]]), custom_generate=pia.Lookahead(budget=4), max_new_tokens=3)


def test_accelerate_needs_a_model():
    with pytest.raises(ModelError, match="generate"):
        pia.accelerate(object())


@pytest.mark.parametrize("prompt", [torch.zeros((1, 0), dtype=torch.long), [], [3, 97], [3, -1], [2**40]])
def test_bad_prompts(prompt):
    with pytest.raises(PromptError):
        list(pia.decode(tiny_model("llama"), prompt, max_new_tokens=4))


def test_prompt_beyond_learned_positions():
    model = tiny_model("gpt2")
    with pytest.raises(PromptError, match="position 599"):
        model.generate(torch.full((1, 600), 5), custom_generate=pia.Lookahead(budget=4), **GREEDY)


def test_prompt_beyond_the_context_is_refused_in_the_text_layer(demo):
    model, tokenizer = demo
    with pytest.raises(PromptError, match="context"):
        pia.generate(model, tokenizer, [5] * 5000)


def test_steps_are_of_one_request():
    rows = torch.cat(prompts(1, seed=75, longest=12) * 3)
    with pytest.raises(UnsupportedOptionError, match="3 rows"):
        pia.decode(tiny_model("llama"), rows, **GREEDY)


@pytest.mark.parametrize(
    "options",
    [{"cache_implementation": "static"}, {"use_cache": False}],
    ids=lambda o: next(iter(o)),
)
def test_calls_that_keep_their_own_cache(options, llama):
    prompt = prompts(1, seed=76)[0]
    expected = llama.generate(prompt, **GREEDY, **options)
    out = llama.generate(
        prompt, custom_generate=pia.Lookahead(budget=8), return_dict_in_generate=True, **GREEDY, **options
    )
    assert torch.equal(out.sequences, expected)
    assert out.stats.mode == "plain" and out.stats.reason


def test_a_filled_cache_goes_on(llama):
    prompt = prompts(1, seed=77)[0]
    first = llama.generate(
        prompt, return_dict_in_generate=True, past_key_values=DynamicCache(), eos_token_id=None, **GREEDY
    )
    longer = torch.cat([first.sequences, torch.tensor([[9, 8]])], dim=1)
    expected = llama.generate(longer, **GREEDY)
    out = llama.generate(
        longer, past_key_values=first.past_key_values, custom_generate=pia.Lookahead(budget=8), **GREEDY
    )
    assert torch.equal(out, expected)


def test_our_cache_goes_on_in_transformers(llama):
    prompt = prompts(1, seed=78)[0]
    first = llama.generate(
        prompt, return_dict_in_generate=True, custom_generate=pia.Lookahead(budget=8), eos_token_id=None, **GREEDY
    )
    assert first.past_key_values.get_seq_length() == first.sequences.shape[1] - 1
    longer = torch.cat([first.sequences, torch.tensor([[9, 8]])], dim=1)
    out = llama.generate(longer, past_key_values=first.past_key_values, **GREEDY)
    assert torch.equal(out, llama.generate(longer, **GREEDY))


def test_cache_of_a_larger_vocabulary_is_refused(llama):
    lookahead = pia.Lookahead(cache=pia.DraftCache(vocab_size=5000))
    with pytest.raises(CacheMismatchError, match="5000"):
        llama.generate(prompts(1)[0], custom_generate=lookahead, **GREEDY)


def test_smaller_vocabulary_than_the_models_embeddings(llama):
    """Embeddings are often padded beyond the tokenizer; an id from there must not end a generation."""
    lookahead = pia.Lookahead(cache=pia.DraftCache(vocab_size=90), budget=8)
    for prompt in prompts(12, seed=79):
        prompt = prompt.clamp(max=89)
        expected = llama.generate(prompt, eos_token_id=None, **GREEDY)
        out = llama.generate(prompt, eos_token_id=None, custom_generate=lookahead, **GREEDY)
        assert torch.equal(out, expected)


def test_drafts_that_never_pay_are_not_verified(monkeypatch):
    """Random text: the engine stops drafting and says how often it verified anything."""
    monkeypatch.setattr(engine, "measure_costs", lambda *args, **kwargs: CostCurve([1, 64], [1.0, 4.0]))
    llama, prompt = tiny_model("llama"), prompts(1, seed=80)[0]
    source = ToySource(llama.generate(prompt, do_sample=False, max_new_tokens=200, eos_token_id=None)[0].tolist(), 0.0)
    lookahead = pia.Lookahead(cache=source)
    for _ in range(2):
        out = llama.generate(
            prompt,
            do_sample=False,
            max_new_tokens=200,
            eos_token_id=None,
            custom_generate=lookahead,
            return_dict_in_generate=True,
        )
    late = np.array(out.kwargs["dls"][100:])
    assert (late > 1).mean() < 0.05


def test_namespaces_do_not_draft_for_each_other(llama):
    prompt = prompts(1, seed=81)[0]
    cache = pia.DraftCache()
    ours, theirs = (pia.Lookahead(cache, budget=8, namespace=name) for name in ("ours", "theirs"))
    for _ in range(2):
        llama.generate(prompt, custom_generate=ours, eos_token_id=None, **GREEDY)
    assert ours.last_stats.accepted_by_source["shared"] > 0
    llama.generate(prompt, custom_generate=theirs, eos_token_id=None, **GREEDY)
    assert theirs.last_stats.accepted_by_source["shared"] == 0


def test_pipeline(demo):
    model, tokenizer = demo
    pipeline = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    question = "Tom has 3 apples and buys 4 more. How many apples does he have?"
    options = {"max_new_tokens": 40, "do_sample": False, "return_full_text": False}
    expected = pipeline(question, **options)
    lookahead = pia.Lookahead(budget=8)
    pia.accelerate(model, lookahead)
    try:
        assert pipeline(question, **options) == expected
    finally:
        pia.restore(model)
    assert lookahead.last_stats.num_tokens > 0


def test_an_unbound_cache_meets_a_smaller_model():
    """What a larger model taught may hold ids that this one has no embedding for."""
    cache = pia.DraftCache()
    cache.insert([5, 6, 96, 5, 6, 96, 5, 6, 96])
    model = tiny_model("llama")
    model.resize_token_embeddings(50)
    prompt = torch.tensor([[5, 6, 7, 5, 6]])
    expected = model.generate(prompt, eos_token_id=None, **GREEDY)
    assert torch.equal(
        model.generate(prompt, eos_token_id=None, custom_generate=pia.Lookahead(cache, budget=8), **GREEDY), expected
    )


def test_a_cache_cannot_be_bound_below_what_it_learned():
    cache = pia.DraftCache()
    cache.insert([5, 6, 96])
    with pytest.raises(CacheMismatchError, match="96"):
        cache.bind(50)


def test_criteria_of_many_kinds(llama):
    """Python booleans, time limits and configuration objects work as they do plainly."""
    prompt = prompts(1, seed=83)[0]
    config = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    for criteria in (
        [lambda ids, scores, **_: ids.shape[1] > prompt.shape[1] + 4],
        [lambda ids, scores, **_: torch.tensor([ids.shape[1] > prompt.shape[1] + 4])],
        [MaxTimeCriteria(0.0)],
        [MaxTimeCriteria(1000.0)],
    ):
        expected = llama.generate(prompt, generation_config=config, stopping_criteria=StoppingCriteriaList(criteria))
        out = llama.generate(
            prompt,
            generation_config=config,
            stopping_criteria=StoppingCriteriaList(criteria),
            custom_generate=pia.Lookahead(budget=8),
        )
        assert torch.equal(out, expected)


def test_embeddings_without_ids(llama):
    embeddings = llama.get_input_embeddings()(prompts(1, seed=84)[0]).detach()
    expected = llama.generate(inputs_embeds=embeddings, **GREEDY)
    out = llama.generate(inputs_embeds=embeddings, custom_generate=pia.Lookahead(budget=8), **GREEDY)
    assert torch.equal(out, expected)


def test_a_callers_cache_is_filled(llama):
    prompt = prompts(1, seed=85)[0]
    cache = DynamicCache()
    out = llama.generate(prompt, past_key_values=cache, custom_generate=pia.Lookahead(budget=8), **GREEDY)
    assert cache.get_seq_length() == out.shape[1] - 1


def test_a_streamer_that_raises_leaves_no_trace(llama):
    class Broken(Recorder):
        def put(self, value):
            super().put(value)
            if len(self.put_values) > 30:
                raise RuntimeError("broken streamer")

    lookahead = pia.Lookahead(budget=4)
    prompt = torch.full((1, 25), 5)
    with pytest.raises(RuntimeError, match="broken streamer") as held:  # the exception is kept, as a future would
        llama.generate(prompt, streamer=Broken(), custom_generate=lookahead, eos_token_id=None, **GREEDY)
    assert held.value is not None
    assert lookahead.cache.request_memory_usage == 0
    assert lookahead.cache.num_tokens == 0


def test_processors_run_without_gradients(llama):
    seen = []

    def processor(ids, scores):
        seen.append(torch.is_grad_enabled())
        return scores

    list(pia.decode(llama, [5, 6, 7], max_new_tokens=4, logits_processor=[processor], eos_token_id=None))
    assert seen == [False] * 4


def test_an_accelerated_model_can_be_copied():
    model = pia.accelerate(tiny_model("llama"))
    prompt = prompts(1, seed=86)[0]
    twin = copy.deepcopy(model)
    assert torch.equal(twin.generate(prompt, **GREEDY), model.generate(prompt, **GREEDY))
    pia.restore(model)
    assert twin.generate.args[0] is twin


def test_positional_generation_config_with_stop_strings(demo):
    model, tokenizer = demo
    ids = tokenizer("Tom has 3 apples.", return_tensors="pt")["input_ids"]
    config = GenerationConfig(max_new_tokens=40, do_sample=False, stop_strings=["."], eos_token_id=3, pad_token_id=0)
    expected = model.generate(ids, config, tokenizer=tokenizer)
    pia.accelerate(model)
    try:
        assert torch.equal(model.generate(ids, config, tokenizer=tokenizer), expected)
    finally:
        pia.restore(model)


def test_bfloat16_runs():
    """Half precision rounds by shape, so only the mechanics are compared: lengths, statistics, no error."""
    model = tiny_model("llama").to(torch.bfloat16)
    out = model.generate(
        prompts(1, seed=87)[0],
        custom_generate=pia.Lookahead(budget=8),
        return_dict_in_generate=True,
        eos_token_id=None,
        **GREEDY,
    )
    assert out.stats.num_tokens == 20 and out.stats.mode == "tree"


def test_costs_are_measured_once_for_a_model(monkeypatch):

    calls = []
    measure = engine.measure_costs
    monkeypatch.setattr(engine, "measure_costs", lambda *args, **kwargs: calls.append(1) or measure(*args, **kwargs))
    model = tiny_model("llama")
    for _ in range(3):
        list(pia.decode(model, [5, 6, 7], max_new_tokens=2))
    assert len(calls) == 1
    model.double()
    list(pia.decode(model, [5, 6, 7], max_new_tokens=2))
    assert len(calls) == 2
