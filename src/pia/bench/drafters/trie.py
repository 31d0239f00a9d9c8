"""The seed's LookaheadCache, by its semantics (arXiv 2312.12728): plain Python, to compare with and nothing else.

A forest of tries, one for each first token, holds every window of 13 tokens. Nodes count how often this request's
prompt and how often any output passed; what the prompt holds goes first. A draft is the part of the trie below the last
two tokens (or the last one), depth first, so the likeliest branch is spent to its end before its siblings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pia.bench.drafters.protocol import Proposal

_QUERY_LENGTH = 2
_OUTPUT_WEIGHT = 1e-4
_MAX_NODES = 65536
_MAX_OUTPUT_NODES = 512
_SQUEEZE_AFTER = 1024
"""So many tries must have changed before any is made smaller."""


class _Node:
    """A token after its parent's; dead once neither count is above zero."""

    __slots__ = ("children", "num_output", "num_prompt")

    def __init__(self) -> None:
        self.children: dict[int, _Node] = {}
        self.num_output = 0.0
        self.num_prompt = 0.0

    @property
    def is_alive(self) -> bool:
        return self.num_prompt > 0 or self.num_output > 0

    @property
    def rank(self) -> float:
        return (1 - _OUTPUT_WEIGHT) * self.num_prompt + _OUTPUT_WEIGHT * self.num_output

    def walk(self) -> Iterator[_Node]:
        """All nodes below."""
        stack = [*self.children.values()]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())


class _Trie(_Node):
    """What followed one token."""

    __slots__ = ("num_nodes", "num_output_nodes")

    def __init__(self) -> None:
        super().__init__()
        self.num_nodes = 0
        self.num_output_nodes = 0

    def insert(self, path: Sequence[int], *, is_output: bool) -> None:
        node: _Node = self
        for token in path:
            child = node.children.get(token)
            if child is None:
                child = node.children[token] = _Node()
                self.num_nodes += 1
            if is_output:
                self.num_output_nodes += child.num_output == 0
                child.num_output += 1
            else:
                child.num_prompt += 1
            node = child

    def forget_prompt(self) -> None:
        """The request is over: its counts go, its nodes stay."""
        stack: list[_Node] = [self]
        while stack:
            for child in stack.pop().children.values():
                if child.num_prompt > 0:
                    child.num_prompt = 0.0
                    stack.append(child)

    def squeeze(self) -> None:
        """Where the trie is too large: what was seen once is dropped, all else counts half."""
        if self.num_nodes <= _MAX_NODES and self.num_output_nodes <= _MAX_OUTPUT_NODES:
            return
        stack: list[_Node] = [self]
        while stack:
            node = stack.pop()
            node.children = {token: child for token, child in node.children.items() if child.num_output > 1}
            for child in node.children.values():
                child.num_output /= 2
                stack.append(child)
        self.num_nodes = self.num_output_nodes = sum(1 for _ in self.walk())


class TrieDrafter:
    """The seed's cache at its defaults, mode "hier", for one request at a time.

    Warming requests are requests like others: they squeeze the tries too.

    Args:
        branch_length: most drafted tokens in a row; windows are one token longer.
    """

    def __init__(self, *, branch_length: int = 12) -> None:
        self._branch_length = branch_length
        self._window = branch_length + 1
        self._tries: dict[int, _Trie] = {}
        self._prompt_tries: set[int] = set()
        self._changed: set[int] = set()
        self._pending: list[int] = []
        self._last: list[int] = []

    def begin(self, prompt_ids: npt.NDArray[np.int32]) -> None:
        prompt = prompt_ids.tolist()
        self._pending = []
        self._last = prompt[-_QUERY_LENGTH:]
        self._insert(prompt, len(prompt) - 1, is_output=False)
        self._prompt_tries.update(prompt)

    def observe(self, token_ids: list[int]) -> None:
        self._last = [*self._last, *token_ids][-_QUERY_LENGTH:]
        self._pending += token_ids
        num_full = len(self._pending) - self._window  # what has less of a continuation waits for it
        if num_full > 0:
            self._insert(self._pending, num_full, is_output=True)
            del self._pending[:num_full]

    def end(self) -> None:
        self._insert(self._pending, len(self._pending) - 1, is_output=True)
        self._pending = []
        for token in self._prompt_tries & self._tries.keys():
            self._tries[token].forget_prompt()
        self._prompt_tries.clear()
        if len(self._changed) >= _SQUEEZE_AFTER:
            for token in self._changed:
                self._tries[token].squeeze()
            self._changed.clear()

    def propose(self, budget: int) -> Proposal:
        best: tuple[list[int], list[int]] = ([], [])
        for start in range(len(self._last)):
            trie = self._tries.get(self._last[start])
            if trie is None:
                continue
            found = _match(trie, self._last[start + 1 :])
            best = _depth_first(found, budget, self._branch_length) if found is not None else ([], [])
            if len(best[0]) + 1 >= self._branch_length:
                break  # a shorter context is asked only where a longer one has little to say
        return best

    def _insert(self, tokens: list[int], count: int, *, is_output: bool) -> None:
        """Takes the windows that begin at the first `count` tokens."""
        for start in range(count):
            trie = self._tries.get(tokens[start])
            if trie is None:
                trie = self._tries[tokens[start]] = _Trie()
            else:
                self._changed.add(tokens[start])
            trie.insert(tokens[start + 1 : start + 1 + self._window], is_output=is_output)


def _match(trie: _Trie, tokens: Sequence[int]) -> _Node | None:
    node: _Node | None = trie
    for token in tokens:
        node = node.children.get(token) if node is not None else None
        if node is None or not node.is_alive:
            return None
    return node


def _depth_first(top: _Node, budget: int, max_depth: int) -> tuple[list[int], list[int]]:
    """Token ids and parents of the nodes below `top`, the likeliest child first and down to its end."""
    least = _least_output(top, budget + 1)
    token_ids: list[int] = []
    parents: list[int] = []

    def take(node: _Node, parent: int, depth: int) -> None:
        for token, child in sorted(node.children.items(), key=lambda item: -item[1].rank):
            if len(token_ids) >= budget:
                return
            if child.num_output < least:
                continue
            token_ids.append(token)
            parents.append(parent)
            if depth < max_depth:
                take(child, len(token_ids) - 1, depth + 1)

    take(top, -1, 1)
    return token_ids, parents


def _least_output(top: _Node, size: int) -> float:
    """Where there is more than fits (the root counts), nodes must be among the `size / 2` most frequent of outputs."""
    alive = [node.num_output for node in top.walk() if node.is_alive]
    outputs = sorted((count for count in alive if count > 0), reverse=True)
    share = max(size // 2, 1)
    return outputs[share - 1] if len(alive) >= size and len(outputs) >= share else 0.0
