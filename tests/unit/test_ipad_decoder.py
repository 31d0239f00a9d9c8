"""A model in two halves is the model: the same logits at the places that count, padding or not."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from ipad_support import random_rows, small_llama
from pia.ipad.data import make_batch
from pia.ipad.decoder import Decoder, weights_fingerprint
from toys import FAMILIES, VOCAB, tiny_model


def gemma2():
    """With soft caps on attention and logits, and a window in every other layer."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8)
    config = Gemma2Config(
        vocab_size=VOCAB, num_key_value_heads=2, sliding_window=8, final_logit_softcapping=2.0, initializer_range=0.2,
        **sizes,
    )  # fmt: skip
    return Gemma2ForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("name", "attention"),
    [*((name, attention) for name in sorted(FAMILIES) for attention in ("sdpa", "eager")), ("gemma2", "eager")],
)
def test_logits_are_those_of_each_row_alone(name, attention):
    model = gemma2() if name == "gemma2" else tiny_model(name)
    model.set_attn_implementation(attention)
    model.double()
    rows = random_rows(5)
    batch = make_batch(rows, [3, 0, 4])
    decoder = Decoder(model)
    with torch.no_grad():
        found = decoder.logits(decoder.hidden(batch))
        alone = [model(torch.from_numpy(rows[n].ids)[None].long()).logits[0, :-1] for n in batch.rows]
    expected = torch.cat([logits[rows[n].weights[1:] > 0] for n, logits in zip(batch.rows, alone, strict=True)])
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()  # RMSNorms and softmax round to float32 inside


def test_fingerprints_follow_weights():
    model = small_llama()
    before = weights_fingerprint(model)
    assert weights_fingerprint(small_llama()) == before != weights_fingerprint(small_llama(dtype=torch.bfloat16))
    with torch.no_grad():
        model.lm_head.weight[5, 5] += 1e-3
    assert weights_fingerprint(model) != before
