"""Rows on disk: a memory-mapped Arrow file, written as a stream, so that data larger than memory works."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from alignlab.files import replacing
from alignlab.protocols import Row

BLOCK = 256
"""rows per record batch: what is read and kept while one row is used"""


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write rows under a temporary name, then rename: a file under the final name is complete. Returns how many.

    Raises:
        ValueError: a row's columns are not those of the first row.
    """
    count, stream = 0, iter(rows)
    with replacing(path, "wb") as sink:
        block = list(islice(stream, BLOCK))
        if block:
            kinds = {name: _kind(column) for name, column in block[0].columns.items()}
            with pa.ipc.new_file(sink, _batch(block, kinds).schema) as writer:
                while block:
                    writer.write_batch(_batch(block, kinds))
                    count += len(block)
                    block = list(islice(stream, BLOCK))
    return count


def _kind(column: np.ndarray) -> pa.DataType:
    return pa.float64() if np.asarray(column).dtype.kind == "f" else pa.int64()


def _batch(rows: Sequence[Row], kinds: Mapping[str, pa.DataType]) -> pa.RecordBatch:
    odd = next((row for row in rows if row.columns.keys() != kinds.keys()), None)
    if odd:
        raise ValueError(f"a row of group {odd.group} has columns {list(odd.columns)}, the first row {list(kinds)}")
    fields = {
        "group": pa.array([row.group for row in rows], pa.int64()),
        "mass": pa.array([row.mass for row in rows], pa.float64()),
        "splittable": pa.array([row.splittable for row in rows], pa.bool_()),
    }
    for name in ("tokens", "parent", "source", "target"):
        fields[name] = _lists([getattr(row, name) for row in rows], pa.int32())
    for name, kind in kinds.items():
        fields["column." + name] = _lists([row.columns[name] for row in rows], kind)
    return pa.record_batch(fields)


def _lists(arrays: Sequence[np.ndarray], kind: pa.DataType) -> pa.Array:
    offsets = np.cumsum([0, *(len(a) for a in arrays)])
    flat = np.concatenate([np.asarray(a) for a in arrays])
    if flat.dtype == bool:
        flat = flat.astype(np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(flat, kind))


class RowStore(Sequence[Row]):
    """Random access to written rows; opening reads only groups, masses and lengths."""

    def __init__(self, path: Path) -> None:
        self._path = path
        empty = path.stat().st_size == 0
        self._reader = None if empty else pa.ipc.open_file(pa.memory_map(str(path)))
        blocks = [] if self._reader is None else [self._reader.get_batch(i) for i in range(self._reader.num_record_batches)]
        self.group = _concat([b["group"].to_numpy() for b in blocks], np.int64)
        self.mass = _concat([b["mass"].to_numpy() for b in blocks], np.float64)
        self.length = _concat([np.diff(b["tokens"].offsets.to_numpy()) for b in blocks], np.int64)
        self.edges = _concat([np.diff(b["source"].offsets.to_numpy()) for b in blocks], np.int64)

    def __len__(self) -> int:
        return len(self.group)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        if self._reader is None or not 0 <= index < len(self):
            raise IndexError(index)
        block = self._reader.get_batch(index // BLOCK)
        at = index % BLOCK

        def cell(name: str) -> np.ndarray:
            offsets = block[name].offsets
            return block[name].values.slice(offsets[at].as_py(), offsets[at + 1].as_py() - offsets[at].as_py()).to_numpy()

        names = [name for name in block.schema.names if name.startswith("column.")]
        return Row(
            group=int(self.group[index]),
            mass=float(self.mass[index]),
            splittable=block["splittable"][at].as_py(),
            columns={name.removeprefix("column."): cell(name) for name in names},
            **{name: cell(name) for name in ("tokens", "parent", "source", "target")},  # type: ignore[arg-type]
        )

    def __iter__(self) -> Iterator[Row]:
        return (self[i] for i in range(len(self)))


def _concat(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(arrays).astype(dtype) if arrays else np.empty(0, dtype)
