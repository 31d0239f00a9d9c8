"""A text and what became of it: edits for the tests of predicted outputs, and a replay that counts forwards."""

from __future__ import annotations

import random
from pathlib import Path

import pia
from pia.bench.replay import accepted_nodes
from pia.drafting.cache import DraftCache

PROMPT = [5, 6, 7]


def source_file(tokenizer, num_tokens: int = 2000) -> list[int]:
    """Token ids of source code: PIA's own."""
    folder = Path(pia.__file__).parent / "decoding"
    text = "".join(path.read_text() for path in sorted(folder.glob("*.py")))
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:num_tokens]


def scattered(text: list[int], share: float, seed: int) -> list[int]:
    """So large a share of the tokens replaced, followed by a new one, or left out, each on its own."""
    rng = random.Random(seed)
    edited = []
    for token in text:
        kind = rng.choice(("replace", "insert", "delete")) if rng.random() < share else "keep"
        edited += [token] if kind in ("keep", "insert") else []
        edited += [rng.choice(text)] if kind in ("replace", "insert") else []
    return edited


def blocks(text: list[int], num: int, length: int, seed: int) -> list[int]:
    """Blocks of tokens replaced by others, put in, or left out."""
    rng = random.Random(seed)
    for _ in range(num):
        at, kind = rng.randrange(len(text) - length), rng.choice(("replace", "insert", "delete"))
        new = [rng.choice(text) for _ in range(length)] if kind != "delete" else []
        text = text[:at] + new + text[at + (0 if kind == "insert" else length) :]
    return text


def moved(text: list[int], num: int, length: int, seed: int) -> list[int]:
    """Blocks of tokens moved elsewhere."""
    rng = random.Random(seed)
    for _ in range(num):
        at, to = rng.randrange(len(text) - length), rng.randrange(len(text) - length)
        rest = text[:at] + text[at + length :]
        text = rest[:to] + text[at : at + length] + rest[to:]
    return text


def replay_edl(
    output: list[int], predicted: list[int], *, budget: int = 16, max_depth: int = 64, cache: DraftCache | None = None
) -> float:
    """Tokens a forward, of an output that the model is to write while another one was predicted."""
    session = (cache or DraftCache()).begin(PROMPT, predicted_ids=predicted)
    session.observe(output[:1])
    position, num_steps = 1, 0
    while position < len(output):
        tree = session.propose(budget, max_depth)
        assert len(tree) <= budget
        num_emitted = len(accepted_nodes(tree, output[position:])) + 1
        session.observe(output[position : position + num_emitted])
        position, num_steps = position + num_emitted, num_steps + 1
    session.end(commit=False)
    return (len(output) - 1) / max(num_steps, 1)
