"""Token trees: order, sharing, cutting and packing, against the plain meaning computed path by path."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab.protocols import Row
from alignlab.trees import TreeBuilder, depths, ends, pack, prune, split, trie, within

FAST = settings(max_examples=40, deadline=None)

texts = st.lists(st.integers(0, 4), min_size=1, max_size=6)


@st.composite
def continuations(draw: st.DrawFn) -> list[list[int]]:
    """Distinct token strings of which none begins another."""
    drawn = draw(st.lists(texts, min_size=1, max_size=12))
    kept: list[list[int]] = []
    for text in drawn:
        if not any(text[: len(k)] == k or k[: len(text)] == text for k in kept):
            kept.append(text)
    return kept


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """A forest of one to three roots with several edges per node."""
    builder = TreeBuilder()
    for _ in range(draw(st.integers(1, 3))):
        root = builder.path([draw(st.integers(5, 9))])[0]
        for text in draw(st.lists(texts, min_size=1, max_size=6)):
            for node in builder.path(text, root):
                for target in draw(st.lists(st.integers(0, 9), max_size=2)):
                    builder.edge(node, target)
    builder.edge(0, 0)
    tokens, parent, source, target, _ = builder.arrays()
    columns = {"weight": np.linspace(0.1, 1.0, len(source)), "name": np.arange(len(source))}
    return Row(7, 2.5, tokens, parent, source, target, columns, splittable=True)


def paths(tokens: np.ndarray, parent: np.ndarray) -> list[tuple[int, ...]]:
    """The tokens from the root to each node."""
    out: list[tuple[int, ...]] = []
    for token, p in zip(tokens.tolist(), parent.tolist(), strict=True):
        out.append((*(out[p] if p >= 0 else ()), token))
    return out


def toy_logp(path: tuple[int, ...], target: int) -> float:
    """A log-probability that depends on the whole context."""
    return -float((hash((path, target)) % 1009) + 1) / 100


def row_logp(row: Row) -> np.ndarray:
    context = paths(row.tokens, row.parent)
    return np.array([toy_logp(context[s], t) for s, t in zip(row.source.tolist(), row.target.tolist(), strict=True)])


def test_ends_and_depths_of_a_known_forest() -> None:
    parent = np.array([-1, 0, 1, 1, 0, -1, 5], np.int32)
    assert depths(parent).tolist() == [0, 1, 2, 2, 1, 0, 1]
    assert ends(parent).tolist() == [5, 4, 3, 4, 5, 7, 7]
    assert ends(np.array([], np.int32)).tolist() == []


@FAST
@given(rows())
def test_one_array_says_who_sees_whom(row: Row) -> None:
    end, parent = ends(row.parent), row.parent.tolist()
    for i in range(len(parent)):
        ancestors, node = set(), i
        while node >= 0:
            ancestors.add(node)
            node = parent[node]
        assert {j for j in range(len(parent)) if j <= i < end[j]} == ancestors
        assert depths(row.parent)[i] == len(ancestors) - 1


@pytest.mark.parametrize(
    "parent",
    [
        [-1, 2, 0],  # a node before its parent
        [0],  # its own parent
        [-1, 0, 0, 1],  # a subtree torn apart
        [-1, -1, 0],  # a root inside another tree
        [-1, -2],
    ],
)
def test_ends_refuses_another_order(parent: list[int]) -> None:
    with pytest.raises(ValueError, match="depth-first"):
        ends(np.array(parent, np.int32))


def test_builder_shares_prefixes_and_edges() -> None:
    builder = TreeBuilder()
    first = builder.path([1, 2, 3])
    second = builder.path([1, 2, 4, 5])
    assert first[:2] == second[:2]
    assert first[2] != second[2]
    other = builder.path([9])[0]
    late = builder.path([6], first[1])[0]  # hangs on the first tree after the second root: arrays() must move it
    edges = [builder.edge(late, 7), builder.edge(other, 8), builder.edge(late, 7), builder.edge(first[1], 3)]
    assert edges == [0, 1, 0, 2]
    tokens, parent, source, target, order = builder.arrays()
    assert tokens.tolist() == [1, 2, 3, 4, 5, 6, 9]
    assert parent.tolist() == [-1, 0, 1, 1, 3, 1, -1]
    context = paths(tokens, parent)
    scored = {(context[s], t) for s, t in zip(source.tolist(), target.tolist(), strict=True)}
    assert scored == {((1, 2, 6), 7), ((9,), 8), ((1, 2), 3)}
    assert [(context[source[order[e]]], int(target[order[e]])) for e in (0, 1, 2)] == [((1, 2, 6), 7), ((9,), 8), ((1, 2), 3)]
    assert all(a.dtype == np.int32 for a in (tokens, parent, source, target))


def test_an_empty_builder_gives_empty_arrays() -> None:
    assert [len(a) for a in TreeBuilder().arrays()] == [0, 0, 0, 0, 0]


@FAST
@given(rows())
def test_builder_nodes_are_the_distinct_prefixes_in_depth_first_order(row: Row) -> None:
    context = paths(row.tokens, row.parent)
    assert len(set(context)) == len(context)
    ends(row.parent)  # raises in any other order


@FAST
@given(texts, continuations(), st.integers(0, 2**16))
def test_a_trie_means_its_continuations(prompt: list[int], texts: list[list[int]], seed: int) -> None:
    tree = trie(prompt, texts)
    context = paths(tree.tokens, tree.parent)
    inner = {tuple(prompt + text[:k]) for text in texts for k in range(len(text))}
    prompts = {tuple(prompt[:k]) for k in range(1, len(prompt))}
    assert len(tree.tokens) == len(inner | prompts)
    assert set(context) == inner | prompts
    assert len(tree.source) == len({tuple(text[:k]) for text in texts for k in range(1, len(text) + 1)})

    logp = np.array([toy_logp(context[s], t) for s, t in zip(tree.source.tolist(), tree.target.tolist(), strict=True)])
    whole = np.array([sum(toy_logp((*prompt, *text[:k]), text[k]) for k in range(len(text))) for text in texts])
    np.testing.assert_allclose(tree.gather(logp), whole, rtol=1e-12)
    weights = np.random.default_rng(seed).random(len(texts))
    np.testing.assert_allclose(tree.weigh(weights) @ logp, weights @ whole, rtol=1e-12)
    assert [int(tree.target[leaf]) for leaf in tree.leaf] == [text[-1] for text in texts]


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [([], [[1]]), ([1], [[]]), ([1], [[2], [2]]), ([1], [[2], [2, 3]]), ([1], [[2, 3], [2]])],
)
def test_a_trie_refuses_what_has_no_own_leaf(prompt: list[int], texts: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"needs a prompt|begins another"):
        trie(prompt, texts)


@FAST
@given(rows(), st.integers(0, 2**16))
def test_prune_keeps_edges_with_their_contexts_and_nothing_else(row: Row, seed: int) -> None:
    keep = np.random.default_rng(seed).random(len(row.source)) < 0.4
    pruned = prune(row, keep)
    np.testing.assert_allclose(row_logp(pruned), row_logp(row)[keep])
    np.testing.assert_array_equal(pruned.columns["name"], row.columns["name"][keep])
    context = paths(row.tokens, row.parent)
    needed = {context[s][:k] for s in row.source[keep].tolist() for k in range(1, len(context[s]) + 1)}
    assert Counter(paths(pruned.tokens, pruned.parent)) == Counter(needed)
    assert (pruned.group, pruned.mass, pruned.splittable) == (row.group, row.mass, row.splittable)
    ends(pruned.parent)


@FAST
@given(rows(), st.integers(1, 12))
def test_split_partitions_edges_and_keeps_the_loss(row: Row, limit: int) -> None:
    pieces = split(row, limit)
    names = [name for piece in pieces for name in piece.columns["name"].tolist()]
    assert sorted(names) == list(range(len(row.source)))
    assert sum(piece.mass for piece in pieces) == row.mass
    loss = sum(piece.columns["weight"] @ row_logp(piece) for piece in pieces)
    np.testing.assert_allclose(loss, row.columns["weight"] @ row_logp(row), rtol=1e-12)
    for piece in pieces:
        ends(piece.parent)
        one_path = piece.parent.tolist() == list(range(-1, len(piece.parent) - 1))
        assert len(piece.tokens) <= limit or one_path


def test_split_leaves_what_fits_and_a_path_that_cannot_be_cut() -> None:
    tokens = np.arange(10, dtype=np.int32)
    every = Row(0, 1.0, tokens, np.arange(-1, 9, dtype=np.int32), tokens, tokens + 1, {"name": tokens})
    assert split(every, 10) == [every]
    assert [len(piece.tokens) for piece in split(every, 4)] == [10]  # not 4, 5, 6, ... 10: each piece would repeat the path
    twice = Row(0, 1.0, tokens, every.parent, np.array([9, 9]), np.array([1, 2]), {"name": np.arange(2)})
    assert [len(piece.source) for piece in split(twice, 4)] == [2]
    none = Row(0, 1.0, tokens, every.parent, tokens[:0], tokens[:0])
    assert split(none, 4) == [none]


def test_split_cuts_a_trie_into_few_pieces() -> None:
    prompt, texts = list(range(10)), [[100 + k, 0, 1, 2, 3] for k in range(20)]
    tree = trie(prompt, texts)
    row = Row(0, 1.0, tree.tokens, tree.parent, tree.source, tree.target, {}, splittable=True)
    pieces = split(row, 30)  # the prompt and five branches of four nodes each
    assert [len(piece.tokens) for piece in pieces] == [30, 30, 30, 30]


@FAST
@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 60))
def test_pack_holds_every_item_once_within_capacity(lengths: list[int], capacity: int) -> None:
    bins = pack(lengths, capacity)
    assert sorted(item for b in bins for item in b) == list(range(len(lengths)))
    for b in bins:
        assert sum(lengths[i] for i in b) <= capacity or len(b) == 1
    fits = [length for length in lengths if length <= capacity]
    # any two bins hold more than one capacity together, so bins are at most twice the least possible number, and one more
    assert len(bins) - (len(lengths) - len(fits)) <= 2 * sum(fits) / capacity + 1


def test_pack_fills_bins() -> None:
    assert pack([6, 5, 4, 3, 2], 10) == [[0, 2], [1, 3, 4]]
    assert pack([], 10) == []


def test_within_leaves_rows_together_where_they_fit() -> None:
    tree = trie([1, 2], [[3, 4, 5], [6, 7, 8]])
    whole = Row(0, 1.0, tree.tokens, tree.parent, tree.source, tree.target, {"name": np.arange(6)}, splittable=True)
    stiff = Row(1, 1.0, tree.tokens, tree.parent, tree.source, tree.target, {"name": np.arange(6)})
    assert within([whole, stiff], 12) == [[whole, stiff]]
    cut = within([whole, stiff], 5)
    assert [[len(row.tokens) for row in rows] for rows in cut] == [[5], [4], [6]]
    assert cut[2][0] is stiff
