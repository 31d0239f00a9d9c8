"""What the original code of Baichuan-13B and GLM computes, written anew in numpy, float64: whole texts, no cache.

Weights carry the original names and packings. Nothing of PIA or Transformers is used, so agreement is no accident.
`python tests/models/own_families_original.py` prints the numbers that `own_families_logits.json` holds.
"""

from __future__ import annotations

import json
import math

import numpy as np

BAICHUAN = dict(vocab=61, hidden=24, heads=6, layers=2, intermediate=40, eps=1e-6)
"""Six heads: no power of two, so that slopes of both series occur."""
GLM = dict(vocab=61, hidden=24, heads=3, layers=2, length=40, eps=1e-5)

SEED = 3
TEXT = [7, 3, 25, 41, 8, 8, 19, 60, 33, 2, 14, 55]
BLANKS = {"gMASK at the end": [50, 7, 3, 25, 41, 57, 51], "MASK within": [50, 9, 55, 30, 31, 32, 33, 34, 51]}
"""Contexts; 55 to 57 are mask tokens."""
MASK_POSITIONS = {"gMASK at the end": 5, "MASK within": 2}
PIECE = [58, 11, 12, 13, 14, 15]


def weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Random weights for these names, the same for a seed whatever their order in the dictionary."""
    return {
        name: np.random.default_rng([seed, *name.encode()]).normal(0, 0.3, shape) + ("norm.weight" in name)
        for name, shape in shapes.items()
    }


def baichuan_shapes(sizes: dict) -> dict[str, tuple[int, ...]]:
    vocab, hidden, inner = sizes["vocab"], sizes["hidden"], sizes["intermediate"]
    shapes = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }
    for layer in range(sizes["layers"]):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "self_attn.W_pack.weight": (3 * hidden, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, hidden),
            prefix + "mlp.gate_proj.weight": (inner, hidden),
            prefix + "mlp.up_proj.weight": (inner, hidden),
            prefix + "mlp.down_proj.weight": (hidden, inner),
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "post_attention_layernorm.weight": (hidden,),
        }
    return shapes


def glm_shapes(sizes: dict, prefix: str = "glm.") -> dict[str, tuple[int, ...]]:
    hidden = sizes["hidden"]
    shapes = {
        prefix + "word_embeddings.weight": (sizes["vocab"], hidden),
        prefix + "transformer.position_embeddings.weight": (sizes["length"] + 1, hidden),
        prefix + "transformer.block_position_embeddings.weight": (sizes["length"] + 1, hidden),
        prefix + "transformer.final_layernorm.weight": (hidden,),
        prefix + "transformer.final_layernorm.bias": (hidden,),
    }
    for layer in range(sizes["layers"]):
        start = f"{prefix}transformer.layers.{layer}."
        for name, out, size in (
            ("attention.query_key_value", 3 * hidden, hidden),
            ("attention.dense", hidden, hidden),
            ("mlp.dense_h_to_4h", 4 * hidden, hidden),
            ("mlp.dense_4h_to_h", hidden, 4 * hidden),
        ):
            shapes |= {f"{start}{name}.weight": (out, size), f"{start}{name}.bias": (out,)}
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes |= {f"{start}{name}.weight": (hidden,), f"{start}{name}.bias": (hidden,)}
    return shapes


def baichuan_logits(w: dict[str, np.ndarray], ids: list[int], sizes: dict, *, has_normalised_head: bool) -> np.ndarray:
    """Logits `[length, vocab]` of a text."""
    length, heads = len(ids), sizes["heads"]
    bias = np.array(interleave(heads))[:, None, None] * np.arange(length)[None, None, :]
    bias = np.where(np.tril(np.ones((length, length), bool)), bias, -np.inf)
    x = w["model.embed_tokens.weight"][ids]
    for layer in range(sizes["layers"]):
        p = f"model.layers.{layer}."
        normed = _rms_norm(x, w[p + "input_layernorm.weight"], sizes["eps"])
        packed = normed @ w[p + "self_attn.W_pack.weight"].T
        x = x + _attention(packed, heads, bias) @ w[p + "self_attn.o_proj.weight"].T
        normed = _rms_norm(x, w[p + "post_attention_layernorm.weight"], sizes["eps"])
        gate = normed @ w[p + "mlp.gate_proj.weight"].T
        up = normed @ w[p + "mlp.up_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[p + "mlp.down_proj.weight"].T
    head = w["lm_head.weight"]
    if has_normalised_head:
        head = head / np.sqrt((head**2).sum(1, keepdims=True))
    return _rms_norm(x, w["model.norm.weight"], sizes["eps"]) @ head.T


def glm_logits(
    w: dict[str, np.ndarray], context: list[int], piece: list[int], mask_position: int, sizes: dict
) -> np.ndarray:
    """Logits `[context + piece, vocab]`; `piece` begins with `<|startofpiece|>`."""
    ids, start = [*context, *piece], len(context)
    length = len(ids)
    positions = [*range(start), *[mask_position] * len(piece)]
    blocks = [*[0] * start, *range(1, len(piece) + 1)]
    seen = np.zeros((length, length))
    seen[:, :start] = 1
    seen[start:, start:] = np.tril(np.ones((len(piece), len(piece))))
    bias = np.where(seen == 1, 0.0, -np.inf)[None]
    t = "glm.transformer."
    x = w["glm.word_embeddings.weight"][ids] + w[t + "position_embeddings.weight"][positions]
    x = x + w[t + "block_position_embeddings.weight"][blocks]
    for layer in range(sizes["layers"]):
        p = f"{t}layers.{layer}."
        packed = _linear(_layer_norm(x, w, p + "input_layernorm", sizes["eps"]), w, p + "attention.query_key_value")
        x = x + _linear(_attention(packed, sizes["heads"], bias), w, p + "attention.dense")
        inner = _linear(_layer_norm(x, w, p + "post_attention_layernorm", sizes["eps"]), w, p + "mlp.dense_h_to_4h")
        x = x + _linear(inner * 0.5 * (1 + _erf(inner / math.sqrt(2))), w, p + "mlp.dense_4h_to_h")
    return _layer_norm(x, w, t + "final_layernorm", sizes["eps"]) @ w["glm.word_embeddings.weight"].T


def interleave(n: int) -> list[float]:
    """ALiBi's slopes, by the recursion that its authors published."""
    if math.log2(n).is_integer():
        start = 2 ** (-(2 ** -(math.log2(n) - 3)))
        return [start ** (i + 1) for i in range(n)]
    power = 2 ** math.floor(math.log2(n))
    return interleave(power) + interleave(2 * power)[0::2][: n - power]


def _attention(packed: np.ndarray, heads: int, bias: np.ndarray) -> np.ndarray:
    """`packed` `[length, 3 * hidden]`: queries, keys and values, in each of them head after head."""
    q, k, v = (part.reshape(len(packed), heads, -1).transpose(1, 0, 2) for part in np.split(packed, 3, axis=1))
    scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1]) + bias
    probs = np.exp(scores - scores.max(-1, keepdims=True))
    probs = probs / probs.sum(-1, keepdims=True)
    return (probs @ v).transpose(1, 0, 2).reshape(len(packed), -1)


def _linear(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    return x @ w[name + ".weight"].T + w[name + ".bias"]


def _rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def _layer_norm(x: np.ndarray, w: dict[str, np.ndarray], name: str, eps: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return w[name + ".weight"] * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) + w[name + ".bias"]


_erf = np.vectorize(math.erf)


def cases() -> dict[str, np.ndarray]:
    """Logits of all texts above, by name of the case."""
    baichuan, glm = weights(baichuan_shapes(BAICHUAN), SEED), weights(glm_shapes(GLM), SEED)
    logits = {
        f"Baichuan{generation}": baichuan_logits(baichuan, TEXT, BAICHUAN, has_normalised_head=generation == "2")
        for generation in ("", "2")
    }
    for name, context in BLANKS.items():
        logits[f"GLM, {name}"] = glm_logits(glm, context, PIECE, MASK_POSITIONS[name], GLM)
    return logits


if __name__ == "__main__":
    made = "python tests/models/own_families_original.py: the formulas in numpy, float64; last row of logits"
    print(json.dumps({"made": made, "last_logits": {name: list(rows[-1]) for name, rows in cases().items()}}, indent=1))
