"""A report for people, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pia.bench.breakdown import PARTS
from pia.bench.by_source import source_cells
from pia.bench.labels import label_of
from pia.bench.machine import device_name, machine_line

Case = Mapping[str, Any]

_REPLAY = "replay"
_CAPTIONS = {
    "speed": "Tokens per second",
    "steps": "Where the time of a decode step goes",
    "roofline": "Forwards over q tokens, and the floor",
}
_HOW = """\
## How it was measured

* Contenders answer the same prompts in turns, each time another one first; every round starts them afresh. Tokens/s
  are all tokens by all time of a round: the median over the rounds, with the slowest and the fastest. Whole calls
  count, prefill and preparation included; set-up (examining the model, measuring its forwards, compiling) does not,
  and stands apart: that of the first round, of which whoever comes first in it bears what all share.
* "Same output" compares the answers of these very rounds, token by token.
* EDL is tokens per decode forward. The first token's time is that of a call for one token: median and quartiles, over
  up to 20 prompts.
* Memory is the most that answering the longest prompt takes beyond what is there before, in a call outside the timed
  rounds: on CUDA as torch counts it, elsewhere by the resident memory of the process.
* A step's parts are means. Draft, forward, accept and keep are inside PIA's loop; `other` is the rest of the call.
  Steps of `generate` are what its calls take beyond their first token, by forward.
* The floor of a plain step is its bytes (weights and KV cache) over the best rate at which torch was seen to read or
  copy as many on this device.
* In a **replay** a model of full size with random weights runs every forward; only which token follows is taken from a
  recorded text. Cost, acceptance and overheads are real; what is written is the recording. Drafts come from the cache
  alone, since such a model's logits know nothing of the text.
"""


def markdown(cases: Sequence[Case], plots: Mapping[str, Sequence[str]], *, date: str) -> str:
    """The whole report.

    Args:
        cases: as they are in report.json.
        plots: files by the name of the plot; the first of each is shown.
        date: of the measurement.
    """
    machines = list(dict.fromkeys(machine_line(case["machine"]) for case in cases))
    blocks = [
        "# Benchmark",
        "\n".join(f"* {line}" for line in machines),
        f"Measured on {date}. All figures as JSON: [report.json](report.json).",
        "## Side by side",
        "Tokens/s of Transformers' `generate` and of PIA with a warmed cache, in the form of the tables of the first "
        "LOOKAHEAD.",
        _side_by_side(cases),
        *_plots(plots),
        *(block for case in cases for block in _case(case)),
        _HOW,
    ]
    return "\n\n".join(blocks)


def _side_by_side(cases: Iterable[Case]) -> str:
    head = ["model", "dataset", "device", "transformers", "lookahead", "identical", "kind"]
    rows = []
    for case in cases:
        ours, theirs = case["contenders"]["pia"], case["contenders"]["generate"]
        speed = f"{ours['tokens_per_s']['median']:.1f} (x{ours['over_generate']:.2f})"
        same = f"{case['identical']} of {case['questions']}"
        names = [case["model"], _set_name(case), _device(case)]
        rows.append([*names, f"{theirs['tokens_per_s']['median']:.1f}", speed, same, _kind(case)])
    return _table(head, rows)


def _kind(case: Case) -> str:
    return f"**{_REPLAY}**" if case["is_replay"] else "measured"


def _set_name(case: Case) -> str:
    notes = [f"batch {case['batch']}"] if case["batch"] > 1 else []
    notes += ["sampled"] if case["is_sampled"] else []
    return ", ".join([case["prompt_set"], *notes])


def _device(case: Case) -> str:
    return f"{device_name(case['machine'])}, {case['machine']['dtype']}"


def _plots(plots: Mapping[str, Sequence[str]]) -> list[str]:
    if not plots:
        return ["(No plots: Matplotlib is not installed; `pip install matplotlib`.)"]
    return [f"![{_CAPTIONS.get(name, name)}]({files[0]})" for name, files in plots.items()]


def _case(case: Case) -> list[str]:
    about = (
        f"{case['questions']} prompts, {case['rounds']} rounds, {case['tokens']:,} tokens a round; "
        f"{case['nonrepeating']} answers repeat no run of eight tokens."
    )
    if case["is_replay"]:
        about += f" **Replay**: {case['label']}."
    blocks = [
        f"## {case['model']}: {_set_name(case)} ({_device(case)})",
        about,
        _speeds(case),
        *(f"*{label_of(name)}* is not here: {reason}." for name, reason in case["missing"].items()),
        *_sources(case),
        "### A step",
        _steps(case),
        _engines(case),
    ]
    return [*blocks, *_roofline(case), _memory(case)]


def _speeds(case: Case) -> str:
    head = ["", "tokens/s", "slowest .. fastest round", "against `generate`", "EDL", "same output",
            "first token, ms", "memory, MB", "set-up, s"]  # fmt: skip
    return _table(head, [_speed_row(case, row) for row in case["contenders"].values()])


def _speed_row(case: Case, row: Mapping[str, Any]) -> list[str]:
    speed, first = row["tokens_per_s"], row.get("first_token_ms")
    same, memory = row["identical"], row.get("peak_memory_bytes")
    return [
        row["label"],
        f"{speed['median']:.1f}",
        f"{speed['min']:.1f} .. {speed['max']:.1f}",
        f"{row['over_generate']:.2f} x",
        _number(row["edl"], ".2f"),
        "(reference)" if same is None else f"{same} of {case['questions']}",
        f"{first['median']:.1f} ({first['quartiles'][0]:.1f} .. {first['quartiles'][1]:.1f})" if first else "",
        _number(memory and memory / 1e6, ".1f"),
        _number(row["setup_s"] and row["setup_s"]["first"], ".2f"),
    ]


def _sources(case: Case) -> list[str]:
    """Where accepted drafts come from."""
    names, rows = source_cells(case["contenders"].values())
    if not rows:
        return []
    return ["### Accepted tokens a forward, of nodes drafted, by source", _table(["", *names], rows)]


def _steps(case: Case) -> str:
    head = ["ms a step (share)", "whole", *PARTS]
    rows = []
    for row in case["contenders"].values():
        steps = row["steps"]
        parts = [f"{steps['ms'][part]:.3f} ({steps['share'][part]:.1%})" for part in PARTS] if steps else [""] * 5
        rows.append([row["label"], _number(row["step_ms"], ".3f"), *parts])
    return _table(head, rows)


def _engines(case: Case) -> str:
    lines = []
    for row in case["contenders"].values():
        if row["mode"] is not None:
            engine = f"{row['engine']}" + (f" ({row['engine_reason']})" if row["engine_reason"] else "")
            lines.append(f"* {row['label']}: engine {engine}; mode {row['mode']}: {row['reason']}")
    return "\n".join(lines)


def _roofline(case: Case) -> list[str]:
    line = case.get("roofline")
    if not line:
        return []
    kv = "unknown" if line["kv_bytes"] is None else f"{line['kv_bytes'] / 1e6:.2f} MB of KV"
    text = (
        f"A plain step at a context of {line['context']:.0f} tokens reads {line['bytes'] / 1e6:.2f} MB "
        f"({line['weight_bytes'] / 1e6:.2f} MB of weights, {kv}); at {line['bandwidth_gb_s']:.1f} GB/s "
        f"(measured: {line['operation']}) that takes **{line['floor_ms']:.3f} ms**. "
        f"Through memory the device moves {line['memory_gb_s']:.1f} GB/s."
    )
    shares = [
        ["`generate`, whole step", _number(line["share_of_step"]["generate"], ".1%")],
        ["PIA without drafts, whole step", _number(line["share_of_step"]["plain"], ".1%")],
        ["PIA without drafts, forward alone", _number(line["share_of_forward"]["plain"], ".1%")],
    ]
    notes = "\n".join(f"* {note}" for note in line["notes"])
    return ["### Roofline", text, _table(["", "share of the roofline reached"], shares), *([notes] if notes else [])]


def _memory(case: Case) -> str:
    memory = case.get("memory")
    if not memory:
        return ""
    kv = memory["kv_bytes_per_token"]
    per_token = "unknown" if kv is None else f"{kv:,.0f} bytes a token"
    return f"Weights take {memory['weight_bytes'] / 1e6:.1f} MB; the KV cache takes {per_token}."


def _number(value: float | None, style: str) -> str:
    return "" if value is None else format(value, style)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---" if n == 0 else "---:" for n in range(len(head))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))
