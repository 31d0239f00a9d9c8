"""The draft tree: what every source proposes and every verifier reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SOURCE_NAMES = ("own", "shared", "corpus", "predicted", "recycled", "jacobi")
"""Names behind the numbers in `DraftTree.sources`: the request's own text, what other requests produced, attached
corpora, what the caller expects, what the model found likely before, and n-grams of a Jacobi window."""


@dataclass(frozen=True, eq=False, repr=False)
class DraftTree:
    """Possible continuations of a text, best first.

    Parents come before their children and `probs` never rises, so the first k nodes are themselves a valid tree: the
    best one of that size. A chain is a tree.

    Attributes:
        token_ids: int32 [n], the drafted token of each node.
        parents: int32 [n], index of the parent node; -1 is the last accepted token.
        probs: float32 [n], estimated probability that the whole path down to the node is accepted.
        sources: uint8 [n], index into `SOURCE_NAMES`: who proposed it.
    """

    token_ids: npt.NDArray[np.int32]
    parents: npt.NDArray[np.int32]
    probs: npt.NDArray[np.float32]
    sources: npt.NDArray[np.uint8]

    @classmethod
    def empty(cls) -> DraftTree:
        """A tree without nodes."""
        return cls.unpack(b"")

    @classmethod
    def chain(cls, token_ids: Sequence[int]) -> DraftTree:
        """A tree without branches, whose tokens are taken for sure."""
        size = len(token_ids)
        parents = np.arange(-1, size - 1, dtype=np.int32)
        return cls(np.asarray(token_ids, np.int32), parents, np.ones(size, np.float32), np.zeros(size, np.uint8))

    @classmethod
    def unpack(cls, packed: bytes) -> DraftTree:
        """Reads the 13 bytes a node that the native builder writes, without copying (the arrays are read-only)."""
        count = len(packed) // 13
        return cls(
            np.frombuffer(packed, np.int32, count),
            np.frombuffer(packed, np.int32, count, 4 * count),
            np.frombuffer(packed, np.float32, count, 8 * count),
            np.frombuffer(packed, np.uint8, count, 12 * count),
        )

    def __len__(self) -> int:
        return len(self.token_ids)

    def __repr__(self) -> str:
        return f"DraftTree({len(self)} nodes, depth {self.depth}, {self.probs.sum():.2f} accepted expected)"

    @property
    def depth(self) -> int:
        """Length of the longest path."""
        depths = self.depths()
        return int(depths.max()) if len(depths) else 0

    def depths(self) -> npt.NDArray[np.int32]:
        """Distance of each node from the last accepted token: int32 [n], 1 for its direct continuations."""
        depths = [0] * (len(self) + 1)  # the last entry is parent -1
        for node, parent in enumerate(self.parents.tolist()):
            depths[node] = depths[parent] + 1
        return np.array(depths[:-1], np.int32)

    def with_window(self, window: DraftTree) -> DraftTree:
        """What is fed where this tree is verified and the nodes of another ride behind it, on the same root."""
        if not len(window):
            return self
        parents = np.where(window.parents < 0, -1, window.parents + len(self)).astype(np.int32)
        return DraftTree(
            np.concatenate((self.token_ids, window.token_ids)),
            np.concatenate((self.parents, parents)),
            np.concatenate((self.probs, window.probs)),
            np.concatenate((self.sources, window.sources)),
        )

    def prefix(self, count: int) -> DraftTree:
        """The best tree of at most `count` nodes."""
        return DraftTree(self.token_ids[:count], self.parents[:count], self.probs[:count], self.sources[:count])


class TreeWalk:
    """Follows a text down a tree, token by token. Siblings may carry the same token: all that match are followed.

    Args:
        tree: any tree; the walk begins at its root, the last accepted token.
    """

    def __init__(self, tree: DraftTree) -> None:
        self._token_ids: list[int] = tree.token_ids.tolist()
        self._parents: list[int] = tree.parents.tolist()
        self._here = [-1]
        self.node = -1
        """The node reached, the first of its kind; -1 is the root."""

    def follow(self, token_id: int) -> bool:
        """Goes on to the children that carry this token; `False` where there are none, and the walk is over."""
        self._here = [node for node in self._nodes_with(token_id) if self._parents[node] in self._here]
        if self._here:
            self.node = self._here[0]
        return bool(self._here)

    def _nodes_with(self, token_id: int) -> Iterator[int]:
        """The nodes behind those reached that carry this token, in order."""
        node = self._here[0] if self._here else len(self._parents)
        try:
            while True:
                node = self._token_ids.index(token_id, node + 1)
                yield node
        except ValueError:  # no more of them
            return
