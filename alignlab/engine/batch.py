"""Rows of one micro-batch laid side by side, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from alignlab.protocols import Row
from alignlab.trees import depths, ends


@dataclass
class Batch:
    """A packed forest. N nodes, E edges, R rows, T trees."""

    tokens: Tensor
    """[N] int64"""
    parent: Tensor
    """[N] int64, -1 at a root"""
    depth: Tensor
    """[N] int64, position id"""
    end: Tensor
    """[N] int64, one past the last descendant"""
    source: Tensor
    """[E] int64"""
    target: Tensor
    """[E] int64"""
    row: Tensor
    """[E] int64, which row of the batch an edge belongs to"""
    columns: dict[str, Tensor]
    """[E] each: float64 or int64, as the method gave them"""
    row_mass: Tensor
    """[R] float64"""
    mass: float
    trees: tuple[tuple[int, int, bool], ...]
    """(start, stop, whether it is a chain) of each tree"""

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in moved.items():
            if isinstance(value, Tensor):
                moved[name] = value.to(device, non_blocking=True)
        return replace(self, **{**moved, "columns": {k: v.to(device) for k, v in self.columns.items()}})


def collate(rows: Sequence[Row]) -> Batch:
    """Lay rows side by side.

    Raises:
        ValueError: a row has no nodes, breaks the depth-first order, an edge leaves it, or its columns are not the others'.
    """
    start = 0
    parts: dict[str, list[np.ndarray]] = {k: [] for k in ("tokens", "parent", "depth", "end", "source", "target", "row")}
    columns: dict[str, list[np.ndarray]] = {name: [] for name in rows[0].columns}
    trees: list[tuple[int, int, bool]] = []
    for index, row in enumerate(rows):
        n = len(row.tokens)
        if not n or (len(row.source) and not 0 <= row.source.min() <= row.source.max() < n):
            raise ValueError(f"row {index} of group {row.group} has no nodes, or an edge whose source is not one of them")
        if row.columns.keys() != columns.keys():
            raise ValueError(f"row {index} of group {row.group} has columns {list(row.columns)}, the first row {list(columns)}")
        end, parent = ends(row.parent), row.parent.astype(np.int64)
        for root in np.flatnonzero(parent < 0):
            stop = int(end[root])
            chain = bool(np.all(parent[root + 1 : stop] == np.arange(root, stop - 1)))
            trees.append((start + int(root), start + stop, chain))
        parts["tokens"].append(row.tokens)
        parts["parent"].append(np.where(parent >= 0, parent + start, -1))
        parts["depth"].append(depths(row.parent))
        parts["end"].append(end + start)
        parts["source"].append(row.source + start)
        parts["target"].append(row.target)
        parts["row"].append(np.full(len(row.source), index))
        for name, values in columns.items():
            values.append(np.asarray(row.columns[name]))
        start += n
    tensors = {name: torch.from_numpy(np.concatenate(arrays).astype(np.int64)) for name, arrays in parts.items()}
    masses = np.array([row.mass for row in rows], np.float64)
    return Batch(
        **tensors,
        columns={name: _column(np.concatenate(arrays)) for name, arrays in columns.items()},
        row_mass=torch.from_numpy(masses),
        mass=float(masses.sum()),
        trees=tuple(trees),
    )


def _column(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float64 if values.dtype.kind == "f" else np.int64))
