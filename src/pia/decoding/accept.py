"""The accept rule, the only one in the house: walk down the tree with the model's own choices until they leave it."""

from __future__ import annotations

from dataclasses import dataclass

from pia.decoding.chooser import TokenChooser
from pia.decoding.request import Request
from pia.drafting.shape import ancestors
from pia.drafting.tree import SOURCE_NAMES, DraftTree, TreeWalk


@dataclass(frozen=True, slots=True)
class Accepted:
    """What a walk emitted and where it went."""

    token_ids: list[int]
    """Tokens emitted: the accepted drafts and the model's own last choice."""
    sources: list[str | None]
    """For each token, the source whose draft it confirmed."""
    nodes: list[int]
    """Tree nodes whose token was emitted, from the top down."""
    rows: list[int]
    """Rows of the forward to keep: the root and the nodes, without the newest token, which is still to be fed."""


def accept(tree: DraftTree, chooser: TokenChooser, request: Request) -> Accepted:
    """Emits tokens into `request` while the model's choice is a child of the node just reached.

    Row 0 of the loaded logits belongs to the last accepted token, row i + 1 to node i. Siblings may carry the same
    token: all that match are followed.

    Returns:
        the walk; at least one token.
    """
    walk = TreeWalk(tree)
    token_ids: list[int] = []
    sources: list[str | None] = []
    while True:
        token_id = chooser.choose(walk.node + 1, request)
        request.append(token_id, chooser.scores)
        is_drafted = walk.follow(token_id)
        token_ids.append(token_id)
        sources.append(SOURCE_NAMES[tree.sources[walk.node]] if is_drafted else None)
        if request.finish_reason or not is_drafted:
            break
    nodes = ancestors(tree.parents.tolist(), walk.node)
    return Accepted(token_ids, sources, nodes, [0, *(n + 1 for n in nodes[: len(token_ids) - 1])])
