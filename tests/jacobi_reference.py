"""Lookahead decoding as published (arXiv 2402.02057), written level by level and guess by guess, without a tree.

Nothing is shared with PIA but the tokens that the window begins with. A model is a function of whole texts: it gives
the likeliest next token of each.
"""

from __future__ import annotations

from collections.abc import Callable

Likeliest = Callable[[list[list[int]]], list[int]]


class ReferencePool:
    def __init__(self, ngram_size: int, max_ngrams: int | None) -> None:
        self.size, self.most, self.guesses = ngram_size, max_ngrams, {}

    def add(self, ngram: list[int]) -> None:
        first, rest = ngram[0], tuple(ngram[1:])
        known = self.guesses.setdefault(first, [])
        if rest in known:
            known.remove(rest)
        elif self.most is not None and len(known) == self.most:
            known.pop(0)
        known.append(rest)

    def add_text(self, text: list[int]) -> None:
        for at in range(len(text) - self.size + 1):
            self.add(text[at : at + self.size])


def lookahead_decode(
    likeliest: Likeliest,
    text: list[int],
    level_0: list[int],
    *,
    num_prompt: int,
    window_size: int,
    ngram_size: int,
    max_ngrams: int | None,
    pool_from_prompt: bool,
    num_new: int,
) -> list[list[int]]:
    """Greedy. `text` is prompt and first token; returns what each step emits, until there are `num_new` tokens."""
    levels = [list(level_0)]
    pool = ReferencePool(ngram_size, max_ngrams)
    if pool_from_prompt:
        pool.add_text(text[:num_prompt])
        pool.add_text(text[-ngram_size:]) if len(text) > num_prompt else None
    text = list(text)
    steps: list[list[int]] = []
    while sum(map(len, steps)) < num_new:
        current = text[-1]
        guesses = list(pool.guesses.get(current, []))
        # What is fed: the current token, the deepest level of the window, and the guesses' tokens.
        deepest = len(levels) - 1
        window = [text + _window_path(levels, deepest, i) for i in range(len(levels[deepest]))]
        verified = [text + list(guess[:depth]) for guess in guesses for depth in range(1, ngram_size)]
        answers = likeliest([text, *window, *verified])
        root, new, rest = answers[0], answers[1 : 1 + len(window)], answers[1 + len(window) :]
        best = [root]
        for number, guess in enumerate(guesses):
            said = [root, *rest[number * (ngram_size - 1) : (number + 1) * (ngram_size - 1)]]
            length = 0
            while length < len(guess) and guess[length] == said[length]:
                length += 1
            if length >= len(best):
                best = said[: length + 1]  # all that was right, and the model's own token behind it
        best = best[: num_new - sum(map(len, steps))]
        if (
            len(levels) < ngram_size - 1
        ):  # warm-up: the new level goes below the deepest, and every level drops its head
            levels = [level[1:] for level in levels] + [new if deepest == 0 else new[1:]]
        else:
            if ngram_size == 2:  # the current token is a part of the deepest level
                new = [root, *new]
            for i in range(window_size):
                key = current if i == 0 else levels[0][i - 1]
                pool.add([key, *(level[i] for level in levels[1:]), new[i]])
            levels = [*levels, new][1:]
            levels[0] = levels[0][1:]
        for token in best:
            text.append(token)
            if pool_from_prompt:
                pool.add_text(text[-ngram_size:])
        steps.append(best)
    return steps


def _window_path(levels: list[list[int]], level: int, i: int) -> list[int]:
    """What row i of a level sees behind the text: level 0 up to its column, and its own column from level 1 down."""
    if level == 0:
        return levels[0][: i + 1]
    return levels[0][:i] + [levels[k][i] for k in range(1, level + 1)]
