"""Options of PIA: one place for the Python interface, the command line and the documentation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from pia.errors import UnsupportedOptionError

Shape = Literal["tree", "branches", "chain"]
EngineName = Literal["auto", "eager", "graph", "compile"]
SOURCES = ("cache", "recycled")
"""What drafts can be made from."""


@dataclass(frozen=True)
class JacobiConfig:
    """The window of Jacobi lookahead decoding and the pool it fills (Fu et al., arXiv 2402.02057).

    The defaults are the published ones for models up to 10 billion parameters; `for_model_size` has the others.
    """

    window_size: int = 15
    """Columns of the window (W): as many n-grams come of a step."""

    ngram_size: int = 5
    """Tokens of an n-gram (N), its first token included: an accepted one yields up to N tokens at once."""

    max_ngrams: int | None = 15
    """N-grams kept for each first token (G), and so verified at a step; `None` for as many as 256."""

    pool_from_prompt: bool = False
    """The pool begins with the prompt's n-grams, and takes those of the text that is generated."""

    seed: int = 0
    """Of the tokens that the window begins with, drawn from the prompt; never of what is sampled."""

    def __post_init__(self) -> None:
        _require_int("window_size", self.window_size, 1)
        _require_int("ngram_size", self.ngram_size, 2)
        if self.max_ngrams is not None:
            _require_int("max_ngrams", self.max_ngrams, 1, "or None")
        if not isinstance(self.pool_from_prompt, bool):
            raise UnsupportedOptionError(f"pool_from_prompt must be True or False, got {self.pool_from_prompt!r}")
        _require_int("seed", self.seed, 0)

    @property
    def num_nodes(self) -> int:
        """The most nodes that a whole window feeds, the steps included in which it fills."""
        depths = range(1, self.ngram_size)
        return max((self.window_size + self.ngram_size - 1 - depth) * depth - 1 for depth in depths)

    @classmethod
    def for_model_size(cls, num_parameters: int, **options: Any) -> JacobiConfig:
        """The published window for a model of this size: the larger the model, the fewer tokens are free.

        The authors give W, N, G = 15, 5, 15 for 7 billion parameters, 10, 5, 10 for 13, and 7, 5, 7 for 33 (their blog
        and README).
        """
        size = 15 if num_parameters <= 10e9 else 10 if num_parameters <= 20e9 else 7
        return cls(**{"window_size": size, "max_ngrams": size, **options})


@dataclass(frozen=True)
class LookaheadConfig:
    """How `Lookahead` drafts and verifies."""

    budget: int | Literal["auto"] = "auto"
    """Draft nodes verified at each step: "auto" lets measured costs and calibrated probabilities decide; 0 decodes
    plainly; more than 1,024 are not looked for."""

    max_budget: int = 64
    """The most nodes "auto" may choose."""

    max_depth: int = 64
    """Most tokens a draft runs ahead."""

    shape: Shape = "tree"
    """"tree" shares prefixes; "branches" feeds each continuation on its own; "chain" feeds the likeliest one only."""

    namespace: str = ""
    """Part of the draft cache that is read and written: texts of one namespace never draft for another."""

    corpora: tuple[str, ...] = ()
    """Corpora attached to the draft cache that are read as well, by name."""

    sources: tuple[str, ...] = SOURCES
    """What drafts are made from, in one tree: "cache", texts of this request and of others; "recycled", what the model
    found likely where it stood before."""

    jacobi: bool | JacobiConfig = False
    """A Jacobi lookahead window rides in the same forward, as far as the hardware carries it for what it wins (with a
    fixed budget: always), and its n-grams are drafted too; `True` takes the published sizes for the model. With
    `sources=()` it drafts alone."""

    engine: EngineName = "auto"
    """What runs the steps: "eager" is the model as it is; "graph" captures them as CUDA graphs; "compile" compiles them
    (minutes, once; on CPUs kept on disk); "auto" takes the fastest that needs no long preparation. Where one cannot be
    had, the model runs as it is, and the statistics say why."""

    exact: bool = False
    """Bit for bit the output of `exact=True, budget=0`, in every dtype: only chains are verified, by forwards whose
    rounding does not depend on their size. On CPUs; refused where it cannot be had."""

    self_check: bool = True
    """Prove at first use of a model that tree logits equal those of its own paths; off trusts its configuration."""

    def __post_init__(self) -> None:
        if self.budget != "auto":
            _require_int("budget", self.budget, 0, 'or "auto"')
        _require_int("max_budget", self.max_budget, 1)
        _require_int("max_depth", self.max_depth, 1)
        if self.shape not in ("tree", "branches", "chain"):
            raise UnsupportedOptionError(f'shape={self.shape!r} is unknown; choose "tree", "branches" or "chain"')
        if self.engine not in get_args(EngineName):
            raise UnsupportedOptionError(
                f'engine={self.engine!r} is unknown; choose "auto", "eager", "graph" or "compile"'
            )
        if not isinstance(self.exact, bool):
            raise UnsupportedOptionError(f"exact must be True or False, got {self.exact!r}")
        if not isinstance(self.namespace, str):
            raise UnsupportedOptionError(f"namespace must be text, got {self.namespace!r}")
        object.__setattr__(self, "corpora", _names("corpora", self.corpora))
        object.__setattr__(self, "sources", _names("sources", self.sources))
        if not isinstance(self.jacobi, (bool, JacobiConfig)):
            raise UnsupportedOptionError(f"jacobi must be True, False or a JacobiConfig, got {self.jacobi!r}")
        if not (self.sources or self.jacobi) or not set(self.sources) <= set(SOURCES):
            raise UnsupportedOptionError(
                f"sources must be one or more of {', '.join(SOURCES)}, got {self.sources!r}; "
                "none at all is for a Jacobi window alone (jacobi=True, --jacobi)"
            )

    @classmethod
    def of(cls, **options: Any) -> LookaheadConfig:
        """Makes a configuration and refuses options that do not exist."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise UnsupportedOptionError(f"unknown option {name!r}; Lookahead takes: {', '.join(known)}")
        return cls(**options)


def _names(option: str, given: Any) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (given,)
    if not all(isinstance(name, str) for name in names):
        raise UnsupportedOptionError(f"{option} must be names, as in {option}=['docs', 'code'], got {given!r}")
    return names


def _require_int(name: str, value: object, least: int, also: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UnsupportedOptionError(
            f"{name} must be a whole number of at least {least} {also}".rstrip() + f", got {value!r}"
        )
