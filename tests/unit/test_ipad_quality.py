"""Figures of quality, beside the plain calculation over whole logits."""

from __future__ import annotations

import pytest
import torch

from ipad_support import random_rows, small_llama
from pia.errors import ShrinkError
from pia.ipad.data import Row, Rows, make_batch
from pia.ipad.quality import measure


def plain(model, teacher, rows):
    batch = make_batch(rows, range(len(rows)))
    counted = batch.weights[:, 1:] == 1
    one, other = (m(batch.ids).logits[:, :-1].log_softmax(-1)[counted] for m in (model, teacher))
    nll = -one.gather(-1, batch.ids[:, 1:][counted][:, None]).mean()
    kl = (other.exp() * (other - one)).sum(-1).mean()
    return nll.item(), kl.item(), (one.argmax(-1) == other.argmax(-1)).double().mean().item(), int(counted.sum())


@pytest.mark.parametrize("sizes", [(100, 150), (10**6, 10**6)])
def test_quality_is_the_mean_over_tokens_of_weight_1(sizes):
    rows = random_rows(20)
    model, teacher = (small_llama(seed=seed, dtype=torch.float64) for seed in (0, 1))
    found = measure(model, rows, teacher, batch_tokens=sizes[0], max_logits=sizes[1])
    nll, kl, same, num_tokens = plain(model, teacher, rows)
    assert found.nll == pytest.approx(nll, rel=1e-12) and found.kl == pytest.approx(kl, rel=1e-12)
    assert found.perplexity == pytest.approx(torch.tensor(nll, dtype=torch.float64).exp().item())
    assert (found.agreement, found.num_tokens) == (pytest.approx(same), num_tokens)


def test_a_model_agrees_with_itself_and_without_a_teacher_nothing_is_said():
    rows, model = random_rows(10), small_llama()
    found = measure(model, rows, model)
    assert found.agreement == 1 and abs(found.kl) < 1e-6
    alone = measure(model, rows)
    assert alone.kl is None and alone.agreement is None and alone.nll == found.nll
    assert measure(model, rows, model) == found


def test_rows_without_counted_tokens_are_refused():
    rows = Rows([Row(row.ids, 0.5 * row.weights.clip(0, 0.5)) for row in random_rows(4)])
    with pytest.raises(ShrinkError, match="nothing to measure on"):
        measure(small_llama(), rows)
