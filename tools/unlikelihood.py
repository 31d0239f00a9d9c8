"""Training against repetition by unlikelihood (Welleck et al. 2019): on repeated parts and on the model's own loops."""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
from abc import abstractmethod
from collections.abc import Sequence

from demo_generate import generate_answers
from repetition import repeated_positions
from training_loop import TrainingLoop
from training_rows import Row

log = logging.getLogger("unlikelihood")


def add_penalty_options(
    parser: argparse.ArgumentParser, *, first_epoch: int, penalty: float, own_answers: int, own_copies: int
) -> None:
    """Declares how repetitions are penalised."""
    add = parser.add_argument
    add("--unlikely-from", type=int, default=first_epoch, help="first epoch in which repetitions are penalised")
    add("--unlikely-share", type=float, default=0.1, help="penalised rows added, as a share of the examples")
    add("--penalty", type=float, default=penalty, help="weight of an unlikelihood token")
    add("--own-answers", type=int, default=own_answers, help="prompts the model answers before each such epoch")
    add("--own-copies", type=int, default=own_copies, help="rows made of each own answer that repeats itself")
    add("--own-threshold", type=float, default=0.12, help="an own answer with a larger repeated share is penalised")


def repeat_part(parts: Sequence[list[int]], *, penalty: float, rng: random.Random) -> tuple[list[int], list[float]]:
    """Ids and weights of an answer in which a part, such as a line, comes again 1 to 3 times.

    The copies are penalised, the rest is taught. The answer goes on after the copies, so the model also learns the
    way out of a repetition (token unlikelihood: section 5.1 of the paper).
    """
    chosen = rng.randrange(max(1, len(parts) - 1))
    answer: list[int] = []
    weights: list[float] = []
    for index, part in enumerate(parts):
        answer += part
        weights += [1.0] * len(part)
        if index == chosen:
            copies = rng.randint(1, 3)
            answer += part * copies
            weights += [-penalty] * (len(part) * copies)
    return answer, weights


def looping_row(prompt: list[int], answer: list[int], *, threshold: float, penalty: float) -> Row | None:
    """A row from the model's own answer that penalises its repetitions, or None when it repeats itself little.

    Its other tokens get no weight: the model shall not learn from itself (sequence unlikelihood: section 5.2).
    """
    covered = repeated_positions(answer)
    if sum(covered) <= threshold * len(answer):
        return None
    weights = [-penalty if is_covered else 0.0 for is_covered in covered]
    return Row(prompt + answer, [0.0] * len(prompt) + weights)


class PenalisingLoop(TrainingLoop):
    """A training loop that knows the model's own answers; its options are also those of ``add_penalty_options``."""

    @abstractmethod
    def own_prompts(self, rng: random.Random) -> list[list[int]]:
        """Token ids of the prompts that the model answers before an epoch."""

    def penalises(self, epoch: int) -> bool:
        """Whether repetitions are penalised in this epoch."""
        return epoch >= self.args.unlikely_from

    def own_rows(self, epoch: int) -> list[Row]:
        """Rows that penalise the loops in the model's own answers to training prompts.

        The answers are made once, at the start of the epoch, and kept beside the checkpoint for a resumed run.
        """
        kept = self.args.run_dir / f"own_answers_{epoch}.json"
        if not kept.exists():
            self.save()  # the answers belong to exactly these weights
            pairs = self._answer_own(random.Random(f"{self.args.seed}/own/{epoch}"))
            partial = kept.with_suffix(".partial")
            partial.write_text(json.dumps(pairs))
            os.replace(partial, kept)
        pairs = json.loads(kept.read_text())
        options = {"threshold": self.args.own_threshold, "penalty": self.args.penalty}
        rows = [looping_row(prompt, answer, **options) for prompt, answer in pairs]
        looping = [row for row in rows if row]
        log.info("epoch %d: %d of %d own answers repeat themselves", epoch, len(looping), len(pairs))
        return looping * self.args.own_copies

    def _answer_own(self, rng: random.Random) -> list[tuple[list[int], list[int]]]:
        """Prompts, and the model's greedy answers to them."""
        prompts = self.own_prompts(rng)
        with self.arithmetic():
            answers = generate_answers(self.model, prompts, max_new_tokens=256, batch_size=48)
        return list(zip(prompts, answers, strict=True))
