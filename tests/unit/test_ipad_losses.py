"""The loss of distillation: right beside the plain calculation, and small in memory whatever the vocabulary."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from pia.ipad.divergences import forward_kl, generalised_jsd, reverse_kl
from pia.ipad.losses import ChunkedLoss, Objective, hidden_loss
from pia.ipad.targets import DenseTargets, SparseTargets

OBJECTIVES = [
    Objective("forward_kl", temperature=1, lm_weight=0.3),
    Objective("forward_kl", temperature=2.5, lm_weight=0.3),
    Objective("reverse_kl", temperature=1, lm_weight=0),
    Objective("reverse_kl", temperature=0.5, lm_weight=0.1),
    Objective("jsd", jsd_beta=0.5, temperature=1, lm_weight=0.2),
    Objective("jsd", jsd_beta=0.1, temperature=3, lm_weight=0),
    Objective(lm_weight=1),
]


def case(num=23, hidden=6, vocab=31, dtype=torch.float64):
    torch.manual_seed(0)
    return {
        "hidden": torch.randn(num, hidden, dtype=dtype, requires_grad=True),
        "head": torch.randn(vocab, hidden, dtype=dtype, requires_grad=True),
        "teacher": 2 * torch.randn(num, vocab, dtype=dtype),
        "ids": torch.randint(vocab, (num,)),
        "weights": torch.rand(num, dtype=dtype),
    }


def dense(teacher):
    return DenseTargets(teacher, lambda hidden: hidden)


def chunked(given, targets, objective, max_logits):
    loss = ChunkedLoss(
        lambda hidden: hidden @ given["head"].T, targets, given["ids"], given["weights"], objective, max_logits
    )
    return loss(given["hidden"], [given["head"]], len(given["head"]))


def naive(given, teacher, objective):
    """By the textbook, over probabilities."""
    logits = given["hidden"] @ given["head"].T
    q = torch.softmax(logits / objective.temperature, -1)
    p = torch.softmax(teacher / objective.temperature, -1)
    return _mixed(given, logits, p, q, objective)


def _mixed(given, logits, p, q, objective):
    m = objective.jsd_beta * p + (1 - objective.jsd_beta) * q
    divergence = {
        "forward_kl": (p * (p / q).log()).sum(-1),
        "reverse_kl": (q * (q / p).log()).sum(-1),
        "jsd": objective.jsd_beta * (p * (p / m).log()).sum(-1)
        + (1 - objective.jsd_beta) * (q * (q / m).log()).sum(-1),
    }[objective.divergence] * objective.temperature**2
    lm = functional.cross_entropy(logits, given["ids"], reduction="none")
    total = (1 - objective.lm_weight) * divergence + objective.lm_weight * lm
    return tuple((part * given["weights"]).sum() for part in (total, divergence, lm))


def assert_same(given, found, expected, has_teacher=True):
    inputs = [given["hidden"], given["head"]]
    for one, other in zip(torch.autograd.grad(found[0], inputs), torch.autograd.grad(expected[0], inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    for one, other in zip(found[: None if has_teacher else 1], expected, strict=False):
        torch.testing.assert_close(one.detach(), other.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("max_logits", [1, 31 * 7, 10**6])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_pieces_add_up_to_the_plain_calculation(objective, max_logits):
    given = case()
    targets = dense(given["teacher"]) if objective.lm_weight < 1 else None
    found = chunked(given, targets, objective, max_logits)
    assert_same(given, found, naive(given, given["teacher"], objective), targets is not None)


@pytest.mark.parametrize("objective", OBJECTIVES[:-1], ids=str)
def test_sparse_targets_join_the_other_tokens_in_one(objective):
    given = case()
    probs = torch.softmax(given["teacher"] / objective.temperature, -1)
    top = probs.topk(5)
    rest = 1 - top.values.sum(-1)
    targets = SparseTargets(top.indices, top.values.log(), rest.log(), objective.temperature)
    found = chunked(given, targets, objective, 31 * 4)
    logits = given["hidden"] @ given["head"].T
    student = torch.softmax(logits / objective.temperature, -1)
    kept = student.gather(-1, top.indices)
    q = torch.cat([kept, 1 - kept.sum(-1, keepdim=True)], -1)
    p = torch.cat([top.values, rest[:, None]], -1)
    assert_same(given, found, _mixed(given, logits, p, q, objective))


def test_all_tokens_but_one_as_sparse_targets_are_the_dense_ones():
    given = case()
    log_probs, ids = torch.log_softmax(given["teacher"], -1).sort(descending=True)
    sparse = SparseTargets(ids[:, :-1], log_probs[:, :-1], log_probs[:, -1], 1.0)
    objective = Objective()
    assert_same(given, chunked(given, sparse, objective, 99), naive(given, given["teacher"], objective))


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl, lambda p, q: generalised_jsd(p, q, 0.3)])
def test_equal_distributions_do_not_diverge(divergence):
    logits = torch.log_softmax(torch.randn(5, 11, dtype=torch.float64), -1)
    assert divergence(logits, logits).abs().max() < 1e-14
    assert (divergence(logits, torch.log_softmax(torch.randn(5, 11, dtype=torch.float64), -1)) > 0).all()


def test_tied_heads_get_the_gradients_of_both_ends():
    given = case(num=12)
    given["hidden"] = given["head"][given["ids"]].tanh()  # an embedding that is the head too
    objective = Objective(lm_weight=0.5)
    expected = torch.autograd.grad(naive(given, given["teacher"], objective)[0], given["head"], retain_graph=True)[0]
    found = torch.autograd.grad(chunked(given, dense(given["teacher"]), objective, 40)[0], given["head"])[0]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_head_that_is_not_trained_gets_no_gradient():
    given = case()
    loss = ChunkedLoss(
        lambda hidden: hidden @ given["head"].detach().T, dense(given["teacher"]), given["ids"], given["weights"],
        Objective(), 99,
    )  # fmt: skip
    loss(given["hidden"], [], 31).total.backward()
    assert given["hidden"].grad.abs().sum() > 0 and given["head"].grad is None


def largest_tensors(vocab, max_logits):
    """Elements of the largest tensors alive with a graph: saved for backward, or made by the head."""
    given = case(num=64, hidden=4, vocab=vocab, dtype=torch.float32)
    made, saved = [], []

    def logits(hidden):
        made.append(hidden.shape[0] * vocab)
        return hidden @ given["head"].T

    def pack(tensor):
        saved.append(tensor.numel())
        return tensor

    targets = DenseTargets(torch.randn(64, 4), lambda hidden: hidden @ torch.ones(4, vocab))
    loss = ChunkedLoss(logits, targets, given["ids"] % vocab, given["weights"], Objective(), max_logits)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(given["hidden"], [given["head"]], vocab).total.backward()
    return max(made), max(numel for numel in saved if numel != given["head"].numel())


def test_logits_alive_do_not_grow_with_the_vocabulary():
    for vocab in (100, 1000, 4000):
        assert max(largest_tensors(vocab, 4096)) <= 4096
    assert largest_tensors(1000, 10**9)[0] == 64_000


def test_weightless_and_infinite_cases():
    given = case()
    given["weights"] = torch.zeros_like(given["weights"])
    assert chunked(given, dense(given["teacher"]), Objective(), 64).total.item() == 0
    certain = torch.full((23, 31), -1e9, dtype=torch.float64)
    certain[:, 3] = 0
    given["weights"] = torch.ones_like(given["weights"])
    assert math.isfinite(chunked(given, dense(certain), Objective(), 64).total.item())


def test_hidden_states_are_compared_by_direction_in_the_channels_that_stay():
    torch.manual_seed(0)
    teacher, weights = torch.randn(9, 8), torch.rand(9)
    channels = torch.tensor([1, 4, 6])
    assert hidden_loss(3 * teacher[:, channels], teacher, weights, channels).abs() < 1e-5
    assert torch.isclose(hidden_loss(-teacher, teacher, weights, None), 2 * weights.sum())
