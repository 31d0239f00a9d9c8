"""Measures long contexts: prefill by size of pieces, and what PIA adds to a step behind 1k, 8k and 32k tokens.

    python tools/bench_long_context.py [--dtype float32] [--hidden 512] [--layers 2] [--prompt 8192] [--rounds 7]

The model is of Llama's shape with random weights. Each prefill has a process of its own, so that its peak memory is its
own. A step is compared, in turns, with its floor: the same layers' attention alone over the same keys, in PyTorch, and
the model's forward behind nothing; and with the stock model's forward with a cache and a mask made beforehand.
The very last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicLayer

from pia.bench.machine import describe_machine
from pia.drafting.cache import DraftCache
from pia.drafting.tree import DraftTree
from pia.models.masks import TreeMasks
from pia.models.runner import SlabRunner

VOCAB = 32000
CONTEXTS, SIZES = (1024, 8192, 32768), (1, 8, 16, 64)
CHUNKS = (512, 2048)


@dataclass(frozen=True)
class Prefill:
    """One prefill: tokens, tokens a forward, seconds, and peak memory beyond the model's, in MiB."""

    tokens: int
    chunk: int | None
    seconds: float
    peak_mib: float
    kv_mib: float


@dataclass(frozen=True)
class Step:
    """Medians in milliseconds of steps over `q` tokens behind `context` tokens."""

    context: int
    q: int
    step: float
    attention: float
    """Of all layers, alone."""
    rest: float
    """The model behind nothing."""
    stock: float
    """The stock model's forward with its cache and mask made beforehand."""

    @property
    def over_floor(self) -> float:
        return self.step / (self.attention + self.rest)


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    if args.worker is not None:
        print(json.dumps(asdict(_prefill(args))))
        return
    model = _model(args)
    machine = describe_machine(model)
    console = Console()
    console.print(f"{machine['model']}, {machine['dtype']}, {machine['threads']} threads on {machine['cpu']}")
    lengths = [(args.prompt, chunk) for chunk in (*CHUNKS, args.prompt, None)]
    prefills = [_in_a_process(tokens, chunk) for tokens, chunk in (*lengths, (args.longest, None))]
    console.print(_prefill_table(prefills))
    steps = [step for context in CONTEXTS for step in _steps(model, context, args.rounds)]
    console.print(_step_table(steps))
    begin_ms = _begin_ms(args.longest)
    console.print(f"opening a drafting session behind {args.longest} tokens: {begin_ms:.1f} ms, once a request")
    results = {
        "prefill": [asdict(each) for each in prefills],
        "steps": [asdict(each) | {"over_floor": round(each.over_floor, 3)} for each in steps],
        "draft_begin_ms": begin_ms,
    }
    print(json.dumps({"benchmark": "long context", "machine": machine} | results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=8192, help="prompt that is fed in pieces of several sizes")
    parser.add_argument("--longest", type=int, default=32768, help="prompt that is fed as PIA feeds it by default")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--worker", nargs=2, type=int, metavar=("TOKENS", "CHUNK"), help=argparse.SUPPRESS)
    return parser.parse_args()


def _model(args: argparse.Namespace) -> Any:
    """Heads of 64, four to a key; a quarter of the weights would fit a model of that size."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 11 // 4,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        num_key_value_heads=max(1, args.hidden // 256),
        max_position_embeddings=1 << 17,
    )
    return LlamaForCausalLM(config).to(getattr(torch, args.dtype)).eval()


def _in_a_process(tokens: int, chunk: int | None) -> Prefill:
    """Prefills in a process of its own; `None` is PIA's own choice."""
    command = [sys.executable, *sys.argv, "--worker", str(tokens), str(chunk or 0)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Prefill(**json.loads(output.splitlines()[-1]))


def _prefill(args: argparse.Namespace) -> Prefill:
    tokens, chunk = args.worker[0], args.worker[1] or None
    runner = SlabRunner(_model(args), max_length=tokens + 256, prefill_chunk_size=chunk)
    runner.model(torch.zeros((1, 8), dtype=torch.long))  # what is made once
    before = _peak_mib()
    started = perf_counter()
    runner.prefill([torch.randint(0, VOCAB, (tokens,))])
    seconds = perf_counter() - started
    return Prefill(tokens, chunk, seconds, _peak_mib() - before, runner.cache.memory_usage / 2**20)


def _peak_mib() -> float:
    """The most memory this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@torch.inference_mode()
def _steps(model: Any, context: int, rounds: int) -> list[Step]:
    """Steps of all sizes behind a context of random keys and values."""
    session = DraftCache().begin(np.random.default_rng(0).integers(3, VOCAB, context).astype(np.int32))
    runner = _filled(model, context)
    steps = []
    for q in SIZES:
        contenders = {
            "step": lambda q=q: _step(runner, session, context, q),
            "attention": _attention(model, context, q),
            "rest": _forward(model, 0, q),
        }
        stock = {"stock": _forward(model, context, q)}  # apart: it leaves memory in disorder
        steps.append(Step(context, q, **_medians_ms(contenders, rounds), **_medians_ms(stock, rounds)))
    return steps


def _medians_ms(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """They take turns; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, run in contenders.items():
            started = perf_counter()
            run()
            times[name].append(1000 * (perf_counter() - started))
    return {name: median(values[1:]) for name, values in times.items()}


def _step(runner: SlabRunner, session: Any, context: int, q: int) -> None:
    """All that a step does, over a chain of `q - 1` drafted tokens, of which every other one is kept."""
    session.propose(max(q - 1, 1), 32)
    logits = runner.forward([5], [DraftTree.chain([7] * (q - 1))])
    tokens = logits.argmax(dim=-1)[0].tolist()
    runner.keep([list(range(0, q, 2))])
    session.observe(tokens[:1])
    runner.cache.set_lengths([context])


def _filled(model: Any, context: int) -> SlabRunner:
    runner = SlabRunner(model, max_length=context + 256)
    runner.cache.reserve(context + SIZES[-1])
    for layer in range(model.config.num_hidden_layers):
        runner.cache.update(*_states(model.config, context, model.dtype), layer)
    runner.cache.set_lengths([context])
    return runner


def _states(config: Any, context: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Random keys and values `[1, kv_heads, context, head_dim]`."""
    shape = (1, config.num_key_value_heads, context, config.head_dim)
    return torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)


def _attention(model: Any, context: int, q: int) -> Callable[[], Any]:
    """All layers' attention: queries of the heads that share keys side by side, so that each key is read once."""
    config, groups = model.config, model.config.num_attention_heads // model.config.num_key_value_heads
    layers = [_states(config, context + q, model.dtype) for _ in range(config.num_hidden_layers)]
    query = torch.randn((1, config.num_key_value_heads, groups * q, config.head_dim)).to(model.dtype)
    mask = _mask(model, context, q)
    packed = None if mask is None else mask.repeat(1, 1, groups, 1)
    attend = torch.nn.functional.scaled_dot_product_attention
    return lambda: [attend(query, keys, values, attn_mask=packed) for keys, values in layers]


def _forward(model: Any, context: int, q: int) -> Callable[[], Any]:
    """The stock model's forward; its cache is made beforehand and grows by a copy, which is Transformers' own way."""
    states = [_states(model.config, context, model.dtype) for _ in range(model.config.num_hidden_layers)]
    ids, positions = torch.full((1, q), 7), torch.arange(context, context + q)[None]
    mask = _mask(model, context, q)

    def run() -> None:
        cache = DynamicCache()
        for keys, values in states if context else ():
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            cache.layers.append(layer)
        model(input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=cache)

    return run


def _mask(model: Any, context: int, q: int) -> torch.Tensor | None:
    """The mask `[1, 1, q, context + q]` of a chain."""
    if q == 1:
        return None
    depths, visible = torch.arange(q)[None], torch.ones((1, q, q), dtype=torch.bool).tril()
    mask = TreeMasks(model)(torch.tensor([context]), depths, visible, context + q)
    assert isinstance(mask, torch.Tensor), "this model has one mask"
    return mask


def _begin_ms(length: int) -> float:
    prompt = np.random.default_rng(1).integers(3, VOCAB, length).astype(np.int32)
    started = perf_counter()
    session = DraftCache().begin(prompt)
    elapsed = perf_counter() - started
    session.end(commit=False)
    return 1000 * elapsed


def _prefill_table(prefills: list[Prefill]) -> Table:
    table = Table("prompt", "tokens a forward", "tokens/s", "peak MiB beyond the weights", "of it KV", title="Prefill")
    for each in prefills:
        size = "PIA's choice" if each.chunk is None else "all" if each.chunk == each.tokens else str(each.chunk)
        speed = f"{each.tokens / each.seconds:.0f}"
        table.add_row(str(each.tokens), size, speed, f"{each.peak_mib:.0f}", f"{each.kv_mib:.0f}")
    return table


def _step_table(steps: list[Step]) -> Table:
    columns = ("context", "q", "PIA's step", "attention alone", "model at context 0", "step / both", "stock forward")
    table = Table(*columns, title="Steps, ms")
    for each in steps:
        figures = (each.step, each.attention, each.rest)
        texts = [f"{figure:.2f}" for figure in figures]
        table.add_row(str(each.context), str(each.q), *texts, f"{each.over_floor:.2f}", f"{each.stock:.2f}")
    return table


if __name__ == "__main__":
    main()
