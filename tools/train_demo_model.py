"""Trains the demo model that PIA ships: a small Llama that answers grade-school sums.

The defaults are the recipe of the shipped weights. A run that is stopped goes on where it was when started again with
the same --run-dir.

    python tools/train_demo_model.py --run-dir runs/demo --export src/pia/assets/demo_model
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo_data import Example, NameSwapper, RowMaker, load_examples, train_tokenizer
from demo_export import export_model
from demo_generate import generate_answers
from training_loop import TrainingLoop, add_loop_options
from training_rows import Row, make_batches

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
    add("--export", type=Path, help="folder for the finished model; without it only a checkpoint is written")
    add("--export-only", action="store_true", help="export the last checkpoint as it is, and stop")
    add_loop_options(parser, run_dir="runs/demo", steps=1220, batch_tokens=6144, precision="bfloat16")
    add("--vocab-size", type=int, default=2048)
    add("--hidden-size", type=int, default=256)
    add("--layers", type=int, default=8)
    add("--ffn-size", type=int, default=672)
    add("--question-weight", type=float, default=0.2, help="loss weight of question tokens (answer tokens: 1)")
    add("--swap-names", type=float, default=0.6, help="share of examples whose people get other names")
    add("--unlikely-from", type=int, default=3, help="first epoch in which repetitions are penalised")
    add("--unlikely-share", type=float, default=0.1, help="penalised rows added, as a share of the examples")
    add("--penalty", type=float, default=2.0, help="weight of an unlikelihood token")
    add("--own-answers", type=int, default=480, help="questions the model answers before each such epoch")
    add("--own-copies", type=int, default=4, help="rows made of each own answer that repeats itself")
    add("--own-threshold", type=float, default=0.12, help="an own answer with a larger repeated share is penalised")
    return parser.parse_args(argv)


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


class Trainer(TrainingLoop):
    """Trains on questions and answers."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        examples = load_examples(args.data)
        self.tokenizer = train_tokenizer(examples, args.vocab_size)
        rows = RowMaker(self.tokenizer, question_weight=args.question_weight, penalty=args.penalty)
        self.epochs = Epochs(args, examples, rows)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        super().__init__(args, build_model(args, self.tokenizer).to(device))

    def epoch_batches(self, epoch: int) -> list[list[Row]]:
        own_rows = self.own_rows(epoch) if self.epochs.penalises(epoch) else []
        return self.epochs.batches(epoch, own_rows)

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
        with self.arithmetic():
            answers = generate_answers(self.model, prompts, max_new_tokens=256, batch_size=48)
        return list(zip(prompts, answers, strict=True))


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
