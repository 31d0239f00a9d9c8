"""Shrink a model for a task: prune a little, distil from the original, measure, and again.

What comes out is a stock checkpoint: it loads with `AutoModelForCausalLM.from_pretrained` and needs nothing of PIA.
Stopped or killed at any moment, the same command goes on where it was. --plan shows what would go, without training.
"""

from __future__ import annotations

import argparse
import errno
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pia.cli import options
from pia.cli.terminal import note
from pia.errors import ShrinkError, UnsupportedOptionError

HELP = "prune and distil a model into a smaller stock checkpoint (IPAD)"

_OF_LOADING = ("model", "data", "held_out", "out", "plan", "overwrite", "device", "json", "run")
"""Options that are no settings of the shrink."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `pia shrink`."""
    parser.add_argument("model", metavar="MODEL", help="name on the Hugging Face Hub, local folder, or `demo`")
    parser.add_argument(
        "--data", required=True, metavar="FILE|DATASET",
        help="what to distil on: text, JSON lines (text, messages, prompt and response, question and answer), Parquet, "
        "or a dataset on the Hub (NAME or NAME:SPLIT)",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="folder of the small model; the same command goes on with it")
    parser.add_argument("--plan", action="store_true", help="show what would go, and what it would cost; train nothing")
    parser.add_argument("--overwrite", action="store_true", help="throw away the shrink that DIR holds")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (auto: a GPU if there is one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object alone")
    _add_target(parser)
    _add_schedule(parser)
    _add_importance(parser)
    _add_distillation(parser)
    parser.set_defaults(run=run)


def _add_target(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where to (0.5 of the parameters unless one of the first three is given)")
    add = group.add_argument
    add("--target", type=float, metavar="SHARE", help="of the non-embedding parameters that stays")
    add("--target-latency", type=float, metavar="SHARE", help="of the time per token, measured here, that stays")
    add("--shape", metavar="SIZES", help="sizes to end at, such as layers=4,kv_heads=2,ffn=512,hidden=256")
    add("--axes", type=_names, metavar="LIST", help="what may be cut (all of layers,kv_heads,ffn,experts)")
    add("--tensor-parallel", type=options.positive, metavar="N", help="devices it must be splittable over (1)")
    add("--ffn-multiple", type=options.positive, metavar="N", help="FFN sizes are multiples of it")
    add("--hidden-multiple", type=options.positive, metavar="N", help="hidden sizes are multiples of it")


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("rounds").add_argument
    add(
        "--round-share",
        type=float,
        metavar="SHARE",
        help="of the parameters that a round removes (0.08; 1: all at once)",
    )
    add("--steps", type=options.positive, metavar="N", help="of distillation in all (one pass over the data)")
    add("--last-share", type=float, metavar="SHARE", help="of the steps that the last round gets (0.75)")
    add("--max-perplexity", type=float, metavar="X", help="roll back and stop above X times the original's perplexity")
    add("--held-out", metavar="FILE|DATASET", help="to measure quality on (a share of --data)")
    add("--held-out-share", type=float, metavar="SHARE", help="of --data that is held out (0.05)")
    add("--seed", type=options.natural, metavar="N", help="same seed, same weights (0)")
    add("--dtype", choices=options.DTYPES, help="of the new weights (auto: the original's)")


def _add_importance(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("which units go").add_argument
    add("--importance", choices=("taylor", "activation"), help="of KV groups, neurons and channels (taylor)")
    add("--layer-importance", choices=("leave_one_out", "influence"), help="of layers (leave_one_out)")
    add("--calibration-rows", type=options.positive, metavar="N", help="rows that it is measured on (64)")


def _add_distillation(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("distillation").add_argument
    add("--batch-tokens", type=options.positive, metavar="N", help="tokens of a step, padding counted")
    add("--micro-batch-tokens", type=options.positive, metavar="N", help="tokens of a forward (all of a step's)")
    add("--max-length", type=options.positive, metavar="N", help="tokens of a row; longer ones are cut")
    add("--prompt-weight", type=float, metavar="W", help="how much given tokens count, of 1 for those to learn")
    add("--learning-rate", type=float, metavar="LR", help="the highest one")
    add("--optimizer", choices=("adamw", "muon"))
    add("--warmup-steps", type=options.natural, metavar="N", help="where optimizers begin anew")
    add("--weight-decay", type=float, metavar="W")
    add("--divergence", choices=("forward_kl", "reverse_kl", "jsd"), help="from the original's distributions")
    add("--jsd-beta", type=float, metavar="B", help="of --divergence jsd")
    add("--temperature", type=float, metavar="T", help="of both distributions")
    add("--lm-weight", type=float, metavar="W", help="share of the language modelling loss")
    add("--hidden-weight", type=float, metavar="W", help="of the loss on the last hidden states")
    add("--recovery", choices=("full", "lora"), help="train all weights, or adapters that are merged (full)")
    add("--lora-rank", type=options.positive, metavar="N")
    add("--teacher", choices=("online", "cache"), help="ask the original each time, or once for its likeliest tokens")
    add("--top-k", type=options.positive, metavar="N", help="tokens that a cached teacher keeps")
    add("--on-policy-steps", type=options.natural, metavar="N", help="further steps on its own texts, through TRL")
    add("--precision", choices=("auto", "float32", "bfloat16"), help="of matrix products")
    add("--checkpoint-every", type=options.positive, metavar="N", help="steps between checkpoints of training")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def run(args: argparse.Namespace) -> int:
    """Runs `pia shrink`."""
    from pia.cli.loading import load_tokenizer, quiet_bars, quiet_libraries, stay_offline

    if args.out is None and not args.plan:
        raise UnsupportedOptionError("give the folder of the small model with --out DIR, or look first with --plan")
    quiet_libraries()
    name = args.model
    if name == "demo":
        from pia.assets import demo_model_path

        stay_offline()
        name = str(demo_model_path())
    tokenizer = load_tokenizer(name)
    quiet_bars()
    settings = _settings(args)
    return _plan(args, name, tokenizer, settings) if args.plan else _shrink(args, name, tokenizer, settings)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """What was said; the rest has its defaults where they are documented."""
    given = {name: value for name, value in vars(args).items() if name not in _OF_LOADING and value is not None}
    if not given.keys() & {"target", "target_latency", "shape"}:
        given["target"] = 0.5
    return given


def _shrink(args: argparse.Namespace, name: str, tokenizer: Any, settings: dict[str, Any]) -> int:
    from pia.cli.shrink_progress import ShrinkProgress, show_result
    from pia.ipad import shrink
    from pia.ipad.processes import Processes

    is_main = Processes().is_main  # of those that `accelerate launch` started, one speaks
    with _way_out(args.out), ShrinkProgress(is_quiet=args.json or not is_main) as progress:
        done = shrink(
            name,
            args.data,
            args.out,
            tokenizer=tokenizer,
            held_out=args.held_out,
            device=args.device,
            overwrite=args.overwrite,
            command=shlex.join(["pia", *sys.argv[1:]]),
            progress=progress,
            **settings,
        )
    if is_main:
        show_result(done, as_json=args.json)
    return 0


@contextmanager
def _way_out(out: str) -> Iterator[None]:
    """Says how to go on from where it stopped: what is done is not lost."""
    try:
        yield
    except KeyboardInterrupt:
        note(f"Stopped; what is done lies in {out}, and the same command goes on with it.")
        raise
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise ShrinkError(
            f"{error.filename or out}: {error.strerror}. Nothing is lost: free some room, and the same command goes on"
        ) from error


def _plan(args: argparse.Namespace, name: str, tokenizer: Any, settings: dict[str, Any]) -> int:
    import json

    from pia.cli.shrink_plan import print_plan
    from pia.cli.shrink_progress import ShrinkProgress
    from pia.ipad import plan_shrink

    with ShrinkProgress(is_quiet=args.json) as progress:
        plan = plan_shrink(
            name,
            args.data,
            tokenizer=tokenizer,
            held_out=args.held_out,
            device=args.device,
            progress=progress,
            **settings,
        )
    print(json.dumps(plan.to_json())) if args.json else print_plan(plan)
    return 0
