"""A last stage in which the student writes and its teacher corrects (GKD, arXiv 2306.13649), through TRL.

What the student writes itself is what it will meet when it is used; the texts of a file are not.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pia.errors import ShrinkError
from pia.ipad.arithmetic import has_fast_bfloat16
from pia.ipad.data import Rows


@dataclass(frozen=True)
class OnPolicyConfig:
    """Settings of the stage."""

    num_steps: int = 100
    prompts_per_step: int = 8
    max_new_tokens: int = 128
    learning_rate: float = 1e-4
    beta: float = 0.5
    """Of the generalised Jensen-Shannon divergence as TRL counts it: 0 is forward KL, 1 is reverse KL."""
    temperature: float = 1.0
    """Of what the student writes, and of both distributions."""
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        for name in ("num_steps", "prompts_per_step", "max_new_tokens", "learning_rate", "temperature"):
            if not getattr(self, name) > 0:
                raise ShrinkError(f"{name} is {getattr(self, name)!r}; it must be above 0")
        if not 0 <= self.beta <= 1:
            raise ShrinkError(f"beta is {self.beta!r}; it must be a number from 0 to 1")


def train_on_policy(
    student: Any,
    teacher: Any,
    tokenizer: Any,
    rows: Rows,
    config: OnPolicyConfig,
    *,
    seed: int,
    folder: Path,
    on_step: Callable[[int, float], None] | None = None,
) -> Any:
    """Trains a student on what it writes itself.

    Args:
        student: trained in place, in float32.
        teacher: a model of the same vocabulary.
        tokenizer: of both.
        rows: whose prompts are continued: the tokens before the first one of weight 1.
        config: how.
        seed: of the order of prompts, and of what is written.
        folder: for TRL's checkpoints; training goes on from the last one that is there.
        on_step: is told the step and its loss.

    Returns:
        the student.

    Raises:
        ShrinkError: TRL is missing, or the rows have no prompts.
    """
    trl = _trl()
    import datasets
    from transformers.trainer_utils import get_last_checkpoint

    prompts = datasets.Dataset.from_dict({"prompt": prompts_of(rows, tokenizer)})
    folder.mkdir(parents=True, exist_ok=True)
    _drop_halves(folder)
    with torch.random.fork_rng():  # the trainer seeds PyTorch
        trainer = trl.DistillationTrainer(
            model=student.float(), teacher_model=teacher, args=_arguments(trl, student, config, seed, folder),
            train_dataset=prompts, processing_class=tokenizer,
            callbacks=[_telling(on_step)] if on_step is not None else None,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    return student.eval()


def _drop_halves(folder: Path) -> None:
    """Removes checkpoints that a killed process was writing: the trainer's state is the last file of a whole one."""
    for checkpoint in folder.glob("checkpoint-*"):
        if not (checkpoint / "trainer_state.json").exists():
            shutil.rmtree(checkpoint)


def prompts_of(rows: Rows, tokenizer: Any) -> list[str]:
    """Prompts as text: those that become the same tokens again.

    Raises:
        ShrinkError: no row has a prompt.
    """
    begins = (row.ids[: int(np.argmax(row.weights == 1))].tolist() for row in rows)
    prompts = [(ids, _text(ids, tokenizer)) for ids in begins if ids]
    kept = [text for ids, text in prompts if text and list(tokenizer(text)["input_ids"]) == ids]
    if not kept:
        raise ShrinkError("the rows have no prompts for the student to continue: give chats, or prompts with responses")
    return kept


def _text(ids: list[int], tokenizer: Any) -> str:
    """Without the tokens that the tokenizer puts before every text."""
    begin = list(tokenizer("")["input_ids"])
    skipped = len(begin) if begin and ids[: len(begin)] == begin else 0
    return str(tokenizer.decode(ids[skipped:], clean_up_tokenization_spaces=False))


def _arguments(trl: Any, student: Any, config: OnPolicyConfig, seed: int, folder: Path) -> Any:
    return trl.DistillationConfig(
        output_dir=str(folder), max_steps=config.num_steps, per_device_train_batch_size=config.prompts_per_step,
        learning_rate=config.learning_rate, beta=config.beta, temperature=config.temperature,
        max_completion_length=config.max_new_tokens, save_steps=config.checkpoint_every, save_total_limit=1,
        logging_steps=1, seed=seed, data_seed=seed, report_to="none", disable_tqdm=True, disable_dropout=True,
        use_cpu=student.device.type == "cpu", bf16=has_fast_bfloat16(student.device), gradient_checkpointing=False,
    )  # fmt: skip


def _telling(on_step: Callable[[int, float], None]) -> Any:
    from transformers import TrainerCallback

    class Telling(TrainerCallback):  # type: ignore[misc, unused-ignore]
        """Hands losses on as they are logged."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                on_step(int(state.global_step), float(logs["loss"]))

    return Telling()


def _trl() -> Any:
    try:
        import trl
    except ImportError:
        raise ShrinkError(
            "the on-policy stage needs the package trl: pip install 'pia[ipad-onpolicy]', or pip install 'trl>=1.16'"
        ) from None
    if not hasattr(trl, "DistillationTrainer"):
        raise ShrinkError(f"trl {trl.__version__} has no DistillationTrainer: pip install 'trl>=1.16'")
    return trl
