"""The training loop of the small models: batches epoch by epoch, Muon and AdamW, checkpoints to go on from."""

from __future__ import annotations

import argparse
import logging
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn import functional
from transformers import LlamaForCausalLM

from demo_threads import ThreadBalancer
from pia.ipad.float_muon import FloatMuon
from training_rows import Row

log = logging.getLogger("training")


def add_loop_options(
    parser: argparse.ArgumentParser, *, run_dir: str, steps: int, batch_tokens: int, precision: str
) -> None:
    """Declares what every run of training can be told."""
    add = parser.add_argument
    add("--run-dir", type=Path, default=Path(run_dir), help="tokenizer and checkpoints; resumed when it has any")
    add("--stop-at-step", type=int, help="write a checkpoint at this step and stop, to go on later")
    add("--seed", type=int, default=0)
    add("--steps", type=int, default=steps, help="length of the run: the learning rate falls to 0 at this step")
    add("--batch-tokens", type=int, default=batch_tokens, help="padded tokens in one batch")
    add("--muon-lr", type=float, default=4e-3, help="peak learning rate of the hidden matrices")
    add("--adamw-lr", type=float, default=3e-3, help="peak learning rate of embeddings and norms")
    add("--weight-decay", type=float, default=0.1)
    add("--warmup-steps", type=int, default=60)
    add(
        "--precision", choices=["bfloat16", "float32"], default=precision,
        help="of matrix products; a processor without bfloat16 instructions is several times slower in it",
    )  # fmt: skip
    add("--checkpoint-every", type=int, default=50, help="steps between checkpoints")
    add("--threads", type=int, default=torch.get_num_threads(), help="most CPU threads; fewer while cores are busy")


@dataclass
class State:
    """Where the run is: everything a resumed run needs besides model and optimizers."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


def build_optimizers(args: argparse.Namespace, model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for embeddings and norms; peak rates are kept as ``peak_lr``."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    known = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in known]
    muon: torch.optim.Optimizer
    if args.precision == "float32":
        muon = FloatMuon(matrices, lr=args.muon_lr, weight_decay=args.weight_decay)
    else:
        muon = torch.optim.Muon(
            matrices, lr=args.muon_lr, weight_decay=args.weight_decay, adjust_lr_fn="match_rms_adamw", nesterov=True
        )
    optimizers = [muon, torch.optim.AdamW(others, lr=args.adamw_lr, weight_decay=0.0, betas=(0.9, 0.95))]
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


class TrainingLoop(ABC):
    """Trains a model on the batches of one epoch after the other, with checkpoints."""

    def __init__(self, args: argparse.Namespace, model: LlamaForCausalLM) -> None:
        """Goes on from the last checkpoint of the run's folder, if there is one.

        Args:
            args: the options of ``add_loop_options``.
            model: fresh, on the device where it shall be trained.
        """
        self.args = args
        self.device = model.device
        self.model = model
        self.optimizers = build_optimizers(args, model)
        self.state = State()
        self.balancer = ThreadBalancer(args.threads)
        self.checkpoint = args.run_dir / "checkpoint.pt"
        args.run_dir.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            self.resume()

    @abstractmethod
    def epoch_batches(self, epoch: int) -> list[list[Row]]:
        """All batches of an epoch in training order: the same ones whenever asked, so that a run can go on."""

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
            batches = self.epoch_batches(self.state.epoch)
            for batch in batches[self.state.batch :]:
                yield batch
                self.state.batch += 1
                if self.state.step == last_step or self.state.step % self.args.checkpoint_every == 0:
                    self.save()
                if self.state.step == last_step:
                    return
            self.state.epoch, self.state.batch = self.state.epoch + 1, 0

    def train_step(self, batch: list[Row]) -> float:
        """One update; gives the mean negative log-likelihood of the tokens with weight 1."""
        self.model.train()
        factor = learning_rate_factor(self.state.step, self.args.warmup_steps, self.args.steps)
        ids, weights = collate(batch, self.device)
        with self.arithmetic():
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

    def arithmetic(self) -> torch.autocast:
        """The precision of matrix products."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.args.precision == "bfloat16")

    def report(self, nll: float) -> None:
        """A line in the log now and then."""
        if self.state.step % 20 == 0:
            rate = self.state.tokens / self.state.seconds
            log.info(
                "step %d, epoch %d, loss %.3f, %d tokens, %.0f tokens/s, %.1f min, %d threads",
                *(self.state.step, self.state.epoch, nll, self.state.tokens, rate),
                *(self.state.seconds / 60, torch.get_num_threads()),
            )
