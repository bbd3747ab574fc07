"""Rows of files as documents: sentences, or a text to cut into them, with what is already known of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignlab.data.files import RawRow, paragraphs, raw_rows
from alignlab.errors import UserError, did_you_mean
from alignlab.records import short
from alignlab.seeds import uniform

if TYPE_CHECKING:
    from alignlab.data.labelled import LabelledText

TOGETHER = 1 << 14
"""rows that are drawn at a time"""


@dataclass(frozen=True)
class Document:
    """A row that is used."""

    number: int
    """over the rows of all files"""
    file: int
    row: int
    """number in its file"""
    at: str
    """what stands behind the file in the row's place"""
    origin: str
    texts: list[str]
    """sentences, or one text that is yet to be cut into them"""
    whole: bool
    """whether it is yet to be cut"""
    ready: list[list[Any]]
    """for each attribute with a column, a score, a label or None for each sentence"""


class Documents:
    """The documents of a source's files, in order."""

    def __init__(self, source: LabelledText, files: Sequence[Path]) -> None:
        self._source, self._files = source, files

    def read(self, start: int = 0) -> Iterator[tuple[str, Document | str | UserError | None]]:
        """Each row from number ``start`` on, as a stream of its place and what it is.

        That is a document, the origin for which it is left out, what is wrong with it, or None where it is not drawn.
        """
        rows = ((f, row, *found) for f, file in enumerate(self._files) for row, found in enumerate(_rows(file)))
        for number, ((file, row, place, raw), drawn) in enumerate(zip(rows, self._drawn(), strict=False)):
            if number < start:
                continue
            try:
                if drawn and isinstance(raw, UserError):
                    raise raw
                yield place, self._document(raw, place, number, file, row) if drawn else None  # type: ignore[arg-type]
            except UserError as error:
                yield place, error

    def _drawn(self) -> Iterator[bool]:
        """Whether each document is drawn, without end."""
        share, seed = self._source.share, self._source.seed
        if share is None:
            return repeat(True)
        blocks = (np.arange(first, first + TOGETHER) for first in count(0, TOGETHER))
        return chain.from_iterable((uniform(seed, "share", block) < share).tolist() for block in blocks)

    def _document(self, raw: Mapping[str, Any], place: str, number: int, file: int, row: int) -> Document | str:
        """A row as a document, or its origin where that is left out.

        Raises:
            UserError: a column is missing, mistyped, out of range or of another length.
        """
        columns = self._source.columns
        origin = "" if columns.origin is None else _cell(raw, columns.origin, "origin", place)
        if not isinstance(origin, str | None):
            raise _wrong(f"{place}:{columns.origin}", "must be a text or null", origin)
        if origin is not None and origin in self._source.leave_out:
            return origin
        value = _cell(raw, columns.text, "text", place)
        texts = [value] if isinstance(value, str) else value
        if not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
            raise _wrong(f"{place}:{columns.text}", "must be a text or a list of texts, a sentence each", value)
        for column, text in ((columns.text, "".join(texts)), (columns.origin, origin or "")):
            try:
                text.encode()
            except UnicodeEncodeError:
                why = "holds half of a surrogate pair (\\ud800 to \\udfff), which is no character. Correct it"
                raise UserError(f"{place}:{column}: {why}.") from None
        whole = isinstance(value, str) and self._source.splitter is not None
        length = None if isinstance(value, str) else len(texts)
        ready = [self._ready(name, column, raw, length, place) for name, column in self._source.ready.items()]
        return Document(number, file, row, place.removeprefix(str(self._files[file])), origin or "", texts, whole, ready)

    def _ready(self, name: str, column: str, raw: Mapping[str, Any], count: int | None, place: str) -> list[Any]:
        """What a row says of an attribute, for each of its sentences; ``count`` is None where it holds one text."""
        given, where = _cell(raw, column, f"labels.{name}", place), f"{place}:{column}"
        if count is None and self._source.splitter is not None:
            raise UserError(
                f"{where}: is of the whole text, which data.splitter={self._source.splitter} cuts into sentences.\n"
                f"Take each text as one sentence (data.splitter=null), or label anew (data.columns.labels.{name}=null)."
            )
        if (len(given) if isinstance(given, list) else None) != count:
            theirs = f"a list of {len(given)}" if isinstance(given, list) else "one value"
            own = "one text" if count is None else f"{count} sentences"
            raise UserError(f"{where}: {theirs}, and '{self._source.columns.text}' has {own}. Give one for each sentence.")
        values = given if isinstance(given, list) else [given]
        attribute = self._source.control[name]
        for index, value in enumerate(values):
            cell = f"{where}[{index}]" if isinstance(given, list) else where
            if isinstance(value, str):
                if value not in attribute.tokens:
                    near = did_you_mean(value, attribute.tokens)
                    raise UserError(f"{cell}: '{short(value)}' is not a label of {name} ({', '.join(attribute.tokens)}).{near}")
            elif isinstance(value, bool) or not isinstance(value, int | float | None):
                raise _wrong(cell, "must be a score, a label or null", value)
            elif value is not None and attribute.threshold is None:
                raise UserError(f"{cell}: is a score, and nothing divides scores. Give data.attributes.{name}.threshold.")
            elif value is not None and not 0 <= value <= 1:
                raise _wrong(cell, "a score must be a number from 0 to 1", value)
        return values


def _rows(file: Path) -> Iterator[RawRow]:
    return paragraphs(file) if file.suffix == ".txt" else raw_rows(file)


def _cell(raw: Mapping[str, Any], column: str, key: str, place: str) -> Any:
    """The value of a column, which may lie within others: ``meta.origin``.

    Raises:
        UserError: there is no such column.
    """
    if column in raw:
        return raw[column]
    value: Any = raw
    for part in column.split("."):
        if not (isinstance(value, Mapping) and part in value):
            known = sorted(_names(raw))
            near = did_you_mean(column, known)
            lacking = f"{place}: there is no column '{column}' ({', '.join(known)}).{near}"
            raise UserError(f"{lacking}\nName the one that holds it: data.columns.{key}=NAME.")
        value = value[part]
    return value


def _names(raw: Mapping[str, Any], above: str = "") -> Iterable[str]:
    for key, value in raw.items():
        yield from _names(value, f"{above}{key}.") if isinstance(value, Mapping) else [f"{above}{key}"]


def _wrong(where: str, problem: str, value: Any) -> UserError:
    return UserError(f"{where}: {problem}, not {short(repr(value))}.")
