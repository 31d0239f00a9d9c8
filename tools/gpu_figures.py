"""Figures of a replay at full size, against what was asked for: a table, and one JSON object as the last line.

One process, one model, built once: random weights of a known shape, so that every forward is run for real, while
recorded outputs are what it writes. Contenders take turns. Runs on a GPU and, with a small shape, on a CPU:

    python tools/gpu_figures.py --traces ../shared/traces --shape smollm-135m --device cpu --dtype float32 --limit 2
"""

from __future__ import annotations

import argparse
import json
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from time import perf_counter
from typing import Any

import torch

from gpu_measure import Answers, StepTimes, compare, contenders_of, step_times
from gpu_waits import device_waits_ms
from pia.bench.bandwidth import measure_bandwidth
from pia.bench.forced import RANDOM, ReplayCase, replay_case
from pia.bench.machine import describe_machine
from pia.bench.step_bytes import kv_bytes, weight_bytes
from pia.bench.workload import REPLAY_SOURCES
from pia.lookahead import Lookahead

_BUDGETS = (0, 15, 16, 63, 64, "auto")
"""Nodes of timed steps. With the token before them, 15 and 63 make 16 and 64 tokens."""
_SHARES = {"steps": 0.1, "gsm": 0.4, "alpaca": 0.35, "random": 0.15}
"""Of the time there is."""


@dataclass(frozen=True)
class Figure:
    """One row of the table; `is_floor` says whether more is better."""

    name: str
    asked: float
    value: float | None
    is_floor: bool = True
    detail: str = ""

    @property
    def is_reached(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.asked if self.is_floor else self.value <= self.asked


def main(argv: Sequence[str] | None = None) -> int:
    """Measures all, prints the table and the JSON line; writes both into $OUT if that is set."""
    args = _parse(argv)
    options = {"engine": args.engine, "sources": REPLAY_SOURCES}
    cases = _cases(args)
    gsm = cases["gsm"]
    sections = _Sections({"arguments": vars(args) | {"traces": str(args.traces)}, "options": options})
    steps = sections.run("steps", lambda: _steps(args, gsm, options), StepTimes.all_as_dict) or {}
    waits = sections.run("device_waits_ms", lambda: _waits(gsm, options)) or {}
    roof = sections.run("roofline", lambda: _roofline(gsm)) or {}
    answers = {
        name: sections.run(name, partial(_answers, args, name, case, options), Answers.as_dict)
        or Answers(case.label, case.outputs)
        for name, case in cases.items()
    }
    figures = _figures(steps, waits, roof.get("floor_ms"), answers)
    report = sections.report
    report["figures"] = [asdict(figure) | {"reached": figure.is_reached} for figure in figures]
    report["machine"] = describe_machine(gsm.model)
    report["seconds"] = round(perf_counter() - _STARTED, 1)
    _show(_table(figures, gsm, report["machine"]), json.dumps(report))
    return int(bool(report["errors"]) or any(part.num_identical != part.num_answers for part in answers.values()))


class _Sections:
    """Runs parts of the measurement and reports each at once; one that fails leaves the others their turn."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.report: dict[str, Any] = {**facts, "errors": {}}

    def run(self, name: str, measure: Callable[[], Any], shown: Callable[[Any], Any] = lambda found: found) -> Any:
        """What was measured; `None` if it failed."""
        try:
            found = measure()
            self.report[name] = shown(found)
            _tell(name, self.report[name])
            return found
        except Exception as error:
            traceback.print_exc()
            self.report["errors"][name] = f"{type(error).__name__}: {error}"
            return None


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, required=True, help="folder with gsm-*.npz and alpaca-*.npz")
    parser.add_argument("--shape", default="llama2-7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--engine", default="auto", help="option of Lookahead")
    parser.add_argument("--warm", type=int, default=300, help="requests that warm the cache")
    parser.add_argument("--limit", type=int, default=20, help="requests measured of each trace")
    parser.add_argument("--generate-limit", type=int, default=4, help="of them, so many by Transformers' generate")
    parser.add_argument("--step-requests", type=int, default=3, help="requests whose single steps are timed")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--context", type=int, default=1024, help="tokens that prompts are lengthened to")
    parser.add_argument("--max-new-tokens", type=int, help="cut recorded outputs to so many tokens")
    parser.add_argument(
        "--seconds", type=float, default=300, help="for all measurements; fewer requests if they take longer"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def _cases(args: argparse.Namespace) -> dict[str, ReplayCase]:
    """Recorded and random requests, all on one model."""
    cases: dict[str, ReplayCase] = {}
    for name in ("gsm", "alpaca", "random"):
        case = replay_case(
            RANDOM if name == "random" else _only(args.traces, f"{name}-*.npz"),
            args.shape,
            dtype=getattr(torch, args.dtype),
            device=args.device,
            limit=args.limit,
            warm=args.warm,
            context=args.context,
            seed=args.seed,
            like=cases.get("gsm"),
        )
        cases[name] = replace(case, outputs=[output[: args.max_new_tokens] for output in case.outputs])
    _tell("model", {"built_s": round(perf_counter() - _STARTED, 1)})
    return cases


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if not found:
        raise SystemExit(f"{folder} holds no {pattern}; tools/gpu_pack.sh copies the traces")
    return found[0]


def _steps(args: argparse.Namespace, case: ReplayCase, options: dict[str, Any]) -> dict[str, StepTimes]:
    seconds = args.seconds * _SHARES["steps"]
    return step_times(case, _BUDGETS, num_requests=args.step_requests, seconds=seconds, options=options)


def _waits(case: ReplayCase, options: dict[str, Any]) -> dict[str, float | None]:
    """How long a GPU waits a step, plainly and with drafts."""
    if case.model.device.type != "cuda":
        return {}
    lookaheads = {"plain": Lookahead(**{**options, "budget": 0}), "pia": Lookahead(case.new_cache(), **options)}
    return {name: device_waits_ms(case, 0, lookahead) for name, lookahead in lookaheads.items()}


def _answers(args: argparse.Namespace, name: str, case: ReplayCase, options: dict[str, Any]) -> Answers:
    """Lets the contenders of a case answer. The slow ones answer a few requests only."""
    slow = [] if name == "random" else ["generate", *(["eager"] if name == "gsm" else [])]
    return compare(
        case,
        contenders_of(case, [*slow, "plain", "pia"], options),
        rounds=args.rounds,
        seconds=args.seconds * _SHARES[name],
        limits=dict.fromkeys(slow, args.generate_limit),
    )


def _roofline(case: ReplayCase) -> dict[str, float]:
    """The least time of a plain step: bytes of weights and KV cache over the bandwidth measured here."""
    context = mean(prompt.shape[1] + len(output) / 2 for prompt, output in zip(case.prompts, case.outputs, strict=True))
    kv = kv_bytes(case.model)
    num_bytes = weight_bytes(case.model).read + (kv.at(context) if kv is not None else 0)
    bandwidth = measure_bandwidth(case.model.device)
    return {
        "context": round(context),
        "gib": round(num_bytes / (1 << 30), 3),
        "gb_per_s": round(bandwidth.bytes_per_s / 1e9, 1),
        "floor_ms": round(1e3 * num_bytes / bandwidth.bytes_per_s, 4),
    }


def _figures(
    steps: dict[str, StepTimes], waits: dict[str, float | None], floor_ms: float | None, answers: dict[str, Answers]
) -> list[Figure]:
    """What is asked for, in the order of asking."""
    ms = {budget: times.ms for budget, times in steps.items()}
    plain, host = ms.get("0"), steps["auto"].host_ms if steps else None
    gsm, alpaca, noise = answers["gsm"], answers["alpaca"], answers["random"]
    identical, of = (sum(getattr(part, name) for part in answers.values()) for name in ("num_identical", "num_answers"))
    figures = [
        Figure("PIA plain, share of the roofline", 0.75, _over(floor_ms, plain), detail=f"step {plain} ms"),
        _ratio("PIA plain over generate", 4.0, gsm, "plain", "generate"),
        Figure("step with 16 nodes over plain", 1.08, _over(ms.get("16"), plain), is_floor=False),
        Figure("step with 64 nodes over plain", 1.20, _over(ms.get("64"), plain), is_floor=False),
        Figure("host time between forwards, ms", 0.4, host, is_floor=False),
        _ratio("PIA warmed over PIA plain, gsm", 2.6, gsm, "pia", "plain"),
        _ratio("PIA warmed over PIA plain, alpaca", 1.7, alpaca, "pia", "plain"),
        _ratio("PIA warmed over generate, gsm", 8.0, gsm, "pia", "generate"),
        Figure("random tokens, time over PIA plain", 1.02, noise.ratio("plain", "pia"), is_floor=False),
        Figure("outputs identical", 1.0, _over(identical, of), detail=f"{identical} of {of} answers"),
    ]
    if waits:
        figures.insert(5, Figure("the same, as the GPU's clock tells", 0.4, waits["pia"], is_floor=False))
    return figures


def _ratio(title: str, asked: float, answers: Answers, name: str, other: str) -> Figure:
    least, middle, most = answers.spread(name, other) or (None, None, None)
    detail = f"request by request {least} .. {middle} .. {most}"
    return Figure(title, asked, answers.ratio(name, other), detail=detail)


def _over(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def _table(figures: Sequence[Figure], case: ReplayCase, machine: dict[str, Any]) -> str:
    words = {True: "reached", False: "not reached", None: "not measured"}
    lines = [case.label, ", ".join(f"{name} {value}" for name, value in machine.items() if value is not None), ""]
    lines.append(f"{'figure':38} {'asked':>8} {'measured':>9}")
    for figure in figures:
        value = "-" if figure.value is None else f"{figure.value:.3f}"
        sign = ">=" if figure.is_floor else "<="
        lines.append(
            f"{figure.name:38} {sign} {figure.asked:5.2f} {value:>9}  {words[figure.is_reached]:12} {figure.detail}"
        )
    return "\n".join(lines)


def _tell(section: str, facts: dict[str, Any]) -> None:
    """Progress: what is lost when the machine's time runs out is only what was not yet measured."""
    print(f"[{perf_counter() - _STARTED:6.1f} s] {section}: {json.dumps(facts)}", flush=True)


def _show(table: str, line: str) -> None:
    if folder := os.environ.get("OUT"):
        Path(folder, "gpu_figures.txt").write_text(table + "\n")
        Path(folder, "gpu_figures.json").write_text(line + "\n")
    print(f"\n{table}\n\n{line}", flush=True)


_STARTED = perf_counter()

if __name__ == "__main__":
    raise SystemExit(main())
