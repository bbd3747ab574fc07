"""Sources whose records are rows of files: which files and rows, what is wrong with some, which are held back for validation."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from alignlab.config import at_least
from alignlab.data.files import RawRow, find, labels, raw_rows
from alignlab.errors import UserError, did_you_mean
from alignlab.protocols import QuietSource
from alignlab.records import Record, short
from alignlab.seeds import generator

OWN = ("path", "test", "validation")
"""keys of the files that ``files``, ``revision`` and ``columns`` are about"""

_HALF = re.compile("[\ud800-\udfff]")


def halved(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, which no tokenizer takes."""
    return not text.isascii() and _HALF.search(text) is not None


HALVED = "holds half of a surrogate pair (\\ud800 to \\udfff), which is no character. Correct it"


class RawFields:
    """A raw row whose fields are asked for by type, with UserError for a wrong one; null and absent are the same."""

    fields: ClassVar[Mapping[str, str]]
    """name -> what it must be; all others are passed over"""

    def __init__(self, raw: Mapping[str, Any], place: str, names: Mapping[str, str]) -> None:
        self.place, self._raw, self._names = place, raw, names

    def wrong(self, field: str, problem: str | None = None) -> UserError:
        """What to say of a field."""
        value = short(json.dumps(self._get(field), ensure_ascii=False, default=str))
        name = self._names.get(field, field)
        return UserError(f"{self.place}:{name}: {problem or f'must be {self.fields[field]}, not {value}'}.")

    def _get(self, field: str) -> Any:
        return self._raw.get(self._names[field]) if field in self._names else None

    def _meant(self, field: str) -> str | None:
        """A key of the row that looks like the field's name misspelt."""
        return meant(self._names[field], frozenset(self._raw) - frozenset(self.fields))

    @property
    def keys(self) -> Set[str]:
        """What there is in the row."""
        return self._raw.keys()

    def text(self, field: str) -> str | None:
        """A text."""
        value = self._get(field)
        if not isinstance(value, str | None):
            raise self.wrong(field)
        if value and halved(value):
            raise self.wrong(field, HALVED)
        return value

    def id(self) -> str | None:
        """The row's own name."""
        value = self._get("id")
        if value is None:
            return None
        if value == "" or isinstance(value, bool) or not isinstance(value, int | str):
            raise self.wrong("id")
        return str(value) if isinstance(value, int) else self.text("id")

    def held_out(self) -> bool:
        """Whether its split says that no training reads it."""
        split = self.text("split") or "both"
        if split not in ("train", "test", "both"):
            raise self.wrong("split")
        return split == "test"


@cache
def meant(name: str, keys: frozenset[str]) -> str | None:
    """A key that looks like a name misspelt."""
    return did_you_mean(name, keys).partition("'")[2].rpartition("'")[0] or None


class RowSource(QuietSource):
    """Base of a source whose records are rows of the files of ``path`` and ``test``, and of ``validation`` where that is a path.

    Rows with ``"split": "test"`` and those of ``test`` are sampled from and evaluated, never trained on; without any, the first
    ``test_rows`` of ``path`` are. A row that is wrong is noted and passed over, ``max_bad_rows`` of them at most. Records have a
    ``name``, ``held_out`` and ``where``.
    """

    what: ClassVar[str]
    """what the files are of"""
    reader: ClassVar[type[RawFields]]

    path: Any
    test: Any
    validation: Any
    files: str | None
    revision: str | None
    columns: dict[str, Any]
    test_rows: int
    max_bad_rows: int

    def _record(self, row: Any, name: str, key: str) -> Any:
        """A raw row of a key's files as a record.

        Raises:
            UserError: a field is missing, mistyped or out of range.
        """
        raise NotImplementedError

    def __post_init__(self) -> None:
        self.rejected: dict[str, str] = {}
        self._late: set[str] = set()
        self._found: dict[str, list[Path]] = {}
        self._texts("path", "test")
        if not (self.path or self.test):
            raise ValueError(f"path: give a file of {self.what}, a folder of them or the name of a data set on the hub")
        known = self.reader.fields
        for name, column in self.columns.items():
            if name not in known:
                raise ValueError(f"columns: '{name}' is not a field of a row ({', '.join(known)}).{did_you_mean(name, known)}")
            if not (isinstance(column, str) or (column is None and name != next(iter(known)))):
                raise ValueError(f"columns: '{name}' must be given the name of a column, not {json.dumps(column)}")
        for name in ("max_bad_rows", "test_rows"):
            at_least(name, getattr(self, name), 0)
        share = isinstance(self.validation, float) and 0 < self.validation < 1
        if not (self.validation is None or share or isinstance(self.validation, str)):
            raise ValueError(f"validation: must be a share between 0 and 1 or a path, not {self.validation!r}")

    def _texts(self, *keys: str) -> None:
        """Make each of these fields, null, a text or a list of texts, a list."""
        for key in keys:
            value = getattr(self, key)
            texts = [value] if isinstance(value, str) else value
            if texts is not None and not (isinstance(texts, list) and all(isinstance(t, str) and t for t in texts)):
                raise ValueError(f"{key}: must be text or a list of texts in square brackets, not {value!r}")
            setattr(self, key, texts or [])

    def _trainable(self, key: str) -> Iterator[tuple[int, Any]]:
        """Rows that can be trained on, with their numbers."""
        return ((n, record) for n, record in self._read(key) if key == "validation" or not record.held_out)

    def _kept(self, records: Iterable[Any]) -> Iterator[Any]:
        """Those that nobody rejected after they were read; which ones are drawn does not depend on it."""
        return (record for record in records if record.where not in self._late)

    @cached_property
    def _held(self) -> frozenset[int]:
        """Rows whose loss is measured while training, where ``validation`` is a share."""
        if not isinstance(self.validation, float):
            return frozenset()
        numbers = [n for n, _ in self._trainable("path")]
        order = generator(0, "validation").permutation(len(numbers))
        return frozenset(numbers[i] for i in order[: max(1, round(self.validation * len(numbers)))])

    def validation_records(self) -> list[Any]:
        """The validation share of the training rows, or the rows of the ``validation`` path."""
        if isinstance(self.validation, str):
            return list(self._kept(record for _, record in self._trainable("validation")))
        return list(self._kept(record for n, record in self._trainable("path") if n in self._held)) if self.validation else []

    def testing(self) -> Iterator[Any]:
        """Rows to sample from and to evaluate on."""
        return self._kept(self._tested)

    @cached_property
    def _tested(self) -> list[Any]:
        held_out = [record for _, record in self._read("path", "test") if record.held_out]
        return held_out or [record for _, record in islice(self._read("path"), self.test_rows)]

    def scoring(self) -> Iterator[tuple[int, Any]]:
        """Every row of ``path`` and ``test``, with its number over all of them, those that were passed over counted."""
        return ((n, record) for n, record in self._read("path", "test") if record.where not in self._late)

    @property
    def lenient(self) -> bool:
        """Whether some rows may be wrong."""
        return self.max_bad_rows > 0

    def reject(self, record: Record, error: UserError) -> None:
        """Note a row that cannot be used; raise ``error`` if it is one more than ``max_bad_rows``."""
        place = record.where  # type: ignore[attr-defined]
        self._late.add(place)
        self._reject(place, error)

    def _reject(self, place: str, error: UserError) -> None:
        self.rejected[place] = str(error)
        if len(self.rejected) > self.max_bad_rows:
            if not self.max_bad_rows:
                raise error
            raise UserError(f"data.max_bad_rows is {self.max_bad_rows}, and more rows are wrong. The next one:\n{error}")

    def digest(self) -> str:
        """Digest of names and contents of all the files, whose rows are checked on the way: a run begins with it.

        Raises:
            UserError: there are none, one cannot be read, or rows are wrong.
        """
        return self._digest

    @cached_property
    def _digest(self) -> str:
        whole = hashlib.sha256()
        for key in self._keys:
            for file in self._files(key):
                whole.update(file.name.encode(errors="surrogateescape") + b"\0")
                with file.open("rb") as content:
                    while block := content.read(1 << 20):
                        whole.update(block)
        for key in self._keys:
            files = self._files(key)
            if files and not sum(1 for _ in self._read(key)):
                what = f"{files[0]}" + f" and {len(files) - 1} more" * (len(files) > 1)
                why = next((f"The first: {reason}" for reason in self.rejected.values()), f"Give another data.{key}.")
                raise UserError(f"data.{key}: there is no row that can be used in {what}. {why}")
        return whole.hexdigest()[:16]

    @property
    def _keys(self) -> Sequence[str]:
        """Keys of all the files that are read."""
        return OWN

    def _files(self, key: str) -> list[Path]:
        if key not in self._found:
            value = getattr(self, key)  # of validation, a text or no path at all
            roots = value if isinstance(value, list) else [value] if isinstance(value, str) else []
            below = (self.files, self.revision) if key in OWN else (None, None)
            found = (file for root in roots for file in find(root, f"data.{key}", *below))
            self._found[key] = list(dict.fromkeys(found))
        return self._found[key]

    def _names(self, key: str) -> Mapping[str, str]:
        """What each field is called in a key's files; those that they lack are not among them."""
        columns = self.columns if key in OWN else {}
        return {field: columns.get(field, field) for field in self.reader.fields if columns.get(field, field) is not None}

    def _read(self, *keys: str) -> Iterator[tuple[int, Any]]:
        """Rows of some keys' files with their numbers; what is wrong is noted and passed over, or raised."""
        count = 0
        for key in keys:
            seen: dict[str, str] = {}
            names = self._names(key)
            for label, number, (place, raw) in self._rows(key):
                count += 1
                try:
                    if isinstance(raw, UserError):
                        raise raw
                    row = self.reader(raw, place, names)
                    own = row.id() or str(number)
                    record = self._record(row, label + own, key)
                    if seen.setdefault(record.name, place) != place:
                        problem = f"{short(own)!r} is the name of {seen[record.name]}, too. Give each row an id of its own"
                        raise row.wrong("id", problem)
                except UserError as error:
                    self._reject(place, error)
                    continue
                yield count - 1, record

    def _rows(self, key: str) -> Iterator[tuple[str, int, RawRow]]:
        """Raw rows, or what is wrong with them, each with its file's label and its number in the file."""
        together = ("path", "test") if key in ("path", "test") else (key,)
        label = labels(file for each in together for file in self._files(each))
        for file in self._files(key):
            yield from ((label[file], number, row) for number, row in enumerate(raw_rows(file)))
