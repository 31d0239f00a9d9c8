"""Every row of the table of families, proved on tiny random weights."""

from __future__ import annotations

from functools import cache

import pytest
import transformers
from checks import check_batch, check_generation, check_tree_rows, prompts
from test_own_families import MAKERS as OWN_MAKERS
from zoo import VOCAB, ZOO, build, is_known
from zoo_recurrent import ROWS as STATEFUL_ROWS

from pia.models.capability import mask_kind
from pia.models.families import PLAIN, TREE, all_families
from pia.models.profile import capability_of

ROWS = {family.name: family for family in all_families() if family.name in ZOO}
WHOLE = (
    "llama", "mistral", "mixtral (window)", "opt", "bloom", "gpt2", "gptj", "qwen2", "gemma2", "gemma3_text", "phi3",
    "qwen3", "qwen3_moe", "deepseek_v3", "gpt_oss", "llama4_text", "gpt_neox", "falcon", "falcon (alibi)", "cohere2",
    "olmo3", "granite", "glm4", "smollm3", "starcoder2", "mpt", "stablelm", "deepseek_v32", "gpt_neo",
)  # fmt: skip
"""Families that are shown more prompts in the quick suite."""
NO_FLOAT64 = {"xglm"}
"""Models of Transformers that fail in float64 by themselves."""

families = pytest.mark.parametrize("name", sorted(ROWS))


@cache
def model_of(name):
    if not is_known(name):
        pytest.skip(f"Transformers {transformers.__version__} has no {ZOO[name][0]} like this")
    return build(name)


def double(name):
    """A copy for exact comparisons. Experts have kernels for single precision only, besides the plain loop."""
    model_of(name)
    model = build(name)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model if name in NO_FLOAT64 else model.double()


def test_the_table_and_the_zoo_are_one():
    """Every row has its tests: here, in test_recurrent.py, or in test_own_families.py; and every test has its row."""
    rows = [(family.name, family.architecture, family.mode) for family in all_families()]
    tested = [(name, ZOO[name][0], ROWS[name].mode) for name in ZOO]
    tested += [(row.name, row.model, row.mode) for row in STATEFUL_ROWS]
    own = [(maker().config.model_type, type(maker()).__name__, TREE) for maker in OWN_MAKERS.values()]
    assert sorted(rows) == sorted(tested + own)
    assert set(WHOLE) <= set(ROWS)


@pytest.mark.parametrize("row", STATEFUL_ROWS, ids=lambda row: row.name)
def test_capability_of_families_with_a_state_is_that_of_the_table(row):
    family = next(family for family in all_families() if family.name == row.name)
    assert row.reason in family.note
    if row.is_known:
        capability = capability_of(row.build(), self_check=True)
        assert capability.mode.label == family.mode and family.note in capability.reason
        assert not capability.can_batch


def test_capability_of_own_families_is_that_of_the_table():
    for maker in OWN_MAKERS.values():
        capability = capability_of(maker(), self_check=True)
        assert capability.can_verify_trees and capability.can_batch


@families
def test_capability_is_that_of_the_table(name):
    model, row = model_of(name), ROWS[name]
    capability = capability_of(model, self_check=True)
    assert capability.mode.label == row.mode, capability.reason
    assert capability.can_batch == row.can_batch
    assert row.note in capability.reason
    if row.mode == TREE:
        assert mask_kind(model) == row.masks


@families
def test_tree_rows_are_the_logits_of_their_paths(name):
    if ROWS[name].mode == PLAIN:
        pytest.skip("one token at a time")
    check_tree_rows(double(name), can_branch=ROWS[name].mode == TREE)


@families
def test_greedy_output_is_that_of_plain_generate(name):
    drafted, accepted = check_generation(model_of(name), prompts(6 if name in WHOLE else 2, VOCAB, seed=7))
    assert_drafts_counted(name, drafted, accepted)


@pytest.mark.slow
@families
def test_greedy_output_over_50_prompts(name):
    drafted, accepted = check_generation(model_of(name), prompts(50, VOCAB, seed=17, longest=60))
    assert_drafts_counted(name, drafted, accepted)


@families
def test_sampled_output_is_that_of_plain_generate(name):
    texts = prompts(2, VOCAB, seed=27)
    drafted, accepted = check_generation(model_of(name), texts, do_sample=True, temperature=0.8, top_k=20)
    assert_drafts_counted(name, drafted, accepted)


@families
def test_rows_of_a_batch_are_as_alone(name):
    lookahead = check_batch(model_of(name), prompts(5, VOCAB, seed=37), can_batch=ROWS[name].can_batch)
    stats = lookahead.last_stats
    assert (stats.mode == TREE) == ROWS[name].can_batch
    assert stats.num_accepted > 0 or not ROWS[name].can_batch


def assert_drafts_counted(name, drafted, accepted):
    """Drafts were really accepted and rejected, or equality would prove nothing."""
    if ROWS[name].mode == PLAIN:
        assert drafted == 0
    else:
        assert 0 < accepted < drafted


@pytest.mark.parametrize("name", ["mistral", "gemma3_text", "llama4_text", "bloom", "gpt_neo", "deepseek_v32"])
def test_the_checks_can_fail(name, monkeypatch):
    """Negative controls: with the masks of a model that sees everything, or without the adapter, rows are wrong."""
    from pia.models import masks, runner

    model = double(name)
    monkeypatch.setattr(masks._Window, "__call__", lambda self, queries, slots: slots >= 0 * queries)
    monkeypatch.setattr(masks._Chunk, "__call__", lambda self, queries, slots: slots >= 0 * queries)
    monkeypatch.setattr(runner, "adapter_of", lambda model: None)
    if name == "deepseek_v32":
        monkeypatch.setattr(runner.SlabRunner, "keep", keep_in_order)
    with pytest.raises((AssertionError, ValueError)):
        check_tree_rows(model)


def keep_in_order(self, kept):
    """Keeps as many slots, but the first ones."""
    self.cache.keep([range(len(rows)) for rows in kept])
