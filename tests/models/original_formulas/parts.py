"""What the formulas share: norms, rotations and attention, straight from the papers, in float64 and without a cache."""

from __future__ import annotations

import math

import torch


def rms_norm(x, weight, eps):
    """Zhang & Sennrich 2019: `x` `[length, hidden]` over its root mean square."""
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def silu(x):
    return x / (1 + torch.exp(-x))


def angles(length, num_channels, base=10_000.0, stretch=1.0):
    """Su et al. 2021: `[length, num_channels / 2]`, how far each pair of channels turns at each position."""
    pair = torch.arange(num_channels // 2, dtype=torch.float64)
    position = torch.arange(length, dtype=torch.float64) / stretch
    return position[:, None] * base ** (-2 * pair / num_channels)


def turn(x, y, angle):
    """Pairs of channels `x`, `y` `[length, heads, pairs]` turned by `angle` `[length, pairs]`."""
    cos, sin = torch.cos(angle)[:, None], torch.sin(angle)[:, None]
    return x * cos - y * sin, x * sin + y * cos


def turn_halves(x, angle):
    """GPT-NeoX's pairing: channel i of a head with channel i + half."""
    half = x.shape[-1] // 2
    return torch.cat(turn(x[..., :half], x[..., half:], angle), -1)


def turn_neighbours(x, angle):
    """The paper's pairing, channels 2i and 2i + 1, of the first channels only; the others stay as they are."""
    num = 2 * angle.shape[-1]
    first, second = turn(x[..., 0:num:2], x[..., 1:num:2], angle)
    return torch.cat([torch.stack([first, second], -1).flatten(-2), x[..., num:]], -1)


def attend(query, key, value):
    """Causal attention of `query` `[length, heads, head]` to `key` and `value` `[length, kv_heads, head]`.

    Query head h looks at key head `h // (heads / kv_heads)`.

    Returns:
        `[length, heads * head]`
    """
    length, heads, head = query.shape
    group = heads // key.shape[1]
    outputs = []
    for h in range(heads):
        scores = query[:, h] @ key[:, h // group].T / math.sqrt(head)
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        outputs.append(torch.softmax(scores.masked_fill(future, -torch.inf), -1) @ value[:, h // group])
    return torch.stack(outputs, 1).reshape(length, -1)
