"""Checks and times attention over trees on a CUDA device: under a mask, and by PIA's kernel without one.

Run it as `python tools/gpu_attention.py`; with `--tune` it also looks for better tiles. Every contender is
checked against a float64 reference, then they take turns in captured CUDA graphs over so many layers that no KV stays
in the cache. The last line is JSON. Exit code 2: there is no CUDA device (or no Triton) to run on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from dataclasses import replace
from functools import partial
from statistics import median

import torch

SHAPES = {"llama2-7b": (32, 32, 128), "llama3-8b": (32, 8, 128), "qwen2-0.5b": (14, 2, 64)}
"""Query heads, KV heads and their dimension."""
COLUMNS = ("shape", "context", "q", "attention", "us a layer", "by sdpa", "of bandwidth", "error")


def main() -> int:
    options = arguments()
    reason = why_not()
    if reason is not None:
        print(f"gpu_attention: nothing to measure: {reason}", file=sys.stderr)
        return 2
    bandwidth = measured_bandwidth()
    rows: list[dict] = []
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for name, context, q in itertools.product(options.shapes, options.contexts, options.sizes):
        for row in measured(name, context, q, getattr(torch, options.dtype), bandwidth):
            rows.append(row)
            print("| " + " | ".join(str(row[column]) for column in COLUMNS) + " |", flush=True)
    tuned = [
        tune(name, max(options.contexts), q, options) for name in options.shapes for q in options.sizes if options.tune
    ]
    summary = {
        "benchmark": "attention over trees",
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "dtype": options.dtype,
        "copy_bytes_per_second": round(bandwidth),
        "rows": rows,
        "tuned": tuned,
    }
    print(json.dumps(summary))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--contexts", nargs="+", type=int, default=[1024, 8192, 32768], help="committed slots")
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 16, 64], help="tokens fed")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--tune", action="store_true", help="try other tiles at the longest context")
    return parser.parse_args()


def why_not() -> str | None:
    """Why nothing can be measured here."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"no Triton ({error})"
    return None


def measured_bandwidth() -> float:
    """Bytes per second, read and written, of a copy within the device's memory."""
    from pia.models.attention.timing import captured, replay_seconds

    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    replay = captured(lambda: target.copy_(source))
    return 2 * source.numel() / median(replay_seconds(replay) for _ in range(7))


def measured(name: str, context: int, q: int, dtype: torch.dtype, bandwidth: float) -> list[dict]:
    """A row for each contender."""
    from pia.models.attention.choice import backends_on
    from pia.models.attention.layer_check import layer_error
    from pia.models.attention.timing import layer_seconds

    layer = shape_of(name, dtype)
    device = torch.device("cuda")
    contenders, errors = {"sdpa": None}, {"sdpa": "-"}
    for backend, attend in backends_on(device)[0].items():
        try:
            errors[backend] = f"{layer_error(layer, q, attend, device):.1e}"
            contenders[backend] = attend
        except Exception as error:  # a compiler may fail in any way; the table says so
            errors[backend] = f"{type(error).__name__}: {str(error)[:80]}"
    seconds = layer_seconds(layer, context, q, contenders)
    num_bytes = layer.kv_heads * (context + q) * (layer.dim + layer.value_dim) * dtype.itemsize
    return [
        {
            "shape": name,
            "context": context,
            "q": q,
            "attention": backend,
            "us a layer": round(1e6 * seconds[backend], 1) if backend in seconds else None,
            "by sdpa": round(seconds["sdpa"] / seconds[backend], 2) if backend in seconds else None,
            "of bandwidth": round(num_bytes / seconds[backend] / bandwidth, 2) if backend in seconds else None,
            "error": errors[backend],
        }
        for backend in errors
    ]


def tune(name: str, context: int, q: int, options: argparse.Namespace) -> dict:
    """The fastest of some tiles around those chosen, with the time of both, in microseconds a layer."""
    from pia.models.attention.timing import layer_seconds, made_up
    from pia.models.attention.triton_attention import tiles_of, triton_attention

    layer = shape_of(name, getattr(torch, options.dtype))
    inputs = made_up(layer, context, q, torch.device("cuda"))
    num_sms = torch.cuda.get_device_properties("cuda").multi_processor_count
    chosen = tiles_of(inputs.query, *inputs.layers[0], num_sms)
    del inputs
    times = {}
    for factor, num_stages, num_warps in itertools.product((0.5, 1, 2), (2, 3, 4), (4, 8)):
        splits = max(1, round(chosen.num_splits * factor))
        tiles = replace(chosen, num_splits=splits, num_stages=num_stages, num_warps=num_warps)
        try:
            times[tiles] = layer_seconds(layer, context, q, {"triton": partial(triton_attention, tiles=tiles)})[
                "triton"
            ]
        except Exception as error:  # too large for the device: a compiler may say so in any way
            print(f"{name}, {q} tokens, {tiles}: {type(error).__name__}", file=sys.stderr)
    best = min(times, key=times.__getitem__)
    at_chosen = 1e6 * times.get(chosen, float("nan"))
    print(f"{name}, {context} slots, {q} tokens: {1e6 * times[best]:.1f} us with {best}, {at_chosen:.1f} us as chosen")
    return {
        "shape": name,
        "context": context,
        "q": q,
        "best": str(best),
        "us": 1e6 * times[best],
        "chosen_us": at_chosen,
    }


def shape_of(name: str, dtype: torch.dtype):
    from pia.models.attention.probe import LayerShape

    heads, kv_heads, dim = SHAPES[name]
    return LayerShape(heads, kv_heads, dim, dim, dtype)


if __name__ == "__main__":
    sys.exit(main())
