"""All that is to be said of one case, a model on a prompt set and a device, as plain data ready for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import median
from typing import Any

from pia.bench.bandwidth import measure_bandwidth
from pia.bench.breakdown import step_breakdown
from pia.bench.by_source import by_source
from pia.bench.contenders import Accelerated, Contender
from pia.bench.labels import label_of
from pia.bench.latency import first_token_times
from pia.bench.memory import PeakMemory
from pia.bench.report import Report, quartiles
from pia.bench.roofline import reached, roofline
from pia.bench.step_bytes import KvBytes, WeightBytes, kv_bytes, weight_bytes
from pia.bench.workload import Workload
from pia.decoding.stats import Stats
from pia.models.placement import input_device

CURVE_CONTEXT = 128
"""Tokens behind which PIA measures what forwards cost."""


def case_result(
    workload: Workload, report: Report, *, about: Mapping[str, Any], missing: Mapping[str, str]
) -> dict[str, Any]:
    """What the timed rounds say.

    Args:
        workload: what was measured.
        report: the timed rounds.
        about: names of the model, the prompt set, the machine and the like.
        missing: contenders that are not there, and why.
    """
    return {
        **about,
        "is_replay": workload.is_replay,
        "is_sampled": bool(workload.options.get("do_sample")),
        **report.as_dict(),
        "contenders": {name: _row(report, name) for name in report.runs},
        "missing": dict(missing),
    }


def examined(
    case: Mapping[str, Any], workload: Workload, contenders: Sequence[Contender], report: Report
) -> dict[str, Any]:
    """A case with what the timed rounds leave open: first tokens, memory, the cost curve, the roofline.

    Args:
        case: of `case_result`.
        workload: what was measured.
        contenders: as they are after the rounds.
        report: the timed rounds.
    """
    first_tokens = first_token_times(workload, contenders)
    peaks = _peak_memory(workload, contenders)
    rows = {
        name: {**row, **_more(report, name, row, first_tokens[name], peaks[name])}
        for name, row in case["contenders"].items()
    }
    weights, kv, context = weight_bytes(workload.model), kv_bytes(workload.model), mean_context(workload, report)
    return {
        **case,
        "contenders": rows,
        "memory": _memory(weights, kv, context),
        "curve": _curve(workload.model, contenders),
        "roofline": None if report.batch_size > 1 else _roofline(workload.model, rows, weights, kv, context),
    }


def mean_context(workload: Workload, report: Report) -> float:
    """Mean length of the text during the decode steps of plain decoding, in tokens."""
    answers = [len(run.token_ids) for run in report.runs[report.reference][0]]
    lengths = [prompt.shape[1] for prompt in workload.prompts]
    total = sum(n * (length + n / 2) for length, n in zip(lengths, answers, strict=True))
    return total / max(1, sum(answers))


def _row(report: Report, name: str) -> dict[str, Any]:
    """A contender's figures, from the timed rounds."""
    stats, edl, over = report.stats(name), report.edl(name), report.ratio(name, "generate")
    steps = None if stats is None else step_breakdown(stats, _seconds(report, name))
    setup_s = report.setup_s.get(name, [])
    return {
        "label": label_of(name),
        "tokens_per_s": _speed(report, name),
        "over_generate": None if over is None else round(over, 3),
        "edl": None if edl is None else round(edl, 3),
        "identical": None if name == report.reference else report.num_identical(name),
        "by_source": by_source(stats),
        "setup_s": {"first": round(setup_s[0], 3), "median": round(median(setup_s), 3)} if setup_s else None,
        "steps": steps,
        "step_ms": steps["step_ms"] if steps else None,
        **_decoding(stats),
    }


def _more(
    report: Report, name: str, row: Mapping[str, Any], first_token_s: Sequence[float], peak: PeakMemory
) -> dict[str, Any]:
    """A contender's figures from outside the rounds."""
    step_ms = row["step_ms"] or _stock_step_ms(report, name, median(first_token_s))
    return {
        "first_token_ms": _milliseconds(first_token_s),
        "peak_memory_bytes": peak.num_bytes,
        "memory_method": peak.method,
        "step_ms": step_ms,
    }


def _speed(report: Report, name: str) -> dict[str, Any]:
    slowest, fastest = report.spread(name)
    first, third = report.quartiles_by_prompt(name)
    return {
        "median": round(report.tokens_per_s(name), 2),
        "min": round(slowest, 2),
        "max": round(fastest, 2),
        "quartiles_by_prompt": [round(first, 2), round(third, 2)],
    }


def _decoding(stats: Stats | None) -> dict[str, Any]:
    """How PIA decoded and why, as its statistics say."""
    if stats is None:
        return {"mode": None, "reason": None, "engine": "transformers", "engine_reason": None}
    engine = stats.engine or "eager"  # Transformers' own loop names none
    return {"mode": stats.mode, "reason": stats.reason, "engine": engine, "engine_reason": stats.engine_reason}


def _stock_step_ms(report: Report, name: str, first_token_s: float) -> float | None:
    """Mean time of a decode forward and all around it: what a call takes beyond its first token."""
    runs = list(chain(*report.runs[name]))
    num_forwards = sum((run.num_forwards or 1) - 1 for run in runs)
    if report.batch_size > 1 or num_forwards < 1:
        return None
    return round(1e3 * max(0.0, _seconds(report, name) - first_token_s * len(runs)) / num_forwards, 4)


def _seconds(report: Report, name: str) -> float:
    return sum(run.seconds for run in chain(*report.runs[name]))


def _milliseconds(seconds: Sequence[float]) -> dict[str, Any]:
    first, third = quartiles(seconds)
    return {"median": round(1e3 * median(seconds), 3), "quartiles": [round(1e3 * first, 3), round(1e3 * third, 3)]}


def _peak_memory(workload: Workload, contenders: Sequence[Contender]) -> dict[str, PeakMemory]:
    """What answering the longest prompt takes beyond what is there before, outside the timed rounds."""
    peaks = {}
    for contender in contenders:
        with PeakMemory(input_device(workload.model)) as peak:
            workload.answer(contender, [workload.longest])
        peaks[contender.name] = peak
    return peaks


def _memory(weights: WeightBytes, kv: KvBytes | None, context: float) -> dict[str, Any]:
    return {
        "weight_bytes": weights.stored,
        "kv_bytes_per_token": round(kv.per_token, 1) if kv else None,
        "kv_bytes_at_context": kv.at(context) if kv else None,
    }


def _curve(model: Any, contenders: Sequence[Contender]) -> dict[str, Any] | None:
    """What a forward over q tokens costs, where the model can verify drafts."""
    from pia.models.profile import capability_of, curve_of

    capability = capability_of(model, self_check=True)
    if not capability.can_verify_chains:
        return None
    ours = next(one for one in contenders if isinstance(one, Accelerated))
    curve = curve_of(model, capability, ours.engine)
    return {
        "sizes": list(curve.sizes),
        "ms": [round(1e3 * seconds, 4) for seconds in curve.seconds],
        "context": CURVE_CONTEXT,
    }


def _roofline(
    model: Any, rows: Mapping[str, Mapping[str, Any]], weights: WeightBytes, kv: KvBytes | None, context: float
) -> dict[str, Any]:
    """The floor of a plain step, and how near `generate` and PIA without drafts come to it."""
    device = input_device(model)
    memory = measure_bandwidth(device)
    num_bytes = weights.read + (kv.at(context) if kv else 0)
    cached = measure_bandwidth(device, num_bytes) if num_bytes < memory.num_bytes else None
    result = roofline(weights, kv, context, memory, cached)
    plain = rows["plain"]["steps"]
    steps = {name: rows[name]["step_ms"] for name in ("generate", "plain")}
    result["share_of_step"] = reached(result["floor_ms"], steps)
    result["share_of_forward"] = reached(result["floor_ms"], {"plain": plain["ms"]["forward"] if plain else None})
    return result
