"""Other shapes of a draft, made from a best-first tree: one chain, or branches that share nothing."""

from __future__ import annotations

import numpy as np

from pia.drafting.tree import DraftTree


def best_chain(tree: DraftTree) -> DraftTree:
    """The likeliest child of the likeliest child ..., from the root down."""
    nodes: list[int] = []
    for node, parent in enumerate(tree.parents.tolist()):
        if parent == (nodes[-1] if nodes else -1):  # best first: the first child met is the likeliest
            nodes.append(node)
    return _chain_of(tree, nodes)


def branches(tree: DraftTree, budget: int) -> DraftTree:
    """Root-to-leaf branches, each with its own copy of the shared prefix, likeliest leaf first, `budget` nodes in all.

    Siblings may carry the same token then; the accept walk follows all of them (seed 001, decoding_mode "par").
    """
    parents = tree.parents.tolist()
    leaves = sorted(set(range(len(tree))) - set(parents), key=lambda leaf: -float(tree.probs[leaf]))
    sources: list[int] = []
    new_parents: list[int] = []
    for leaf in leaves:
        path = ancestors(parents, leaf)[: budget - len(sources)]
        new_parents += [-1 if depth == 0 else len(sources) + depth - 1 for depth in range(len(path))]
        sources += path
    return _take(tree, sources, new_parents)


def ancestors(parents: list[int], node: int) -> list[int]:
    """The nodes from the root's child down to `node`, `node` included."""
    path = []
    while node >= 0:
        path.append(node)
        node = parents[node]
    return path[::-1]


def _chain_of(tree: DraftTree, nodes: list[int]) -> DraftTree:
    return _take(tree, nodes, list(range(-1, len(nodes) - 1)))


def _take(tree: DraftTree, nodes: list[int], parents: list[int]) -> DraftTree:
    index = np.asarray(nodes, dtype=np.int64)
    return DraftTree(tree.token_ids[index], np.asarray(parents, dtype=np.int32), tree.probs[index], tree.sources[index])
