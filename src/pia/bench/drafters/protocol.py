"""What can be replayed: anything that sees a prompt, proposes a draft, and is told what the model wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from pia.config import SOURCES
from pia.drafting.source import DraftSession, DraftSource, NoDrafts, RecyclingSession
from pia.drafting.top_tokens import TopTokens
from pia.drafting.tree import DraftTree
from pia.errors import DrafterError

Floats: TypeAlias = Sequence[float] | npt.NDArray[np.floating[Any]]
Ints: TypeAlias = Sequence[int] | npt.NDArray[np.integer[Any]]
Proposal: TypeAlias = DraftTree | tuple[Ints, Ints] | tuple[Ints, Ints, Floats]
"""A tree, or its token ids and parents, perhaps with path probabilities; see `Drafter.propose`."""

_TOLERANCE = 1e-4


class Drafter(Protocol):
    """The three methods that a class of yours needs to be measured by `pia replay --drafters package.module:Class`.

    The class is made without arguments, once for each row of the table. Requests come one after the other::

        learn(prompt, output)                      # warming requests, if the class has this method
        begin(prompt); observe(first token)        # then, for each measured request
        propose(budget); observe(what the model wrote: the accepted drafts and one token more)
        propose(budget); observe(...)              # ... until the output is over
        end()                                      # if the class has this method

    Further methods that are used where they are there:

    * `learn(prompt_ids, output_ids)` takes a finished request in one piece. Without it, warming is begin, observe, end.
    * `expect(predicted_ids)` comes before `begin` if the request's caller predicted its output, `[n]`.
    * `end()` says that the request is over.
    * `recycle(fed, top)` comes before `observe` where the trace holds the likeliest tokens (`pia generate --record FILE
      --record-top-k 8`): `fed` is a `pia.DraftTree`, the chain of accepted nodes whose logits were recorded, and `top`
      (`ids`, `probs`: `[1 + nodes, k]`) the likeliest tokens behind the last token and behind each of these nodes.
      Warming requests then come as begin, recycle, observe and end, not by `learn`.
    * `num_bytes()` returns the memory of what was learned from finished requests, or `None`.
    """

    def begin(self, prompt_ids: npt.NDArray[np.int32]) -> None:
        """A request begins: forget the last one's text, not what was learned from it. The prompt is `[n]`."""
        ...

    def propose(self, budget: int) -> Proposal:
        """What may come next.

        Returns:
            at most `budget` nodes: `(token_ids, parents)` or `(token_ids, parents, probs)`, `[n]` each, or a
            `pia.DraftTree`. `parents[i]` is the index of node i's parent, -1 where it follows the last token directly;
            parents come before their children. `probs[i]` estimates the chance that the model writes the whole path
            down to node i; with them an automatic budget can be replayed, and calibration is shown.
        """
        ...

    def observe(self, token_ids: list[int]) -> None:
        """The model wrote these tokens, at least one."""
        ...


class SourceDrafter:
    """Lets one of PIA's own sources of drafts be replayed.

    Args:
        source: what drafts; each request is committed at its end, so that later ones can draft from it.
        max_depth: most drafted tokens in a row.
        sources: what drafts are made from; see `LookaheadConfig`.
    """

    def __init__(self, source: DraftSource, *, max_depth: int = 32, sources: Sequence[str] = SOURCES) -> None:
        self._source = source
        self._max_depth = max_depth
        self._sources = tuple(sources)
        self._session: DraftSession = NoDrafts()
        self._expected: dict[str, Any] = {}

    def begin(self, prompt_ids: npt.NDArray[np.int32]) -> None:
        self._session = self._source.begin(prompt_ids, sources=self._sources, **self._expected)
        self._expected = {}

    def recycle(self, fed: DraftTree, top: TopTokens) -> None:
        session = self._session
        if isinstance(session, RecyclingSession) and session.num_top:
            session.recycle(fed, top.at(slice(None), session.num_top))

    def propose(self, budget: int) -> DraftTree:
        return self._session.propose(budget, self._max_depth)

    def observe(self, token_ids: list[int]) -> None:
        self._session.observe(token_ids)

    def end(self) -> None:
        self._session.end(commit=True)


@dataclass(frozen=True)
class Checked:
    """A proposal that keeps the protocol."""

    tree: DraftTree
    has_probs: bool
    has_sources: bool


def check(proposal: Proposal, budget: int) -> Checked:
    """Makes a tree, best first, of what a drafter proposed.

    Raises:
        DrafterError: it is no proposal, or no tree of at most `budget` nodes.
    """
    if isinstance(proposal, DraftTree):
        _check_tree(proposal.token_ids, proposal.parents, proposal.probs, budget)
        return Checked(_best_first(proposal), True, True)
    if not isinstance(proposal, tuple) or len(proposal) not in (2, 3):
        raise DrafterError(
            "propose must return (token_ids, parents), (token_ids, parents, probs) or a DraftTree, "
            f"not {type(proposal).__name__}"
        )
    token_ids, parents = _row("token_ids", proposal[0]), _row("parents", proposal[1])
    probs = np.asarray(proposal[2], np.float32) if len(proposal) == 3 else np.zeros(len(token_ids), np.float32)
    _check_tree(token_ids, parents, probs, budget)
    tree = DraftTree(token_ids, parents, probs, np.zeros(len(token_ids), np.uint8))
    return Checked(_best_first(tree), len(proposal) == 3 or not len(tree), False)  # no nodes lack nothing


def _row(name: str, values: Ints) -> npt.NDArray[np.int32]:
    row = np.asarray(values if len(values) else np.empty(0, np.int32))
    if row.ndim != 1 or row.dtype.kind not in "iu":
        raise DrafterError(f"propose must return {name} as a flat row of whole numbers, not {row.dtype} {row.shape}")
    return row.astype(np.int32, copy=False)


def _check_tree(
    token_ids: npt.NDArray[np.int32], parents: npt.NDArray[np.int32], probs: npt.NDArray[np.float32], budget: int
) -> None:
    count = len(token_ids)
    if len(parents) != count or probs.shape != (count,):
        raise DrafterError(f"propose returned {count} token ids, {len(parents)} parents and {probs.size} probabilities")
    if count > budget:
        raise DrafterError(f"propose returned {count} nodes for a budget of {budget}")
    wrong = np.flatnonzero((parents >= np.arange(count)) | (parents < -1))
    if len(wrong):
        raise DrafterError(
            f"propose returned node {wrong[0]} with parent {parents[wrong[0]]}; parents come before their children, "
            "and -1 stands for the last token"
        )
    limits = np.append(probs, np.float32(1))[parents]  # parent -1 is the last entry
    wrong = np.flatnonzero(~((probs >= 0) & (probs <= limits + _TOLERANCE)))
    if len(wrong):
        raise DrafterError(
            f"propose returned node {wrong[0]} with probability {probs[wrong[0]]:g}, its parent has "
            f"{limits[wrong[0]]:g}; probabilities are of the whole path, so they lie between 0 and the parent's"
        )


def _best_first(tree: DraftTree) -> DraftTree:
    """The same nodes with falling probabilities; the order stays where it is right already."""
    if len(tree) < 2 or (np.diff(tree.probs) <= 0).all():
        return tree
    probs = np.minimum(tree.probs, np.append(tree.probs, np.float32(1))[tree.parents])
    order = np.argsort(-probs, kind="stable")
    places = np.append(np.empty_like(order), -1)
    places[order] = np.arange(len(order))
    parents = places[tree.parents[order]].astype(np.int32)
    return DraftTree(tree.token_ids[order], parents, probs[order], tree.sources[order])
