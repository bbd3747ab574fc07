"""Rows on disk: a memory-mapped Arrow file, written as a stream, so that data larger than memory works."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from alignlab.protocols import Row

BLOCK = 256
"""rows per record batch: what is read and kept while one row is used"""


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write rows under a temporary name, then rename. Returns how many."""
    temporary = path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    count, block, writer = 0, [], None
    with pa.OSFile(str(temporary), "wb") as sink:
        for row in rows:
            block.append(row)
            count += 1
            if len(block) == BLOCK:
                writer = _write_block(sink, writer, block)
                block = []
        if block:
            writer = _write_block(sink, writer, block)
        if writer is not None:
            writer.close()
    temporary.replace(path)
    return count


def _write_block(sink: pa.OSFile, writer: pa.RecordBatchFileWriter | None, rows: Sequence[Row]) -> pa.RecordBatchFileWriter:
    fields = {
        "group": pa.array([row.group for row in rows], pa.int64()),
        "mass": pa.array([row.mass for row in rows], pa.float64()),
        "splittable": pa.array([row.splittable for row in rows], pa.bool_()),
    }
    for name in ("tokens", "parent", "source", "target"):
        fields[name] = _lists([getattr(row, name) for row in rows], pa.int32())
    for name, example in rows[0].columns.items():
        kind = pa.float64() if np.asarray(example).dtype.kind == "f" else pa.int64()
        fields["column." + name] = _lists([row.columns[name] for row in rows], kind)
    batch = pa.record_batch(fields)
    writer = writer or pa.ipc.new_file(sink, batch.schema)
    writer.write_batch(batch)
    return writer


def _lists(arrays: Sequence[Sequence[float]], kind: pa.DataType) -> pa.Array:
    offsets = np.cumsum([0, *(len(a) for a in arrays)])
    flat = np.concatenate([np.asarray(a) for a in arrays])
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
            **{name: cell(name) for name in ("tokens", "parent", "source", "target")},
        )

    def __iter__(self) -> Iterator[Row]:
        return (self[i] for i in range(len(self)))


def _concat(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(arrays).astype(dtype) if arrays else np.empty(0, dtype)
