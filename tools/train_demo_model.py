"""Trains the demo model that PIA ships: a small Llama that answers grade-school sums.

The defaults are the recipe of the shipped weights. A run that is stopped goes on where it was when started again with
the same --run-dir.

    python tools/train_demo_model.py --run-dir runs/demo --export src/pia/assets/demo_model
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo_data import Example, NameSwapper, Row, RowMaker, load_examples, make_batches, train_tokenizer
from demo_export import export_model
from demo_generate import generate_answers
from demo_threads import ThreadBalancer

log = logging.getLogger("train_demo_model")
REPO = Path(__file__).resolve().parents[1]
DEFAULT_DATA = REPO.parent / "shared" / "data" / "gsm8k_train.jsonl"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line; its defaults are the recipe of the shipped weights."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, default=DEFAULT_DATA, help="GSM8K training file (JSON lines)")
    add("--run-dir", type=Path, default=Path("runs/demo"), help="tokenizer and checkpoints; resumed when it has any")
    add("--export", type=Path, help="folder for the finished model; without it only a checkpoint is written")
    add("--export-only", action="store_true", help="export the last checkpoint as it is, and stop")
    add("--stop-at-step", type=int, help="write a checkpoint at this step and stop, to go on later")
    add("--seed", type=int, default=0)
    add("--steps", type=int, default=1220, help="length of the run: the learning rate falls to 0 at this step")
    add("--batch-tokens", type=int, default=6144, help="padded tokens in one batch")
    add("--vocab-size", type=int, default=2048)
    add("--hidden-size", type=int, default=256)
    add("--layers", type=int, default=8)
    add("--ffn-size", type=int, default=672)
    add("--muon-lr", type=float, default=4e-3, help="peak learning rate of the hidden matrices")
    add("--adamw-lr", type=float, default=3e-3, help="peak learning rate of embeddings and norms")
    add("--weight-decay", type=float, default=0.1)
    add("--warmup-steps", type=int, default=60)
    add("--question-weight", type=float, default=0.2, help="loss weight of question tokens (answer tokens: 1)")
    add("--swap-names", type=float, default=0.6, help="share of examples whose people get other names")
    add("--unlikely-from", type=int, default=3, help="first epoch in which repetitions are penalised")
    add("--unlikely-share", type=float, default=0.1, help="penalised rows added, as a share of the examples")
    add("--penalty", type=float, default=2.0, help="weight of an unlikelihood token")
    add("--own-answers", type=int, default=480, help="questions the model answers before each such epoch")
    add("--own-copies", type=int, default=4, help="rows made of each own answer that repeats itself")
    add("--own-threshold", type=float, default=0.12, help="an own answer with a larger repeated share is penalised")
    add("--checkpoint-every", type=int, default=50, help="steps between checkpoints")
    add("--threads", type=int, default=torch.get_num_threads(), help="most CPU threads; fewer while cores are busy")
    return parser.parse_args(argv)


@dataclass
class State:
    """Where the run is: everything a resumed run needs besides model and optimizers."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Epochs:
    """The batches of every epoch, each a function of seed and epoch alone, so that a resumed run sees the same data."""

    def __init__(self, args: argparse.Namespace, examples: list[Example], rows: RowMaker) -> None:
        self.args = args
        self.examples = examples
        self.rows = rows
        self.swapper = NameSwapper(examples)

    def penalises(self, epoch: int) -> bool:
        """Whether repetitions are penalised in this epoch."""
        return epoch >= self.args.unlikely_from

    def batches(self, epoch: int, own_rows: list[Row]) -> list[list[Row]]:
        """All batches of one epoch, in training order; ``own_rows`` are mixed in."""
        rng = random.Random(f"{self.args.seed}/{epoch}")
        examples = [self._vary(e, rng) for e in self.examples]
        rows = self.rows.plain(examples) + own_rows
        if self.penalises(epoch):
            chosen = rng.sample(examples, round(self.args.unlikely_share * len(examples)))
            rows += self.rows.repeating(chosen, rng)
        return make_batches(rows, self.args.batch_tokens, rng)

    def _vary(self, example: Example, rng: random.Random) -> Example:
        return self.swapper.swap(example, rng) if rng.random() < self.args.swap_names else example


def build_model(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A fresh model; torch's seed decides its weights."""
    config = LlamaConfig(
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        intermediate_size=args.ffn_size,
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",  # on a CPU and at these lengths faster than the fused one
    )
    return LlamaForCausalLM(config)


def build_optimizers(args: argparse.Namespace, model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for embeddings and norms; peak rates are kept as ``peak_lr``."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    known = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in known]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            matrices, lr=args.muon_lr, weight_decay=args.weight_decay, adjust_lr_fn="match_rms_adamw", nesterov=True
        ),
        torch.optim.AdamW(others, lr=args.adamw_lr, weight_decay=0.0, betas=(0.9, 0.95)),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def learning_rate_factor(step: int, warmup_steps: int, num_steps: int) -> float:
    """Linear warmup, and linear decay to 0 at the last step."""
    return min((step + 1) / warmup_steps, 1.0) * (1.0 - step / num_steps)


def collate(batch: list[Row], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and weights, both ``[batch, length]``, padded on the right with id 0 and weight 0."""
    length = max(len(row.ids) for row in batch)
    ids = torch.tensor([row.ids + [0] * (length - len(row.ids)) for row in batch])
    weights = torch.tensor([row.weights + [0.0] * (length - len(row.weights)) for row in batch])
    return ids.to(device), weights.to(device)


def weighted_loss(logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Likelihood and unlikelihood in one mean.

    Args:
        logits: ``[batch, length, vocab]``, the prediction after each token.
        ids: ``[batch, length]``.
        weights: ``[batch, length]``, signed as in ``Row``.

    Returns:
        The loss to minimise, and the plain mean negative log-likelihood of the tokens with weight 1 (for the log).
    """
    targets, target_weights = ids[:, 1:].flatten(), weights[:, 1:].flatten()
    nll = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets, reduction="none")
    taught, penalised = target_weights.clamp(min=0), (-target_weights).clamp(min=0)
    unlikelihood = -torch.log1p(-torch.exp(-nll).clamp(max=1 - 1e-4))
    loss = (taught * nll + penalised * unlikelihood).sum() / taught.sum().clamp(min=1)
    is_answer = target_weights == 1
    return loss, float(nll.detach()[is_answer].mean()) if is_answer.any() else math.nan


def save_checkpoint(path: Path, content: dict[str, object]) -> None:
    """Writes a checkpoint so that a reader sees the old or the new one, never half of one."""
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    os.replace(partial, path)


class Trainer:
    """The training loop with its checkpoints."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(args.seed)
        examples = load_examples(args.data)
        self.tokenizer = train_tokenizer(examples, args.vocab_size)
        rows = RowMaker(self.tokenizer, question_weight=args.question_weight, penalty=args.penalty)
        self.epochs = Epochs(args, examples, rows)
        self.model = build_model(args, self.tokenizer).to(self.device)
        self.optimizers = build_optimizers(args, self.model)
        self.state = State()
        self.balancer = ThreadBalancer(args.threads)
        self.checkpoint = args.run_dir / "checkpoint.pt"
        args.run_dir.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            self.resume()

    def resume(self) -> None:
        """Goes back to the last checkpoint: weights, optimizers, random state and the place in the data."""
        content = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.model.load_state_dict(content["model"])
        for optimizer, saved in zip(self.optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        torch.set_rng_state(content["rng"].cpu())
        self.state = State(**content["state"])
        log.info("resumed at step %d (epoch %d)", self.state.step, self.state.epoch)

    def save(self) -> None:
        """Writes the checkpoint."""
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        content = {"model": self.model.state_dict(), "optimizers": optimizers, "rng": torch.get_rng_state()}
        save_checkpoint(self.checkpoint, {**content, "state": vars(self.state)})

    def run(self) -> None:
        """Trains to the last step, or to the one where it shall stop."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns) as progress:
            task = progress.add_task("training", total=self.args.steps)
            mean_nll = math.nan
            for batch in self.remaining():
                self.balancer.update()
                started = time.perf_counter()
                nll = self.train_step(batch)
                self.state.seconds += time.perf_counter() - started
                mean_nll = nll if math.isnan(mean_nll) else 0.95 * mean_nll + 0.05 * nll
                progress.update(task, completed=self.state.step, description=f"loss {mean_nll:.3f}")
                self.report(mean_nll)

    def remaining(self) -> Iterator[list[Row]]:
        """The batches still to come, with checkpoints in between."""
        last_step = min(self.args.steps, self.args.stop_at_step or self.args.steps)
        while self.state.step < last_step:
            own_rows = self.own_rows(self.state.epoch) if self.epochs.penalises(self.state.epoch) else []
            batches = self.epochs.batches(self.state.epoch, own_rows)
            for batch in batches[self.state.batch :]:
                yield batch
                self.state.batch += 1
                if self.state.step == last_step or self.state.step % self.args.checkpoint_every == 0:
                    self.save()
                if self.state.step == last_step:
                    return
            self.state.epoch, self.state.batch = self.state.epoch + 1, 0

    def own_rows(self, epoch: int) -> list[Row]:
        """Rows that penalise the loops in the model's own answers to training questions.

        The answers are made once, at the start of the epoch, and kept beside the checkpoint for a resumed run.
        """
        kept = self.args.run_dir / f"own_answers_{epoch}.json"
        if not kept.exists():
            self.save()  # the answers belong to exactly these weights
            pairs = self.answer_own(random.Random(f"{self.args.seed}/own/{epoch}"))
            partial = kept.with_suffix(".partial")
            partial.write_text(json.dumps(pairs))
            os.replace(partial, kept)
        pairs = json.loads(kept.read_text())
        rows = [self.epochs.rows.looping(p, a, threshold=self.args.own_threshold) for p, a in pairs]
        looping = [row for row in rows if row]
        log.info("epoch %d: %d of %d own answers repeat themselves", epoch, len(looping), len(pairs))
        return looping * self.args.own_copies

    def answer_own(self, rng: random.Random) -> list[tuple[list[int], list[int]]]:
        """Prompts, and the model's greedy answers to them."""
        prompts = self.epochs.rows.prompts(rng.sample(self.epochs.examples, self.args.own_answers))
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            answers = generate_answers(self.model, prompts, max_new_tokens=256, batch_size=48)
        return list(zip(prompts, answers, strict=True))

    def train_step(self, batch: list[Row]) -> float:
        """One update; gives the mean negative log-likelihood of the answer tokens."""
        self.model.train()
        factor = learning_rate_factor(self.state.step, self.args.warmup_steps, self.args.steps)
        ids, weights = collate(batch, self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            logits = self.model(input_ids=ids, use_cache=False).logits  # causal mask alone: padding is on the right
        loss, nll = weighted_loss(logits, ids, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.state.step += 1
        self.state.tokens += sum(len(row.ids) for row in batch)
        return nll

    def report(self, nll: float) -> None:
        """A line in the log now and then."""
        if self.state.step % 20 == 0:
            rate = self.state.tokens / self.state.seconds
            log.info(
                "step %d, epoch %d, loss %.3f, %d tokens, %.0f tokens/s, %.1f min, %d threads",
                *(self.state.step, self.state.epoch, nll, self.state.tokens, rate),
                *(self.state.seconds / 60, torch.get_num_threads()),
            )


def main(argv: list[str] | None = None) -> int:
    """Trains, and exports when told where to."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    try:
        trainer = Trainer(args)
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from None
    if not args.export_only:
        trainer.run()
    if args.export:
        export_model(trainer.model, trainer.tokenizer, args.export)
        log.info("exported to %s", args.export)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
