"""Token trees: the one shape of every training example, and what can be done to them.

A forest is three arrays: ``tokens`` [N], ``parent`` [N] (-1 at a root) and edges (``source`` [E], ``target`` [E]). Nodes stand in
depth-first order, so that the descendants of node j are exactly the nodes j+1 .. end[j]-1. One array, ``end``, therefore says who
attends to whom, for chains, tries and anything packed side by side: i sees j when ``j <= i < end[j]``.

A token that is only predicted, never read, is an edge without a node: the last token of a text costs nothing.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alignlab.protocols import Array, Row


def depths(parent: Array) -> Array:
    """Position of each node on its path, [N], 0 at a root."""
    depth: list[int] = []
    for p in parent.tolist():
        depth.append(depth[p] + 1 if p >= 0 else 0)
    return np.array(depth, np.int32)


def ends(parent: Array) -> Array:
    """One past the last descendant of each node, [N].

    Raises:
        ValueError: the nodes do not stand in depth-first order.
    """
    end = [0] * len(parent)
    path: list[int] = []  # the node before and its ancestors: what the next node may hang on
    for i, p in enumerate(parent.tolist()):
        while path and path[-1] != p:
            end[path.pop()] = i
        if not path and p != -1:
            raise ValueError(f"node {i} breaks the depth-first order: its parent {p} is not on the path before it")
        path.append(i)
    for node in path:
        end[node] = len(end)
    return np.array(end, np.int32)


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

    def text(self, context: Sequence[int], scored: Sequence[int]) -> list[int]:
        """Edges of a text whose last tokens are scored, in order; whatever is already there is shared."""
        nodes = self.path([*context, *scored[:-1]])
        return [self.edge(source, target) for source, target in zip(nodes[len(context) - 1 :], scored, strict=True)]

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
        tokens, parents = np.array(self.tokens, np.int64)[old], new[np.array(self.parent, np.int64)[old]]
        return tokens.astype(np.int32), parents.astype(np.int32), source.astype(np.int32), target.astype(np.int32), order


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
    nodes, parent, source, target, order = builder.arrays()
    return Trie(nodes, parent, source, target, leaf=order[leaves], paths=tuple(order[path] for path in paths))


def chains(texts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[Array, Array, Array, Array]:
    """Texts side by side, each a chain of its own: ``tokens, parent, source, target``.

    Args:
        texts: for each, the token ids that are read only, at least one, and those that are scored, at least one. The edges stand in
            the order of the texts.

    Raises:
        ValueError: either is empty.
    """
    tokens, parent, source, target = list[int](), list[int](), list[int](), list[int]()
    for context, scored in texts:
        if not len(context) or not len(scored):
            raise ValueError("a chain needs a context and something to score")
        start = len(tokens)
        tokens += [*context, *scored[:-1]]
        parent += [-1, *range(start, len(tokens) - 1)]
        source += range(start + len(context) - 1, len(tokens))
        target += scored
    return tuple(np.array(values, np.int32) for values in (tokens, parent, source, target))  # type: ignore[return-value]


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
    if len(row.tokens) <= limit or not len(row.source):
        return [row]
    parent, depth = row.parent.tolist(), depths(row.parent).tolist()
    pieces: list[list[int]] = [[]]
    have: set[int] = set()
    tip = -1  # the node that came last into the piece
    for edge in np.argsort(row.source, kind="stable").tolist():
        source = node = int(row.source[edge])
        new = []
        while node >= 0 and node not in have:
            new.append(node)
            node = parent[node]
        one_path = node == tip and len(have) == depth[tip] + 1
        if new and have and len(have) + len(new) > limit and not one_path:
            pieces.append([])
            while node >= 0:
                new.append(node)
                node = parent[node]
            have = set()
        if new:
            have.update(new)
            tip = source
        pieces[-1].append(edge)
    rows = []
    for i, piece in enumerate(pieces):
        keep = np.zeros(len(row.source), bool)
        keep[piece] = True
        rows.append(replace(prune(row, keep), mass=row.mass if i == 0 else 0.0))
    return rows


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of items whose lengths sum to at most ``capacity`` (best fit, longest first); a longer item has a bin of its own."""
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (free, bin), sorted
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[item]
        at = bisect_left(rooms, (length, 0))
        if at < len(rooms):
            free, into = rooms.pop(at)
        else:
            free, into = capacity, len(bins)
            bins.append([])
        bins[into].append(item)
        if free > length:
            insort(rooms, (free - length, into))
    return [sorted(b) for b in bins]


def chunks(rows: Iterable[Row], capacity: int) -> Iterator[list[Row]]:
    """Consecutive rows within the capacity; a longer one alone."""
    chunk: list[Row] = []
    used = 0
    for row in rows:
        if chunk and used + len(row.tokens) > capacity:
            yield chunk
            chunk, used = [], 0
        chunk.append(row)
        used += len(row.tokens)
    if chunk:
        yield chunk


def within(rows: Sequence[Row], capacity: int) -> list[list[Row]]:
    """Rows as they are where they fit the capacity together, else one after the other, cut where they may be."""
    if sum(len(row.tokens) for row in rows) <= capacity:
        return [list(rows)]
    return [[piece] for row in rows for piece in (split(row, capacity) if row.splittable else [row])]
