"""Rows laid side by side."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from alignlab.engine.batch import collate
from alignlab.protocols import Row


def row(group: int, parent: list[int], source: list[int]) -> Row:
    n = np.arange(len(parent), dtype=np.int32)
    edges = np.array(source, np.int32)
    columns = {"weight": np.full(len(source), group + 0.5, np.float32), "role": np.full(len(source), group, np.int32)}
    return Row(group, group / 4, n + 10 * group, np.array(parent, np.int32), edges, edges + 50, columns)


FIRST, SECOND = row(1, [-1, 0, 1, 0], [3, 1, 1]), row(2, [-1, 0, -1], [])
THIRD = row(3, [-1, 0], [1])


def test_everything_is_shifted_to_its_place() -> None:
    batch = collate([FIRST, SECOND, THIRD])
    assert len(batch) == 9
    assert batch.tokens.tolist() == [10, 11, 12, 13, 20, 21, 22, 30, 31]
    assert batch.parent.tolist() == [-1, 0, 1, 0, -1, 4, -1, -1, 7]
    assert batch.depth.tolist() == [0, 1, 2, 1, 0, 1, 0, 0, 1]
    assert batch.end.tolist() == [4, 3, 3, 4, 6, 6, 7, 9, 9]
    assert batch.source.tolist() == [3, 1, 1, 8]
    assert batch.target.tolist() == [53, 51, 51, 51]
    assert batch.row.tolist() == [0, 0, 0, 2]
    assert batch.trees == ((0, 4, False), (4, 6, True), (6, 7, True), (7, 9, True))
    assert batch.columns["weight"].tolist() == [1.5, 1.5, 1.5, 3.5]
    assert batch.columns["role"].tolist() == [1, 1, 1, 3]
    assert (batch.row_mass.tolist(), batch.mass) == ([0.25, 0.5, 0.75], 1.5)
    whole = (batch.tokens, batch.parent, batch.depth, batch.end, batch.source, batch.target, batch.row, batch.columns["role"])
    assert {tensor.dtype for tensor in whole} == {torch.int64}
    assert {batch.columns["weight"].dtype, batch.row_mass.dtype} == {torch.float64}


def test_rows_may_be_read_only() -> None:
    """As the memory-mapped ones are."""
    tokens = FIRST.tokens.copy()
    tokens.flags.writeable = False
    batch = collate([replace(FIRST, tokens=tokens)])
    batch.tokens[0] = 99
    assert tokens[0] == 10


def test_all_of_a_batch_moves_to_a_device() -> None:
    batch = collate([FIRST, THIRD])
    moved = batch.to("meta")
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)] + list(moved.columns.values())
    assert len(tensors) == 10
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert (moved.trees, moved.mass) == (batch.trees, batch.mass)
    assert batch.tokens.device.type == "cpu"


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (replace(FIRST, source=np.array([4, 0, 0])), "an edge whose source is not one of them"),
        (replace(FIRST, source=np.array([-1, 0, 0])), "an edge whose source is not one of them"),
        (replace(SECOND, tokens=np.array([]), parent=np.array([], np.int32)), "no nodes"),
        (replace(FIRST, parent=np.array([-1, 0, 0, 1])), "depth-first"),
        (replace(FIRST, columns={"weight": np.zeros(3)}), "columns"),
        (replace(FIRST, columns={**FIRST.columns, "more": np.zeros(3)}), "columns"),
    ],
)
def test_a_row_that_makes_no_sense_is_refused(bad: Row, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        collate([THIRD, bad])
