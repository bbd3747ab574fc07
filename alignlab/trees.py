"""Token trees: the one shape of every training example, and what can be done to them.

A forest is three arrays: ``tokens`` [N], ``parent`` [N] (-1 at a root) and edges (``source`` [E], ``target`` [E]). Nodes stand in
depth-first order, so that the descendants of node j are exactly the nodes j+1 .. end[j]-1. One array, ``end``, therefore says who
attends to whom, for chains, tries and anything packed side by side: i sees j when ``j <= i < end[j]``.

A token that is only predicted, never read, is an edge without a node: the last token of a text costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from alignlab.protocols import Array, Row


def depths(parent: Array) -> Array:
    """Position of each node on its path, [N], 0 at a root."""
    depth = np.zeros(len(parent), np.int32)
    for i, p in enumerate(parent.tolist()):
        if p >= 0:
            depth[i] = depth[p] + 1
    return depth


def ends(parent: Array) -> Array:
    """One past the last descendant of each node, [N].

    Raises:
        ValueError: the nodes do not stand in depth-first order.
    """
    n = len(parent)
    end = np.arange(1, n + 1, dtype=np.int32)
    for i in range(n - 1, -1, -1):
        p = int(parent[i])
        if p >= i:
            raise ValueError(f"node {i} stands before its parent {p}")
        if p >= 0:
            end[p] = max(end[p], end[i])
    for i in range(1, n):  # depth-first: each node hangs on the one before it or on one of that one's ancestors
        p = int(parent[i])
        if p >= 0 and not (p <= i - 1 < end[p] and end[p] >= end[i]):
            raise ValueError(f"node {i} breaks the depth-first order")
        if p < 0 and np.any(end[:i] > i):
            raise ValueError(f"root {i} stands inside another tree")
    return end


class TreeBuilder:
    """Collects paths and edges, sharing every common prefix, and gives them in depth-first order."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parent: list[int] = []
        self._children: dict[tuple[int, int], int] = {}
        self.edges: dict[tuple[int, int], int] = {}

    def path(self, tokens: Sequence[int], start: int = -1) -> list[int]:
        """Nodes of a text that continues node ``start`` (-1: a new root), shared with what is already there."""
        nodes = []
        for token in tokens:
            node = self._children.get((start, token))
            if node is None:
                node = self._children[start, token] = len(self.tokens)
                self.tokens.append(token)
                self.parent.append(start)
            nodes.append(node)
            start = node
        return nodes

    def edge(self, source: int, target: int) -> int:
        """Index of the edge that scores ``target`` after node ``source``; the same pair is the same edge."""
        return self.edges.setdefault((source, target), len(self.edges))

    def arrays(self) -> tuple[Array, Array, Array, Array, Array]:
        """``tokens, parent, source, target, order``: ``order[e]`` is where the e-th edge that was added stands now."""
        children: dict[int, list[int]] = {}
        for node, parent in enumerate(self.parent):
            children.setdefault(parent, []).append(node)
        new = np.full(len(self.tokens) + 1, -1, np.int64)  # the last entry maps parent -1 to -1
        stack, count = children.get(-1, [])[::-1], 0
        old = np.empty(len(self.tokens), np.int64)
        while stack:
            node = stack.pop()
            new[node], old[count] = count, node
            count += 1
            stack.extend(reversed(children.get(node, ())))
        edges = np.array(list(self.edges), np.int64).reshape(-1, 2)
        by_node = np.argsort(new[edges[:, 0]], kind="stable")
        order = np.empty(len(edges), np.int64)
        order[by_node] = np.arange(len(edges))
        source, target = new[edges[by_node, 0]], edges[by_node, 1]
        parent = new[np.array(self.parent, np.int64)[old]]
        tokens = np.array(self.tokens, np.int64)[old]
        return (*(a.astype(np.int32) for a in (tokens, parent, source, target)), order)  # type: ignore[return-value]


@dataclass(frozen=True)
class Trie:
    """A prompt and its continuations as one tree."""

    tokens: Array
    parent: Array
    source: Array
    target: Array
    leaf: Array
    """[C] edge that ends each continuation"""
    paths: tuple[Array, ...]
    """for each continuation, the edges along it, in order"""

    def weigh(self, weights: Array) -> Array:
        """Weight of each edge, [E]: the sum over the continuations that pass through it."""
        total = np.zeros(len(self.source), np.float64)
        for path, weight in zip(self.paths, weights, strict=True):
            total[path] += weight
        return total

    def gather(self, logp: Array) -> Array:
        """Log-probability of each continuation, [C], from that of each edge, [E]."""
        return np.array([float(np.sum(logp[path])) for path in self.paths])


def trie(prompt: Sequence[int], continuations: Sequence[Sequence[int]]) -> Trie:
    """The weighted trie of Diffuse: every distinct prefix of the continuations is computed once.

    Args:
        prompt: token ids, at least one.
        continuations: token ids after the prompt, at least one token each.

    Raises:
        ValueError: the prompt or a continuation is empty, or a continuation begins another.
    """
    if not len(prompt) or any(not len(c) for c in continuations):
        raise ValueError("a trie needs a prompt and continuations of at least one token")
    builder = TreeBuilder()
    root = builder.path(prompt)[-1]
    paths = []
    for tokens in continuations:
        sources = [root, *builder.path(tokens[:-1], root)]
        paths.append([builder.edge(s, t) for s, t in zip(sources, tokens, strict=True)])
    leaves = [path[-1] for path in paths]
    inner = {edge for path in paths for edge in path[:-1]}
    if len(set(leaves)) < len(leaves) or inner & set(leaves):
        raise ValueError("a continuation begins another, or equals it")
    *arrays, order = builder.arrays()
    return Trie(*arrays, leaf=order[leaves], paths=tuple(order[path] for path in paths))  # type: ignore[call-arg]


def prune(row: Row, keep: Array) -> Row:
    """The row with the edges of mask ``keep`` [E] and only the nodes that they need."""
    needed = np.zeros(len(row.tokens), bool)
    needed[row.source[keep]] = True
    for i in range(len(needed) - 1, -1, -1):
        if needed[i] and row.parent[i] >= 0:
            needed[row.parent[i]] = True
    new = np.cumsum(needed, dtype=np.int32) - 1
    parent = row.parent[needed]
    return replace(
        row,
        tokens=row.tokens[needed],
        parent=np.where(parent >= 0, new[parent], -1).astype(np.int32),
        source=new[row.source[keep]],
        target=row.target[keep],
        columns={name: column[keep] for name, column in row.columns.items()},
    )


def split(row: Row, limit: int) -> list[Row]:
    """Cut a row into rows of at most ``limit`` nodes whose edges together are the row's, each once.

    A path longer than the limit stays whole. The first piece carries the mass, so that masses still add up.
    """
    if len(row.tokens) <= limit:
        return [row]
    order = np.argsort(row.source, kind="stable")
    pieces: list[list[int]] = [[]]
    have: set[int] = set()
    for edge in order.tolist():
        path, node = [], int(row.source[edge])
        while node >= 0 and node not in have:
            path.append(node)
            node = int(row.parent[node])
        if have and len(have) + len(path) > limit:
            pieces.append([])
            have, node = set(), int(row.source[edge])
            while node >= 0:
                have.add(node)
                node = int(row.parent[node])
        else:
            have.update(path)
        pieces[-1].append(edge)
    rows = []
    for i, piece in enumerate(pieces):
        keep = np.zeros(len(row.source), bool)
        keep[piece] = True
        rows.append(replace(prune(row, keep), mass=row.mass if i == 0 else 0.0))
    return rows


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of items whose lengths sum to at most ``capacity`` (first fit, longest first); a longer item has a bin of its own."""
    bins: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[item]
        for b, free in enumerate(room):
            if length <= free:
                bins[b].append(item)
                room[b] -= length
                break
        else:
            bins.append([item])
            room.append(capacity - length)
    return [sorted(b) for b in bins]
