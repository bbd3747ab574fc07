"""Rows on disk."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from alignlab.data.rows import BLOCK, RowStore, write_rows
from alignlab.protocols import Row


def make(index: int) -> Row:
    n, edges = 1 + index % 7, index % 5
    return Row(
        group=index // 3,
        mass=index / 8,
        tokens=np.arange(index, index + n, dtype=np.int32),
        parent=np.arange(-1, n - 1, dtype=np.int32),
        source=np.full(edges, n - 1, np.int32),
        target=np.arange(edges, dtype=np.int32) + index,
        columns={"weight": np.full(edges, index + 1 / 3), "role": np.full(edges, index, np.int64)},
        splittable=index % 2 == 0,
    )


def same(one: Row, other: Row) -> None:
    assert (one.group, one.mass, one.splittable) == (other.group, other.mass, other.splittable)
    for name in ("tokens", "parent", "source", "target"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.columns.keys() == other.columns.keys()
    for name, column in one.columns.items():
        np.testing.assert_array_equal(column, other.columns[name])


@pytest.mark.parametrize("count", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_roundtrip_and_random_access_across_blocks(tmp_path: Path, count: int) -> None:
    path = tmp_path / "rows" / "train.arrow"
    assert write_rows(path, (make(i) for i in range(count))) == count
    store = RowStore(path)
    assert len(store) == count
    for index in np.random.default_rng(0).permutation(count)[:200].tolist():
        same(make(index), store[index])
    for index, row in enumerate(store):
        assert row.mass == make(index).mass
    assert index == count - 1
    np.testing.assert_array_equal(store.length, [len(make(i).tokens) for i in range(count)])
    np.testing.assert_array_equal(store.edges, [len(make(i).source) for i in range(count)])
    np.testing.assert_array_equal(store.group, [make(i).group for i in range(count)])
    np.testing.assert_array_equal(store.mass, [make(i).mass for i in range(count)])


def test_an_index_outside_is_an_error(tmp_path: Path) -> None:
    write_rows(tmp_path / "a", [make(1), make(2)])
    store = RowStore(tmp_path / "a")
    for index in (2, -1, 10**6):
        with pytest.raises(IndexError):
            store[index]


def test_no_rows(tmp_path: Path) -> None:
    assert write_rows(tmp_path / "empty", []) == 0
    store = RowStore(tmp_path / "empty")
    assert (len(store), list(store), store.mass.sum()) == (0, [], 0.0)
    with pytest.raises(IndexError):
        store[0]


def test_dtypes_are_those_that_a_batch_reads(tmp_path: Path) -> None:
    plain = make(3)
    columns = {
        "half": np.array([0.5, 0.25, 1.0], np.float16),
        "single": np.array([0.1, 0.2, 0.3], np.float32),
        "small": np.array([1, 2, 3], np.int8),
        "flag": np.array([True, False, True]),
        "list": [1.5, 2.5, 3.5],
    }
    row = Row(0, 1.0, plain.tokens.astype(np.int64), plain.parent, plain.source, plain.target, columns)
    write_rows(tmp_path / "a", [row])
    read = RowStore(tmp_path / "a")[0]
    assert {name: read.columns[name].dtype.name for name in columns} == {
        "half": "float64",
        "single": "float64",
        "small": "int64",
        "flag": "int64",
        "list": "float64",
    }
    for name, column in columns.items():
        np.testing.assert_array_equal(read.columns[name], np.asarray(column, np.float64))
    assert {getattr(read, name).dtype for name in ("tokens", "parent", "source", "target")} == {np.dtype(np.int32)}


def test_a_float_column_is_never_cut_to_integers(tmp_path: Path) -> None:
    first, later = make(1), make(1)
    object.__setattr__(first, "columns", {"x": np.array([1])})
    object.__setattr__(later, "columns", {"x": np.array([0.5])})
    with pytest.raises(pa.ArrowInvalid):
        write_rows(tmp_path / "a", [first, later])


@pytest.mark.parametrize("later", [{}, {"weight": np.zeros(1)}, {"weight": np.zeros(1), "role": np.zeros(1), "more": np.zeros(1)}])
def test_rows_of_one_file_have_the_same_columns(tmp_path: Path, later: dict[str, np.ndarray]) -> None:
    odd = make(1)
    object.__setattr__(odd, "columns", later)
    with pytest.raises(ValueError, match="columns"):
        write_rows(tmp_path / "a", [make(1), odd])
    assert list(tmp_path.iterdir()) == []


def test_nothing_stands_under_the_final_name_before_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "train.arrow"

    def broken() -> Iterator[Row]:
        for i in range(2 * BLOCK):
            assert not path.exists()
            yield make(i)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(path, broken())
    assert list(tmp_path.iterdir()) == []
    write_rows(path, [make(5)])
    with pytest.raises(KeyboardInterrupt):
        write_rows(path, (row if i < BLOCK else _stop() for i, row in enumerate(map(make, range(BLOCK + 1)))))
    same(make(5), RowStore(path)[0])  # what stood there before is whole


def _stop() -> Row:
    raise KeyboardInterrupt


def test_rows_are_mapped_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MiB of tokens add next to nothing to what arrow has allocated, and a row's tokens lie in the file's pages."""
    n = 2**18
    tokens = np.arange(n, dtype=np.int32)
    edge = np.zeros(1, np.int32)
    write_rows(tmp_path / "big", (Row(i, 1.0, tokens, tokens - 1, edge, edge) for i in range(32)))
    before = pa.total_allocated_bytes()
    store = RowStore(tmp_path / "big")
    row = store[31]
    assert pa.total_allocated_bytes() - before < 2**20
    assert not row.tokens.flags.owndata
    assert row.tokens[-1] == n - 1


def test_a_stream_is_written_block_by_block(tmp_path: Path) -> None:
    """At no time are more than a block of rows alive."""
    alive, most = 0, 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def stream() -> Iterator[Row]:
        nonlocal alive, most
        for i in range(4 * BLOCK):
            row = make(i)
            weakref.finalize(row, gone)
            alive += 1
            most = max(most, alive)
            yield row

    write_rows(tmp_path / "a", stream())
    assert BLOCK <= most <= 2 * BLOCK + 2
