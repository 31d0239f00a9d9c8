"""Measures IPAD: half of the demo model's inner weights removed in rounds, at once, and trained from scratch instead.

    python tools/bench_ipad.py [--data gsm8k_train.jsonl] [--test gsm8k_test.jsonl] [--steps 120] [--out build/ipad]

The teacher is the embedded demo model, the data GSM8K's training questions; quality is measured on test questions that
neither the teacher nor a student was trained on. All contenders see the same batches in the same steps, with the same
teacher; the one from scratch begins with random weights in the same shape, and has the higher learning rate that the
teacher itself was trained with, as random weights want one. Speeds are of plain decoding, in turns; the
small model is then tried as a draft of the large one. The very last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from demo_data import Example, load_examples
from pia.assets import demo_model_path, load_demo
from pia.bench.machine import describe_machine, machine_line
from pia.bench.memory import PeakMemory
from pia.cli.loading import quiet_bars, quiet_libraries
from pia.cli.shrink_progress import ShrinkProgress
from pia.ipad import Shrunk, shrink
from pia.ipad.checkpoint import save_model
from pia.ipad.data import Batches, make_batch, read_rows, split
from pia.ipad.distil_config import DistillConfig
from pia.ipad.distiller import Distiller
from pia.ipad.quality import measure
from pia.ipad.speed import measure_speeds, random_model
from pia.ipad.structure import structure_of
from pia.ipad.teacher import OnlineTeacher

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
FIRST_TEST, NUM_TEST = 100, 300
"""Test questions to measure on, behind those that the package ships."""
DISTILLATION: dict[str, Any] = {
    "optimizer": "muon", "learning_rate": 1e-3, "warmup_steps": 2, "batch_tokens": 4096,
    "attn_implementation": "eager", "checkpoint_every": 100,
}  # fmt: skip
"""The same for all contenders. Eager attention is the faster one at these lengths on a CPU."""
SCRATCH_LEARNING_RATE = 4e-3


@dataclass(frozen=True)
class Result:
    """A contender's small model, and what it took."""

    perplexity: float
    """On held-out answers, as a multiple of the teacher's."""
    agreement: float
    tokens_per_second: float
    """As a multiple of the teacher's."""
    seconds: float
    rounds: int


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, default=SHARED / "gsm8k_train.jsonl", help="GSM8K's training questions")
    add("--test", type=Path, default=SHARED / "gsm8k_test.jsonl", help="GSM8K's test questions")
    add("--out", type=Path, default=Path("build/ipad"), help="folder for the models and the report")
    add("--steps", type=int, default=120, help="of distillation, for each contender")
    add("--target", type=float, default=0.5, help="share of the non-embedding parameters that stays")
    add("--target-latency", type=float, default=0.64, help="share of the time per token that stays at most")
    add("--questions", type=int, default=10, help="to try the small model as a draft on; 0: not at all")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    quiet_libraries()
    quiet_bars()
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    training, held_out = write_data(args)
    bench = Bench(args, training, held_out)
    started = time.perf_counter()
    results = bench.run()
    memory = bench.memory()
    drafts = draft_figures(args) if args.questions else None
    bench.show(results, memory)
    print(json.dumps({
        "benchmark": "ipad",
        "teacher_perplexity": bench.teacher_quality.perplexity,
        "shape": str(bench.shape),
        "kept": bench.kept,
        "steps": args.steps,
        "contenders": {name: vars(result) for name, result in results.items()},
        "memory": memory,
        "as_draft": drafts,
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "machine": describe_machine(bench.teacher),
    }))  # fmt: skip
    return 0


def write_data(args: argparse.Namespace) -> tuple[Path, Path]:
    """Files of questions and answers without calculator marks, as the teacher learnt them."""
    try:
        train, test = load_examples(args.data), load_examples(args.test)
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from None
    paths = args.out / "train.jsonl", args.out / "test.jsonl"
    for path, examples in zip(paths, (train, test[FIRST_TEST : FIRST_TEST + NUM_TEST]), strict=True):
        path.write_text("".join(map(_line, examples)), encoding="utf-8")
    return paths


def _line(example: Example) -> str:
    return json.dumps({"question": example.question, "answer": example.answer}) + "\n"


class Bench:
    """The contenders, one after the other."""

    def __init__(self, args: argparse.Namespace, training: Path, held_out: Path) -> None:
        self.args = args
        self.files = training, held_out
        self.teacher, self.tokenizer = load_demo()
        self.config = DistillConfig(**DISTILLATION)
        settings = {"max_length": self.config.max_length, "prompt_weight": self.config.prompt_weight}
        rows, measured = (read_rows(path, self.tokenizer, **settings) for path in self.files)
        self.rows, self.held_out = split(rows, measured)
        self.teacher_quality = measure(self.teacher, self.held_out)
        self.shape: Any = None
        self.kept = 1.0
        self.peak: int | None = None

    def run(self) -> dict[str, Result]:
        """All contenders; the iterative one decides the shape."""
        iterative = self.shrink("iterative", target=self.args.target, target_latency=self.args.target_latency)
        record = iterative.record
        self.shape, self.kept = record.last.shape, record.last.non_embedding / record.original.non_embedding
        self.peak = max((r.peak_bytes for r in record.rounds if r.peak_bytes), default=None)
        one_shot = self.shrink("one-shot", shape=str(self.shape), round_share=1.0)
        seconds = self.from_scratch(self.args.out / "from-scratch")
        times = {
            "iterative": (_seconds(iterative), len(record.rounds)),
            "one-shot": (_seconds(one_shot), 1),
            "from-scratch": (seconds, 1),
        }
        models = {name: _load(self.args.out / name) for name in times}
        speeds = measure_speeds({"teacher": self.teacher, **models}, rounds=9, new_tokens=64)
        base = speeds["teacher"].tokens_per_second
        results = {}
        for name, model in models.items():
            quality = measure(model, self.held_out, self.teacher)
            results[name] = Result(
                quality.perplexity / self.teacher_quality.perplexity,
                quality.agreement or 0.0,
                speeds[name].tokens_per_second / base,
                *times[name],
            )
        return results

    def shrink(self, name: str, **options: Any) -> Shrunk:
        """A shrink with the settings of all."""
        print(f"\n{name}", flush=True)
        with ShrinkProgress(is_quiet=False) as progress:
            return shrink(
                str(demo_model_path()), self.files[0], self.args.out / name, held_out=self.files[1],
                command=" ".join(sys.argv), progress=progress, steps=self.args.steps, calibration_rows=32,
                **options, **DISTILLATION,
            )  # fmt: skip

    def from_scratch(self, folder: Path) -> float:
        """Random weights of the same shape, trained with the same steps and the same teacher."""
        print("\nfrom scratch", flush=True)
        student = random_model(structure_of(self.teacher), self.shape, self.teacher)
        started = time.perf_counter()
        Distiller(
            student, OnlineTeacher(self.teacher), self.rows,
            replace(self.config, learning_rate=SCRATCH_LEARNING_RATE), seed=0, folder=folder / "stage",
            num_steps=self.args.steps,
        ).run()  # fmt: skip
        save_model(student, self.tokenizer, folder, torch.bfloat16)
        return time.perf_counter() - started

    def memory(self) -> dict[str, float | None]:
        """What the largest round took, against the teacher's weights and its activations for the largest batch."""
        weights = sum(p.numel() * p.element_size() for p in self.teacher.parameters())
        numbers = max(Batches(self.rows, self.config.batch_tokens, 0).epoch(0), key=lambda n: self._padded(n))
        ids = make_batch(self.rows, numbers).ids
        self.teacher.requires_grad_(True)
        self.teacher.set_attn_implementation(self.config.attn_implementation)
        with PeakMemory("cpu") as activations:
            logits = self.teacher(ids, use_cache=False).logits
        del logits
        self.teacher.requires_grad_(False)
        if self.peak is None or not activations.num_bytes:
            return {"ratio": None}
        plain = weights + activations.num_bytes
        return {
            "round_mib": (weights + self.peak) / 2**20,
            "weights_and_activations_mib": plain / 2**20,
            "ratio": (weights + self.peak) / plain,
        }

    def _padded(self, numbers: tuple[int, ...]) -> int:
        return len(numbers) * max(len(self.rows[number]) for number in numbers)

    def show(self, results: dict[str, Result], memory: dict[str, float | None]) -> None:
        """The table, for people."""
        table = Table(title=f"{self.shape}: {self.kept:.1%} of the non-embedding parameters, {self.args.steps} steps")
        for column in ("contender", "perplexity / teacher's", "agrees", "tokens/s / teacher's", "rounds", "minutes"):
            table.add_column(column, justify="left" if column == "contender" else "right")
        for name, r in results.items():
            table.add_row(
                name, f"{r.perplexity:.3f}", f"{r.agreement:.1%}", f"{r.tokens_per_second:.2f}", str(r.rounds),
                f"{r.seconds / 60:.1f}",
            )  # fmt: skip
        Console(width=None if sys.stdout.isatty() else 100).print(table)
        print(f"The teacher's perplexity on {len(self.held_out)} test answers: {self.teacher_quality.perplexity:.3f}.")
        if memory["ratio"]:
            print(f"A round takes {memory['ratio']:.2f} x the teacher's weights and activations of one batch at most.")
        print(f"On {machine_line(describe_machine(self.teacher))}.")


def _seconds(shrunk: Shrunk) -> float:
    return sum(record.seconds or 0.0 for record in shrunk.record.rounds)


def _load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def draft_figures(args: argparse.Namespace) -> dict[str, Any]:
    """The small model as a draft of the large one in Transformers' assisted generation, beside LOOKAHEAD."""
    print("\nas a draft", flush=True)
    command = [
        *(sys.executable, "-m", "pia", "bench", "demo", "--assistant", str(args.out / "iterative")),
        *("--questions", str(args.questions), "--rounds", "1", "--engine", "eager"),
    ]
    shown = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    print(shown.rpartition("\n{")[0])
    figures = json.loads(shown.splitlines()[-1])
    return {name: figures[name] for name in ("tokens_per_s", "edl", "edl_cold", "identical_by_contender")}


if __name__ == "__main__":
    raise SystemExit(main())
