"""One stage of distillation: a student learns from its teacher for some steps."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pia.errors import ShrinkError
from pia.ipad.arithmetic import autocast_dtype
from pia.ipad.data import Batch, Batches, Rows, make_batch
from pia.ipad.data.batches import grouped
from pia.ipad.decoder import Decoder, weights_fingerprint
from pia.ipad.distil_config import DistillConfig
from pia.ipad.lora import adapted
from pia.ipad.losses import ChunkedLoss, hidden_loss
from pia.ipad.moments import Moments, load_moments, moments_of
from pia.ipad.optimizers import build_optimizers, set_learning_rate
from pia.ipad.processes import Processes
from pia.ipad.stage_checkpoint import StageCheckpoint
from pia.ipad.teacher import Teacher


@dataclass(frozen=True)
class StepInfo:
    """What a step of training was like; losses are means over tokens, each by its weight."""

    step: int
    """Of the whole run."""
    loss: float
    kl: float
    """The divergence from the teacher, times the square of the temperature; 0 without a teacher."""
    lm: float
    """Negative log-likelihood."""
    tokens: int
    """Without padding, of all processes."""
    learning_rate: float


@dataclass(frozen=True)
class Stage:
    """Which steps of a run are trained, and how its learning rate goes."""

    first_step: int
    num_steps: int
    lr_from: float = 1.0
    lr_to: float = 0.0

    def lr_factor(self, number: int, warmup_steps: int) -> float:
        """Of the highest learning rate, at the step with this number within the stage.

        It goes from `lr_from` towards `lr_to` on a line and would reach it one step behind the last: there the next
        stage begins.
        """
        line = self.lr_from + (self.lr_to - self.lr_from) * number / self.num_steps
        return line * min(1.0, (number + 1) / warmup_steps) if warmup_steps else line


class Distiller:
    """Trains a student for one stage.

    Dropout is off: a model that has just lost units does not fit too well, and without it every step follows from the
    seed alone. Weights are trained in float32, to which the student is converted.

    Args:
        student: is trained in place.
        teacher: says what should come next; None where `config.lm_weight` is 1.
        rows: to train on.
        config: how.
        seed: of the order of the rows.
        folder: for the stage's checkpoints; if one is there, training goes on from it, to the same bytes.
        first_step: number of the first step in the whole run, which decides the batches.
        num_steps: to train.
        lr_from: factor of the learning rate at the beginning of the stage.
        lr_to: and behind its end.
        on_step: is told about every step that is trained, on the main process.
        hidden_channels: which of the teacher's hidden channels the student has, where `config.hidden_weight` is not 0.
        moments: of the optimizers, to begin with, given away; they begin anew when None, or where adapters are
            trained.

    Raises:
        ShrinkError: teacher, rows and student do not go together, or the arithmetic is not to be had here.
    """

    def __init__(
        self,
        student: Any,
        teacher: Teacher | None,
        rows: Rows,
        config: DistillConfig,
        *,
        seed: int,
        folder: Path,
        first_step: int = 0,
        num_steps: int,
        lr_from: float = 1.0,
        lr_to: float = 0.0,
        on_step: Callable[[StepInfo], None] | None = None,
        hidden_channels: Sequence[int] | None = None,
        moments: Moments | None = None,
    ) -> None:
        self.processes = Processes(student.device)
        self.device = self.processes.device
        self.config = config
        self.teacher = teacher if config.needs_teacher else None
        self.rows = rows
        self.stage = Stage(first_step, num_steps, lr_from, lr_to)
        self.on_step = on_step
        self.autocast_dtype = autocast_dtype(config.precision, self.device)
        self.seed = seed
        self.batches = Batches(rows, config.batch_tokens, seed)
        self.channels = None if hidden_channels is None else torch.tensor(hidden_channels, device=self.device)
        self._row_weights = [float(row.weights[1:].sum()) for row in rows]
        self.moments = None if config.recovery == "lora" else moments
        """Before training those to begin with, which are used up; afterwards those for the next stage to go on from."""
        self.begins_with_moments = self.moments is not None
        self.student = student.to(self.device, torch.float32).eval()
        self.decoder = Decoder(self.student)
        self._check()
        self.checkpoint = StageCheckpoint(Path(folder), self._key())

    def run(self) -> Any:
        """Trains to the end of the stage.

        Returns:
            the student.

        Raises:
            ShrinkError: the loss is no number any more, or the checkpoint is of another stage.
            OSError: a checkpoint cannot be written; the last one is still there.
        """
        if self.teacher is not None:
            self.teacher.to(self.device)
        with self._trained() as model, self._attention():
            optimizers = build_optimizers(model, self.config)
            if self.moments is not None:
                load_moments(model, optimizers, self.moments)
            done = self.checkpoint.load(model, optimizers) or 0
            self.parameters = [p for p in model.parameters() if p.requires_grad]
            for number in range(done, self.stage.num_steps):
                info = self._step(number, optimizers)
                if self._is_due(number + 1):
                    self._save(number + 1, model, optimizers)
                if self.on_step is not None and self.processes.is_main:
                    self.on_step(info)
            self.moments = None if self.config.recovery == "lora" else moments_of(model, optimizers)
        return self.student

    def _step(self, number: int, optimizers: list[torch.optim.Optimizer]) -> StepInfo:
        """One update."""
        step = self.stage.first_step + number
        numbers = self.batches.numbers(step)
        weight = sum(self._row_weights[n] for n in numbers)
        sums = self._gradients(self.processes.share(numbers), weight)
        sums = sums.to(self.device) if self.processes.num > 1 else sums
        self.processes.add_up([sums, *(p.grad for p in self.parameters if p.grad is not None)])
        loss, kl, lm = (sums / weight).tolist()
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.grad_clip))
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise ShrinkError(
                f"the loss is {loss} and its gradient's norm {norm} at step {step}: begin anew with a lower "
                f"learning_rate (it is {self.config.learning_rate:g}) or more warmup_steps; what was done before stays "
                f"where it is, the last checkpoint in {self.checkpoint.folder}"
            )
        warmup = 0 if self.begins_with_moments else self.config.warmup_steps
        learning_rate = self.config.learning_rate * self.stage.lr_factor(number, warmup)
        set_learning_rate(optimizers, learning_rate)
        for optimizer in optimizers:
            optimizer.step()
        return StepInfo(step, loss, kl, lm, sum(len(self.rows[n]) for n in numbers), learning_rate)

    def _gradients(self, numbers: tuple[int, ...], weight: float) -> torch.Tensor:
        """Leaves in `grad` this process's part of the gradients of the mean loss.

        Returns:
            this process's sums over tokens, float64: loss, divergence, negative log-likelihood.
        """
        for parameter in self.parameters:
            # zeros rather than none: all processes must hold gradients of the same parameters
            parameter.grad = torch.zeros_like(parameter) if self.processes.num > 1 else None
        sums = torch.zeros(3, dtype=torch.float64)
        size = self.config.micro_batch_tokens or self.config.batch_tokens
        lengths = {n: len(self.rows[n]) for n in numbers}
        for part in grouped(numbers, lengths, size):
            batch = make_batch(self.rows, part).to(self.device)
            if len(batch.places):
                with torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
                    losses = self._losses(batch)
                (losses[0] / weight).backward()  # type: ignore[no-untyped-call]
                sums += torch.stack([value.detach().double().cpu() for value in losses])
        return sums

    def _losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sums over the tokens of a batch, each by its weight: loss, divergence, negative log-likelihood."""
        targets = self.teacher.targets(batch) if self.teacher is not None else None
        hidden = self.decoder.hidden(batch)
        loss = ChunkedLoss(
            self.decoder.logits, targets, batch.targets, batch.target_weights, self.config.objective,
            self.config.max_logits,
        )  # fmt: skip
        total, divergence, lm = loss(hidden, self.decoder.head_parameters(), self.decoder.vocab_size)
        if self.config.hidden_weight:
            assert targets is not None and targets.hidden is not None
            distance = hidden_loss(hidden, targets.hidden, batch.target_weights, self.channels)
            total = total + self.config.hidden_weight * distance
        return total, divergence, lm

    @contextlib.contextmanager
    def _trained(self) -> Iterator[Any]:
        """The model whose parameters are trained: the student, or the student with adapters."""
        try:
            if self.config.recovery == "lora":
                with adapted(self.decoder, self.config.lora_rank, self.seed) as model:
                    yield model
            else:
                yield self.student.requires_grad_(True)
        finally:
            for parameter in self.student.parameters():
                parameter.grad = None

    @contextlib.contextmanager
    def _attention(self) -> Iterator[None]:
        """Another implementation of attention while training, where one is asked for."""
        wanted = self.config.attn_implementation
        models = [self.student, *(self.teacher.models if self.teacher is not None else ())]
        before = [model.config._attn_implementation for model in models]
        try:
            for model in models if wanted else []:
                _set_attention(model, wanted)
            yield
        finally:
            for model, name in zip(models, before, strict=True):
                if wanted and name:
                    model.set_attn_implementation(name)

    def _is_due(self, done: int) -> bool:
        return done % self.config.checkpoint_every == 0 or done == self.stage.num_steps

    def _save(self, done: int, model: Any, optimizers: list[torch.optim.Optimizer]) -> None:
        if self.processes.is_main:
            self.checkpoint.save(done, model, optimizers)
        self.processes.wait()

    def _check(self) -> None:
        if self.stage.num_steps < 1:
            raise ShrinkError(f"num_steps is {self.stage.num_steps}: a stage has at least one step")
        if self.config.needs_teacher and self.teacher is None:
            raise ShrinkError("there is no teacher to distil from: give one, or set lm_weight to 1")
        if self.teacher is not None and self.teacher.vocab_size != self.decoder.vocab_size:
            raise ShrinkError(
                f"the student has {self.decoder.vocab_size} tokens and the teacher {self.teacher.vocab_size}: "
                "both need the same vocabulary"
            )
        if not sum(self._row_weights):
            raise ShrinkError("no token of the data has any weight: there is nothing to learn")
        self.rows.check_places(self.student.config.get_text_config())

    def _key(self) -> str:
        """Names everything that the result depends on."""
        config = asdict(self.config)
        del config["checkpoint_every"]
        parts = [
            config, self.rows.fingerprint, self.seed, asdict(self.stage), weights_fingerprint(self.student),
            self.teacher.fingerprint if self.teacher is not None else None, self.processes.num,
            None if self.channels is None else self.channels.tolist(), self.moments is not None,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _set_attention(model: Any, name: str | None) -> None:
    try:
        model.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        raise ShrinkError(f"{type(model).__name__} has no attention called {name} here: {error}") from error
