"""Convert a checkpoint of a legacy family, made for remote code, to a stock one that Transformers loads by itself.

SRC is a local folder with the original config.json, weights and tokenizer. DST is new; it stands there once it is
complete. Weights are read and written tensor by tensor, so a model larger than the memory converts, too.
"""

from __future__ import annotations

import argparse
import re

from pia.cli import options

HELP = "make a stock checkpoint of a legacy one (Baichuan, InternLM, Qwen 1, ChatGLM ...)"

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `pia convert`."""
    parser.add_argument("src", metavar="SRC", help="folder of the original checkpoint")
    parser.add_argument("dst", metavar="DST", help="folder of the new one; must not exist, or be empty")
    parser.add_argument("--dtype", choices=options.DTYPES, default="auto", help="of the new weights (auto: as stored)")
    parser.add_argument(
        "--max-shard-size", type=size, default="4GB", metavar="SIZE", help="weights in a file, as 500MB (default 4GB)"
    )
    parser.add_argument(
        "--chat", action=argparse.BooleanOptionalAction, help="whether a chat template comes along (default: if the "
        "original says that it is a chat model)"
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace the model in DST")
    parser.set_defaults(run=run)


def size(text: str) -> int:
    """Bytes, from a number with a unit such as 500MB or 4GB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)B?", text.strip().upper())
    value = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give a number with a unit, such as 500MB or 4GB")
    return value


def run(args: argparse.Namespace) -> int:
    """Runs `pia convert`."""
    from pia.cli.loading import quiet_libraries, stay_offline
    from pia.cli.terminal import new_progress, note

    quiet_libraries()
    stay_offline()
    from pia.models.convert.conversion import convert, plan

    converter, checkpoint = plan(args.src, is_chat=args.chat)
    print(f"{args.src}: {converter.family}, becomes {converter.target}")
    with new_progress("{task.fields[tensor]}") as progress:
        task = progress.add_task("converting", total=checkpoint.num_bytes, tensor="")
        done = convert(
            args.src,
            args.dst,
            dtype=None if args.dtype == "auto" else args.dtype,
            max_shard_size=args.max_shard_size,
            is_chat=args.chat,
            overwrite=args.overwrite,
            on_tensor=lambda name, num_bytes: progress.update(task, advance=num_bytes, tensor=name),
        )
    for remark in done.notes:
        note(f"Note: {remark}.")
    files = "1 file" if done.num_shards == 1 else f"{done.num_shards} files"
    print(f"{args.dst}: {done.num_tensors:,} tensors, {done.num_bytes / 2**30:,.2f} GiB of {done.dtype} in {files}")
    print(f'Try it: pia generate {args.dst} --prompt "Hello"')
    return 0
