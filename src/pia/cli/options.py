"""Options that several verbs share, and what they become."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, get_args

from pia.config import SOURCES, EngineName, JacobiConfig
from pia.errors import UnsupportedOptionError

if TYPE_CHECKING:
    from pia.lookahead import Lookahead

DTYPES = ("auto", "float32", "bfloat16", "float16")


def add_model(parser: argparse.ArgumentParser, *, dtype: str = "auto") -> None:
    """MODEL and how to load it."""
    parser.add_argument("model", metavar="MODEL", help="name on the Hugging Face Hub, local folder, or `demo`")
    add_loading(parser, dtype=dtype)


def add_loading(parser: argparse.ArgumentParser, *, dtype: str = "auto") -> None:
    """How to load the model."""
    meaning = "auto is the checkpoint's own" if dtype == "auto" else f"default: {dtype}, where outputs compare exactly"
    parser.add_argument("--dtype", choices=DTYPES, default=dtype, help=f"of the weights ({meaning})")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps ... (auto: a GPU if there is one)")


def add_length(parser: argparse.ArgumentParser, default: int) -> None:
    """How long an answer may be."""
    parser.add_argument(
        "--max-new-tokens", type=positive, default=default, metavar="N", help=f"most tokens of an answer ({default})"
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How tokens are chosen; greedily if nothing is said."""
    group = parser.add_argument_group("sampling (greedy unless one of these is given)")
    group.add_argument("--temperature", type=_temperature, metavar="T", help="sharpness of the choice; 0 is greedy")
    group.add_argument("--top-p", type=_share, metavar="P", help="draw from the likeliest, P in all")
    group.add_argument("--top-k", type=positive, metavar="K", help="draw from the K likeliest tokens")
    group.add_argument("--seed", type=natural, metavar="N", help="same seed, same text, with drafts or without")


def add_drafting(parser: argparse.ArgumentParser) -> None:
    """Drafts and where they come from."""
    group = parser.add_argument_group("drafts")
    add_budget(group)
    add_jacobi(group)
    add_exact(group)
    add_engine(group)
    add_sources(group)
    group.add_argument("--cache", metavar="FILE", help="start from this draft cache (demo: from the one it comes with)")
    add_corpus(group)
    add_namespace(group)


def add_budget(parser: argparse._ActionsContainer) -> None:
    """How large drafts may be."""
    parser.add_argument(
        "--budget", type=_budget, default="auto", metavar="N", help="draft nodes a step; 0 decodes plainly (auto)"
    )
    parser.add_argument(
        "--max-depth", type=positive, default=64, metavar="N", help="most tokens of a draft's path (64)"
    )


def add_jacobi(parser: argparse._ActionsContainer) -> None:
    """Whether a lookahead window rides along."""
    parser.add_argument(
        "--jacobi", nargs="?", const=True, default=False, type=_jacobi, metavar="W,N,G",
        help="a Jacobi lookahead window rides along where it pays: columns, tokens of an n-gram, n-grams of each first "
        "token (if not given, as published for the model's size)",
    )  # fmt: skip


def add_exact(parser: argparse._ActionsContainer) -> None:
    """Whether drafts may change a bit."""
    parser.add_argument(
        "--exact", action="store_true", help="bit for bit the output of --exact --budget 0, in every dtype (CPUs)"
    )


def add_engine(parser: argparse._ActionsContainer) -> None:
    """What runs the steps."""
    parser.add_argument(
        "--engine",
        choices=get_args(EngineName),
        default="auto",
        help="what runs the steps: the model as it is, CUDA graphs, or compiled programs (auto: the fastest at hand)",
    )


def add_sources(parser: argparse._ActionsContainer) -> None:
    """What drafts are made from."""
    parser.add_argument(
        "--sources", type=_sources, default=SOURCES, metavar="A,B",
        help=f"what drafts are made from, in one tree ({','.join(SOURCES)}); none: a Jacobi window alone",
    )  # fmt: skip


def add_recording(parser: argparse._ActionsContainer) -> None:
    """Where finished requests are kept."""
    parser.add_argument(
        "--record", metavar="FILE", help="append prompt and answer to FILE.jsonl or FILE.npz, for `pia replay`"
    )
    parser.add_argument(
        "--record-top-k", type=positive, metavar="K",
        help="with each token the K likeliest there, so that a replay can draft from them (8 is what it uses)",
    )  # fmt: skip


def add_namespace(parser: argparse._ActionsContainer) -> None:
    """The part of a draft cache that is used."""
    parser.add_argument("--namespace", default="", metavar="NAME", help="part of the draft cache to read and write")


def add_corpus(parser: argparse._ActionsContainer) -> None:
    """Corpora to draft from."""
    parser.add_argument(
        "--corpus", action="append", type=_named_file, default=[], metavar="NAME=FILE",
        help="draft from this corpus as well (may be given again)",
    )  # fmt: skip


def sampling_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `generate` for the sampling options."""
    chosen = {name: getattr(args, name) for name in ("temperature", "top_p", "top_k")}
    given = {name: value for name, value in chosen.items() if value is not None}
    if not given or given.get("temperature") == 0:
        return {"do_sample": False}
    return {"do_sample": True, **given}


def new_lookahead(args: argparse.Namespace) -> Lookahead:
    """A `Lookahead` for the drafting options."""
    from pia.lookahead import Lookahead

    names = ("budget", "max_depth", "jacobi", "exact", "engine", "namespace", "sources")
    options = {name: getattr(args, name) for name in names}
    return Lookahead(load_cache(args), recorder=_recorder(args), corpora=dict(args.corpus), **options)


def _recorder(args: argparse.Namespace) -> Any:
    from pia.recording import TraceRecorder

    path, top_k = getattr(args, "record", None), getattr(args, "record_top_k", None)
    if path is None:
        if top_k is not None:
            raise UnsupportedOptionError("--record-top-k says what a recording holds; name its file with --record FILE")
        return None
    return TraceRecorder(path, top_k=top_k or 0)


def load_cache(args: argparse.Namespace) -> Any:
    """The draft cache of `--cache`, or the demo model's own, or `None`."""
    from pia.drafting.cache import DraftCache

    if args.cache is not None:
        return DraftCache.load(args.cache)
    if args.model == "demo":
        from pia.assets import demo_cache_path

        return DraftCache.load(demo_cache_path())
    return None


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return _at_least(1, text)


def natural(text: str) -> int:
    """A whole number of at least 0."""
    return _at_least(0, text)


def names(given: str) -> list[str]:
    """Names with commas between them, each once."""
    found = list(dict.fromkeys(name.strip() for name in given.split(",")))
    if not all(found):
        raise argparse.ArgumentTypeError(f"{given!r} is not a list of names with commas between them")
    return found


def budgets(given: str) -> list[int | str]:
    """Numbers of nodes, and "auto", with commas between them."""
    return [name if name == "auto" else positive(name) for name in names(given)]


def text(given: str) -> str:
    """Text that is not empty."""
    if not given:
        raise argparse.ArgumentTypeError("the text is empty")
    return given


def _named_file(text: str) -> tuple[str, str]:
    """Reads NAME=FILE."""
    name, _, file = text.partition("=")
    if not name or not file:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE, as in docs=docs.corpus")
    return name, file


def _at_least(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return int(text)


def _sources(text: str) -> list[str]:
    """Reads names, or "none"."""
    return [] if text == "none" else names(text)


def _budget(text: str) -> int | str:
    """Reads "auto" or a number of draft nodes."""
    return "auto" if text == "auto" else natural(text)


def _jacobi(text: str) -> JacobiConfig:
    """Reads W,N,G."""
    try:
        window_size, ngram_size, max_ngrams = map(int, text.split(","))
        return JacobiConfig(window_size=window_size, ngram_size=ngram_size, max_ngrams=max_ngrams)
    except UnsupportedOptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not W,N,G, as in 15,5,15; for the published sizes give nothing, and another option next"
        ) from None


def _temperature(text: str) -> float:
    return _number(text, 0.0, float("inf"))


def _share(text: str) -> float:
    return _number(text, 0.0, 1.0)


def _number(text: str, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most or value == float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least:g} to {most:g}")
    return value
