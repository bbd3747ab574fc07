"""Work that is kept piece by piece: a file that grows by a line for every batch of pieces, and survives a kill.

A batch is done once its line is on the disk. A restart cuts off what a kill left of the last line and makes only the pieces that
lack. What a stage writes in the end is read from here, so that it does not depend on interruptions.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from alignlab.signals import Stop

SUFFIX = ".partial"
"""of the file, behind the name of the one that is made of it; it is deleted when the stage is done"""

T = TypeVar("T")


class Journal:
    """Pieces, each a value that JSON can hold, by their places: 0, 1, 2 and so on, which may be made in any order.

    The first line of the file is the key. A line has a checksum in front: from the first one on that is damaged, pieces are made
    again. One process at a time may have the file open.

    Args:
        path: the file.
        key: digest of all that the pieces depend on; those of another key are thrown away.
        stop: a signal that it holds back ends the work after the next batch.
        what: the pieces, in the words of a message, such as ``prompts``.
        total: how many there will be, where that is known.

    Attributes:
        done: places of the pieces that are in the file.
    """

    def __init__(self, path: Path, key: str, stop: Stop, what: str, total: int | None = None) -> None:
        self._path, self._key, self._stop, self._what, self._total = path, key, stop, what, total
        self.done: set[int] = set()

    def __enter__(self) -> Journal:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("ab")
        whole = 0
        with self._path.open("rb") as file:
            lines = _lines(file)
            if next(lines, None) == self._key:
                whole = file.tell()
                for batch in lines:
                    self.done.update(place for place, _ in batch)
                    whole = file.tell()
        self._file.truncate(whole)
        if not whole:
            self._write(self._key)
        self._pieces, self._next = iter(self), 0
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what was added is on the disk
            self._file.close()

    def add(self, batch: Iterable[tuple[int, Any]]) -> None:
        """Keep the pieces of a batch that are not there yet.

        Raises:
            StoppedError: a signal arrived; the batch is kept.
        """
        new = [[place, piece] for place, piece in batch if place not in self.done]
        if new:
            self._write(new)
            self.done.update(place for place, _ in new)
        self.check()

    def check(self) -> None:
        """Raise StoppedError if a signal arrived."""
        if self._stop.signal:
            total = "" if self._total is None else f" of {self._total}"
            raise self._stop.error(f"{len(self.done)}{total} {self._what} are kept")

    def __iter__(self) -> Iterator[Any]:
        """The pieces in the order of their places, up to the first that lacks."""
        waiting: dict[int, Any] = {}
        place = 0
        with self._path.open("rb") as file:
            for batch in islice(_lines(file), 1, None):
                waiting.update(batch)
                while place in waiting:
                    yield waiting.pop(place)
                    place += 1

    def through(self, batches: Iterable[Sequence[T]], make: Callable[[Sequence[T]], Iterable[Any]]) -> Iterator[Any]:
        """The piece of each item of each batch, in order; ``make`` is asked for a batch of which one lacks.

        Another call goes on at the place where the one before it ended.

        Raises:
            StoppedError: a signal arrived; it is looked at after each batch that was made.
        """
        for batch in batches:
            places = range(self._next, self._next + len(batch))
            self._next += len(batch)
            if not self.done.issuperset(places):
                with self._stop.deferred():
                    self.add(zip(places, make(batch), strict=True))
            yield from islice(self._pieces, len(batch))

    def _write(self, value: Any) -> None:
        try:
            self._file.write(_line(json.dumps(value).encode()))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            error.filename = str(self._path)
            raise


def _line(body: bytes) -> bytes:
    return b"%08x %b\n" % (zlib.crc32(body), body)


def _lines(file: BinaryIO) -> Iterator[Any]:
    """Values of the lines up to the first that is not whole."""
    while (line := file.readline()) and line == _line(line[9:-1]):
        yield json.loads(line[9:-1])
