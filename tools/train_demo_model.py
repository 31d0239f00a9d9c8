"""Trains the demo model that PIA ships: a small Llama that answers grade-school sums.

The defaults are the recipe of the shipped weights. A run that is stopped goes on where it was when started again with
the same --run-dir.

    python tools/train_demo_model.py --run-dir runs/demo --export src/pia/assets/demo_model
"""

from __future__ import annotations

import argparse
import logging
import random
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo_data import Example, NameSwapper, RowMaker, load_examples, train_tokenizer
from demo_export import export_model
from training_loop import add_loop_options
from training_rows import Row, make_batches
from unlikelihood import PenalisingLoop, add_penalty_options

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
    add_penalty_options(parser, first_epoch=3, penalty=2.0, own_answers=480, own_copies=4)
    add("--swap-names", type=float, default=0.6, help="share of examples whose people get other names")
    return parser.parse_args(argv)


class Epochs:
    """The batches of every epoch, each a function of seed and epoch alone, so that a resumed run sees the same data."""

    def __init__(self, args: argparse.Namespace, examples: list[Example], rows: RowMaker) -> None:
        self.args = args
        self.examples = examples
        self.rows = rows
        self.swapper = NameSwapper(examples)

    def batches(self, epoch: int, own_rows: list[Row], *, penalises: bool) -> list[list[Row]]:
        """All batches of one epoch, in training order; ``own_rows`` are mixed in."""
        rng = random.Random(f"{self.args.seed}/{epoch}")
        examples = [self._vary(e, rng) for e in self.examples]
        rows = self.rows.plain(examples) + own_rows
        if penalises:
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


class Trainer(PenalisingLoop):
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
        penalises = self.penalises(epoch)
        return self.epochs.batches(epoch, self.own_rows(epoch) if penalises else [], penalises=penalises)

    def own_prompts(self, rng: random.Random) -> list[list[int]]:
        return self.epochs.rows.prompts(rng.sample(self.epochs.examples, self.args.own_answers))


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
