"""Figures of a replay at full size, against what was asked for: a table, and one JSON object as the last line.

One process, one model, built once: random weights of a known shape, so that every forward is run for real, while
recorded outputs are what it writes. Contenders take turns. Runs on a GPU and, with a small shape, on a CPU:

    python tools/gpu_figures.py --traces ../shared/traces --shape smollm-135m --device cpu --dtype float32 --limit 2
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
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
from pia.config import LookaheadConfig
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
    options = _lookahead_options(args.engine)
    cases = _cases(args)
    report: dict[str, Any] = {"arguments": vars(args) | {"traces": str(args.traces)}, "options": options}
    steps = step_times(
        cases["gsm"], _BUDGETS, num_requests=args.step_requests, seconds=_seconds(args, "steps"), options=options
    )
    report["steps"] = {budget: times.as_dict() for budget, times in steps.items()}
    _tell("steps", report["steps"])
    report["device_waits_ms"] = _waits(cases["gsm"], options)
    _tell("device waits", report["device_waits_ms"])
    roof = report["roofline"] = _roofline(cases["gsm"])
    _tell("roofline", roof)
    answers: dict[str, Answers] = {}
    for name, case in cases.items():
        slow = [] if name == "random" else ["generate", *(["eager"] if options and name == "gsm" else [])]
        answers[name] = compare(
            case,
            contenders_of(case, [*slow, "plain", "pia"], options),
            rounds=args.rounds,
            seconds=_seconds(args, name),
            limits=dict.fromkeys(slow, args.generate_limit),
        )
        report[name] = answers[name].as_dict()
        _tell(name, report[name])
    figures = _figures(steps, roof["floor_ms"], answers)
    if report["device_waits_ms"]:
        figures.append(
            Figure("the same, as the GPU's clock tells", 0.4, report["device_waits_ms"]["pia"], is_floor=False)
        )
    report["figures"] = [asdict(figure) | {"reached": figure.is_reached} for figure in figures]
    report["machine"] = describe_machine(cases["gsm"].model)
    report["seconds"] = round(perf_counter() - _STARTED, 1)
    _show(_table(figures, cases["gsm"], report["machine"]), json.dumps(report))
    return 0 if all(part.num_identical == part.num_answers for part in answers.values()) else 1


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


def _lookahead_options(engine: str) -> dict[str, Any]:
    """The engine, where this version of PIA has a choice."""
    has_engine = "engine" in {field.name for field in fields(LookaheadConfig)}
    return {"engine": engine} if has_engine else {}


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


def _seconds(args: argparse.Namespace, section: str) -> float:
    return float(args.seconds) * _SHARES[section]


def _waits(case: ReplayCase, options: dict[str, Any]) -> dict[str, float | None]:
    """How long the GPU waits a step, plainly and with drafts; nothing on a CPU, or where the profiler fails."""
    if case.model.device.type != "cuda":
        return {}
    lookaheads = {"plain": Lookahead(**{**options, "budget": 0}), "pia": Lookahead(case.new_cache(), **options)}
    try:
        return {name: device_waits_ms(case, 0, lookahead) for name, lookahead in lookaheads.items()}
    except RuntimeError as error:  # some machines let nobody profile; the other figures are none the worse for it
        print(f"no device waits: {error}", flush=True)
        return {}


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


def _figures(steps: dict[str, StepTimes], floor_ms: float, answers: dict[str, Answers]) -> list[Figure]:
    """What the issue asks for, in its order."""
    ms = {budget: times.as_dict()["ms"] for budget, times in steps.items()}
    gsm, alpaca, noise = answers["gsm"], answers["alpaca"], answers["random"]
    identical = sum(part.num_identical for part in answers.values())
    num_answers = sum(part.num_answers for part in answers.values())
    return [
        Figure("PIA plain, share of the roofline", 0.75, _over(floor_ms, ms["0"]), detail=f"step {ms['0']} ms"),
        _ratio("PIA plain over generate", 4.0, gsm, "plain", "generate"),
        Figure("step with 16 nodes over plain", 1.08, _over(ms["16"], ms["0"]), is_floor=False),
        Figure("step with 64 nodes over plain", 1.20, _over(ms["64"], ms["0"]), is_floor=False),
        Figure("host time between forwards, ms", 0.4, steps["auto"].as_dict()["host_ms"], is_floor=False),
        _ratio("PIA warmed over PIA plain, gsm", 2.6, gsm, "pia", "plain"),
        _ratio("PIA warmed over PIA plain, alpaca", 1.7, alpaca, "pia", "plain"),
        _ratio("PIA warmed over generate, gsm", 8.0, gsm, "pia", "generate"),
        Figure("random tokens, time over PIA plain", 1.02, noise.ratio("plain", "pia"), is_floor=False),
        Figure("outputs identical", 1.0, identical / num_answers, detail=f"{identical} of {num_answers} answers"),
    ]


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
