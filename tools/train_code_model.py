"""Trains the code model: a small Llama that goes on with Python functions, for prompts like HumanEval's.

It learns from the source of the running Python's own standard library, so nothing has to be downloaded. A run that is
stopped goes on where it was when started again with the same --run-dir.

    python tools/train_code_model.py --run-dir runs/code --export build/code_model
"""

from __future__ import annotations

import argparse
import logging
import math
import random
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from code_card import Facts, card_text
from code_data import CodeRows, FunctionRow, epoch_rows, load_corpus, part_of, standard_library, train_tokenizer
from demo_export import export_model
from training_loop import add_loop_options, collate, weighted_loss
from training_rows import Row, make_batches
from unlikelihood import PenalisingLoop, add_penalty_options

log = logging.getLogger("train_code_model")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, default=standard_library(), help="folder of Python sources")
    add("--hold-out", type=int, default=25, help="one file in so many is held out for the validation loss")
    add(
        "--export",
        type=Path,
        default=Path("build/code_model"),
        help="folder for the finished model, written after the last step",
    )
    add("--export-only", action="store_true", help="export the last checkpoint as it is, and stop")
    add_loop_options(parser, run_dir="runs/code", steps=1400, batch_tokens=4096, precision="float32")
    add_penalty_options(parser, first_epoch=1, penalty=1.0, own_answers=320, own_copies=3)
    add("--late-parts", type=int, default=3, help="epochs that penalise are one of so many parts of a full one")
    add("--vocab-size", type=int, default=2560)
    add("--hidden-size", type=int, default=192)
    add("--layers", type=int, default=6)
    add("--ffn-size", type=int, default=512)
    add("--heads", type=int, default=3)
    add("--max-length", type=int, default=640, help="longest function, and length of the pieces, in tokens")
    add("--prompt-weight", type=float, default=0.3, help="loss weight of signature and docstring (body: 1)")
    add("--piece-share", type=float, default=0.25, help="share of the plain pieces of source taken in each epoch")
    return parser.parse_args(argv)


def build_model(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A fresh model; torch's seed decides its weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden_size,
        intermediate_size=args.ffn_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


class CodeTraining(PenalisingLoop):
    """Trains on functions and pieces of source.

    Raises:
        FileNotFoundError: there are no sources.
        ValueError: no function is short enough.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        corpus = load_corpus(args.data, hold_out=args.hold_out)
        self.tokenizer = train_tokenizer(corpus, args.vocab_size)
        self.rows = CodeRows(self.tokenizer, prompt_weight=args.prompt_weight, max_length=args.max_length)
        self.functions = self.rows.functions(corpus.functions)
        self.pieces = self.rows.pieces(corpus.sources)
        self.held_out = CodeRows(self.tokenizer, prompt_weight=0.0, max_length=args.max_length).functions(
            corpus.held_out
        )
        if not self.functions:
            raise ValueError(f"no function below {args.data} has at most {args.max_length} tokens; raise --max-length")
        log.info(
            "%d functions, %d pieces, %d functions held out",
            *(len(self.functions), len(self.pieces), len(self.held_out)),
        )
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        super().__init__(args, build_model(args, self.tokenizer).to(device))

    def epoch_batches(self, epoch: int) -> list[list[Row]]:
        rng = random.Random(f"{self.args.seed}/{epoch}")
        functions, share = self.functions, self.args.piece_share
        if self.penalises(epoch):
            functions, share = self.late_part(epoch), share / self.args.late_parts
        rows = epoch_rows(functions, self.pieces, piece_share=share, rng=rng)
        if self.penalises(epoch):
            chosen = rng.sample(functions, round(self.args.unlikely_share * len(functions)))
            rows += [self.rows.repeating(row, penalty=self.args.penalty, rng=rng) for row in chosen]
            rows += self.own_rows(epoch)
        return make_batches(rows, self.args.batch_tokens, rng)

    def late_part(self, epoch: int) -> list[FunctionRow]:
        """The functions of an epoch that penalises: only a part, so that the model's own answers are of late."""
        late = epoch - self.args.unlikely_from
        deal = random.Random(f"{self.args.seed}/deal/{late // self.args.late_parts}")
        return part_of(self.functions, late % self.args.late_parts, self.args.late_parts, deal)

    def own_prompts(self, rng: random.Random) -> list[list[int]]:
        documented = [row.prompt for row in self.functions if row.is_documented]
        return rng.sample(documented, min(self.args.own_answers, len(documented)))

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Mean negative log-likelihood of the held-out functions' bodies, ends included; NaN where none is held out."""
        self.model.eval()
        total, count = 0.0, 0
        for batch in make_batches(self.held_out, self.args.batch_tokens, random.Random(0)):
            ids, weights = collate(batch, self.device)
            num_tokens = int((weights[:, 1:] == 1).sum())
            _, nll = weighted_loss(self.model(input_ids=ids, use_cache=False).logits, ids, weights)
            total, count = total + nll * num_tokens, count + num_tokens
        return total / count if count else math.nan

    def export(self, folder: Path) -> None:
        """Writes the model with its tokenizer and card."""
        facts = Facts(
            num_functions=len(self.functions),
            num_pieces=len(self.pieces),
            num_held_out=len(self.held_out),
            max_length=self.args.max_length,
            prompt_weight=self.args.prompt_weight,
            piece_share=self.args.piece_share,
            steps=self.state.step,
            tokens=self.state.tokens,
            seconds=self.state.seconds,
            seed=self.args.seed,
            validation_loss=self.validation_loss(),
            is_standard_library=self.args.data == standard_library(),
        )
        export_model(self.model, self.tokenizer, folder)
        (folder / "README.md").write_text(card_text(self.model, facts), encoding="utf-8")
        log.info("exported to %s after step %d, validation loss %.3f", folder, facts.steps, facts.validation_loss)


def main(argv: list[str] | None = None) -> int:
    """Trains, and exports."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    try:
        training = CodeTraining(args)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from None
    if args.export_only and training.state.step == 0:
        raise SystemExit(f"there is no checkpoint in {args.run_dir} to export; leave out --export-only to train")
    if not args.export_only:
        training.run()
    if args.export_only or training.state.step == args.steps:
        training.export(args.export)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
