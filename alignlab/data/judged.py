"""Judged responses: alpaca-style rows in JSON, JSON lines or Parquet, on disk or on the hub."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from alignlab.config import at_least, finite
from alignlab.data.converters import CONVERTERS
from alignlab.data.files import find, labels, raw_rows, refuse_one_object
from alignlab.errors import UserError, did_you_mean
from alignlab.protocols import QuietSource
from alignlab.records import Fault, Judged, Prompt, Record, short
from alignlab.seeds import generator

FIELDS: Mapping[str, str] = {
    "instruction": "a text that is not empty",
    "input": "a text",
    "output": "a text",
    "judgment": "a text that is not empty, or null where the response is satisfactory",
    "score": "a number",
    "i_ans": "a text",
    "reference": "a text",
    "wrong": "a list of {start, end, right}, characters of the output",
    "id": "a text that is not empty, or a whole number",
    "task": "a text",
    "dataset": "a text",
    "split": '"train", "test" or "both"',
}
"""fields of a row; all others are passed over"""


@dataclass
class JudgedRows(QuietSource):
    """Rows with an ``instruction``, perhaps an ``input``, an ``output`` and a ``judgment`` of it, null where it is satisfactory.

    A ``score`` of at least ``score_threshold`` makes a row satisfactory whatever its judgment. Rows with ``"split": "test"`` and
    those of ``test`` are sampled from and evaluated, never trained on; without any, the first ``test_rows`` of ``path`` are.
    """

    yields: ClassVar[type] = Judged

    path: Any
    test: Any
    files: str | None
    revision: str | None
    convert: str | None
    columns: dict[str, Any]
    score_threshold: float
    scores: tuple[float, float]
    downsample: float | None
    test_rows: int
    max_bad_rows: int
    validation: Any
    seed: int

    def __post_init__(self) -> None:
        self.rejected: dict[str, str] = {}
        self._late: set[str] = set()
        self._found: dict[str, list[Path]] = {}
        self._fitting: set[Path] = set()
        for key in ("path", "test"):
            value = getattr(self, key)
            texts = [value] if isinstance(value, str) else value
            if texts is not None and not (isinstance(texts, list) and all(isinstance(t, str) and t for t in texts)):
                raise ValueError(f"{key}: must be text or a list of texts in square brackets, not {value!r}")
            setattr(self, key, texts or [])
        if not (self.path or self.test):
            raise ValueError("path: give a file of judged rows, a folder of them or the name of a data set on the hub")
        if self.convert is not None and self.convert not in CONVERTERS:
            raise ValueError(f"convert: must be one of {', '.join(CONVERTERS)} or null, not {self.convert!r}")
        for name, column in self.columns.items():
            if name not in FIELDS:
                raise ValueError(f"columns: '{name}' is not a field of a row ({', '.join(FIELDS)}).{did_you_mean(name, FIELDS)}")
            if not (isinstance(column, str) or (column is None and name != "instruction")):
                raise ValueError(f"columns: '{name}' must be given the name of a column, not {json.dumps(column)}")
        if len(self.scores) != 2 or not self.scores[0] < self.scores[1]:
            raise ValueError(f"scores: must be the least and the greatest score, not {list(self.scores)}")
        for name in ("downsample", "max_bad_rows", "test_rows"):
            finite(name, getattr(self, name))
            at_least(name, getattr(self, name), 0)
        share = isinstance(self.validation, float) and 0 < self.validation < 1
        if not (self.validation is None or share or isinstance(self.validation, str)):
            raise ValueError(f"validation: must be a share between 0 and 1 or a path, not {self.validation!r}")

    def training(self) -> Iterator[Judged]:
        """Rows to train on: all judged ones, and of the satisfactory ones ``downsample`` x as many as are judged.

        Which ones stay is drawn from the seed; they are int(downsample x judged) at most, as in the authors' program.
        """
        left_out = self._dropped | self._held
        return self._kept(record for n, record in self._trainable("path") if n not in left_out)

    def _trainable(self, key: str) -> Iterator[tuple[int, Judged]]:
        """Rows that need a response and have one, with their numbers."""
        for n, record in self._read(key):
            if record.output and not (record.held_out and key == "path"):
                yield n, record
            elif not record.output and not record.held_out:
                problem = 'missing or empty. Give a response, or "split": "test" where none is to be trained on.'
                self._reject(record.where, UserError(f"{record.where}:{self._names.get('output', 'output')}: {problem}"))

    def _kept(self, records: Iterable[Judged]) -> Iterator[Judged]:
        """Those that nobody rejected after they were read; which ones are drawn does not depend on it."""
        return (record for record in records if record.where not in self._late)

    @cached_property
    def _dropped(self) -> frozenset[int]:
        """Satisfactory rows that ``downsample`` leaves out."""
        if self.downsample is None:
            return frozenset()
        satisfactory = [(n, record.satisfactory) for n, record in self._trainable("path") if n not in self._held]
        good = [n for n, is_good in satisfactory if is_good]
        keep = int(self.downsample * (len(satisfactory) - len(good)))
        order = generator(self.seed, "downsample").permutation(len(good))
        return frozenset(good[i] for i in order[keep:])

    @cached_property
    def _held(self) -> frozenset[int]:
        """Rows whose loss is measured while training, where ``validation`` is a share."""
        if not isinstance(self.validation, float):
            return frozenset()
        numbers = [n for n, _ in self._trainable("path")]
        order = generator(0, "validation").permutation(len(numbers))
        return frozenset(numbers[i] for i in order[: max(1, round(self.validation * len(numbers)))])

    def validation_records(self) -> list[Judged]:
        """The validation share of the training rows, or the rows of the ``validation`` path."""
        if isinstance(self.validation, str):
            return list(self._kept(record for _, record in self._trainable("validation")))
        return list(self._kept(record for n, record in self._trainable("path") if n in self._held)) if self.validation else []

    def testing(self) -> Iterator[Judged]:
        """Rows to sample from and to evaluate on."""
        return self._kept(self._tested)

    @cached_property
    def _tested(self) -> list[Judged]:
        held_out = [record for _, record in self._read("path", "test") if record.held_out]
        return held_out or [record for _, record in islice(self._read("path"), self.test_rows)]

    def scoring(self) -> Iterator[tuple[int, Judged]]:
        """Every row of ``path`` and ``test``, with its number over all of them, those that were passed over counted."""
        return ((n, record) for n, record in self._read("path", "test") if record.where not in self._late)

    def prompts(self) -> Sequence[Prompt]:
        """A prompt for each test row."""
        return [Prompt(record.name, record.instruction, dataset=record.dataset) for record in self._tested]

    @property
    def lenient(self) -> bool:
        """Whether some rows may be wrong."""
        return self.max_bad_rows > 0

    def reject(self, record: Record, error: UserError) -> None:
        """Note a row that cannot be used; raise ``error`` if it is one more than ``max_bad_rows``."""
        assert isinstance(record, Judged)
        self._late.add(record.where)
        self._reject(record.where, error)

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
        for key in ("path", "test", "validation"):
            for file in self._files(key):
                whole.update(file.name.encode(errors="surrogateescape") + b"\0")
                with file.open("rb") as content:
                    while block := content.read(1 << 20):
                        whole.update(block)
        for key in ("path", "test", "validation"):
            files = self._files(key)
            if files and not sum(1 for _ in self._read(key)):
                what = f"{files[0]}" + f" and {len(files) - 1} more" * (len(files) > 1)
                why = next((f"The first: {reason}" for reason in self.rejected.values()), f"Give another data.{key}.")
                raise UserError(f"data.{key}: there is no row that can be used in {what}. {why}")
        return whole.hexdigest()[:16]

    def _files(self, key: str) -> list[Path]:
        if key not in self._found:
            value = getattr(self, key)  # of validation, a text or no path at all
            roots = value if isinstance(value, list) else [value] if isinstance(value, str) else []
            found = (file for root in roots for file in find(root, f"data.{key}", self.files, self.revision))
            self._found[key] = list(dict.fromkeys(found))
        return self._found[key]

    @cached_property
    def _labels(self) -> Mapping[Path, str]:
        return labels(self._files("validation")) | labels([*self._files("path"), *self._files("test")])

    @cached_property
    def _names(self) -> Mapping[str, str]:
        """What each field is called in the files; those that they lack are not among them."""
        columns = {} if self.convert else self.columns
        return {field: columns.get(field, field) for field in FIELDS if columns.get(field, field) is not None}

    def _read(self, *keys: str) -> Iterator[tuple[int, Judged]]:
        """Rows of some keys' files with their numbers; what is wrong is noted and passed over, or raised."""
        count = 0
        for key in keys:
            seen: dict[str, str] = {}
            for place, label, number, raw in self._rows(key):
                count += 1
                try:
                    if isinstance(raw, UserError):
                        raise raw
                    record = self._record(_Row(raw, place, self._names), label, number, held_out=key == "test")
                    if seen.setdefault(record.name, place) != place:
                        problem = f"{short(record.name.removeprefix(label))!r} is the name of {seen[record.name]}, too"
                        raise UserError(f"{place}:{self._names.get('id', 'id')}: {problem}. Give each row an id of its own.")
                except UserError as error:
                    self._reject(place, error)
                    continue
                yield count - 1, record

    def _rows(self, key: str) -> Iterator[tuple[str, str, int, Mapping[str, Any] | UserError]]:
        """Place, label of the file, number in it and raw row, or what is wrong with it."""
        if self.convert is not None:
            converted = CONVERTERS[self.convert](self._files(key), raw_rows)
            rows = ((place, row) for place, row in converted if not isinstance(row, str))  # a text says why one is left out
            yield from ((place, "", number, row) for number, (place, row) in enumerate(rows))
            return
        for file in self._files(key):
            self._check_columns(file, tested=key == "test")
            label = self._labels[file]
            yield from ((place, label, number, row) for number, (place, row) in enumerate(raw_rows(file)))

    def _check_columns(self, file: Path, *, tested: bool) -> None:
        """Refuse a file that has other columns; rows that are not trained on need neither response nor judgment."""
        if file in self._fitting:
            return
        fields = [field for field in ("instruction", "output", "judgment") if field in self._names]
        fields += [field for field, name in self._names.items() if name != field and field not in fields]
        known, trained = set[str](), False
        for _, raw in raw_rows(file):
            if not isinstance(raw, UserError):
                known |= set(raw)
                trained |= not (tested or raw.get(self._names.get("split", "")) == "test")
            if known.issuperset(self._names[field] for field in fields):
                break
        lacking = [field for field in fields[: None if trained else 1] if self._names[field] not in known]
        if known and lacking:
            raise self._other_columns(file, lacking[0], frozenset(known))
        self._fitting.add(file)

    def _other_columns(self, file: Path, field: str, known: frozenset[str]) -> UserError:
        if field == "instruction" and file.suffix == ".json":
            refuse_one_object(file)
        name = self._names[field]
        more = {
            "output": ", or data.test=FILE for rows that are only sampled from",
            "judgment": ", or null if all are satisfactory",
        }
        return UserError(
            f"{file}: no row has '{name}'; there are {', '.join(sorted(known))}.\n"
            f"Give data.columns.{field}={_meant(name, known) or 'NAME'}, the column that holds it{more.get(field, '')}."
        )

    def _record(self, row: _Row, label: str, number: int, *, held_out: bool) -> Judged:
        """A raw row as a record.

        Raises:
            UserError: a field is missing, mistyped or out of range.
        """
        instruction, more = row.instruction(), row.text("input")
        score = row.number("score", self.scores)
        good = score is not None and score >= self.score_threshold
        judgment = row.judgment(ignored=good)
        output = row.text("output") or ""
        split = row.text("split") or "both"
        if split not in ("train", "test", "both"):
            raise row.wrong("split")
        return Judged(
            name=label + (row.id() or str(number)),
            instruction=f"{instruction}\n{more}" if more else instruction,
            output=output,
            judgment=None if good else judgment,
            score=score,
            refined=row.text("i_ans") or None,
            reference=row.text("reference"),
            faults=row.faults(output),
            task=row.text("task") or "",
            dataset=row.text("dataset") or "",
            held_out=held_out or split == "test",
            where=row.place,
        )


_HALF = re.compile("[\ud800-\udfff]")


@cache
def _meant(name: str, keys: frozenset[str]) -> str | None:
    """A key that looks like a field's name misspelt."""
    return did_you_mean(name, keys - set(FIELDS)).partition("'")[2].rpartition("'")[0] or None


class _Row:
    """A raw row whose fields are asked for by type, with UserError for a wrong one; null and absent are the same."""

    def __init__(self, raw: Mapping[str, Any], place: str, names: Mapping[str, str]) -> None:
        self.place, self._raw, self._names = place, raw, names

    def wrong(self, field: str, problem: str | None = None) -> UserError:
        """What to say of a field."""
        value = short(json.dumps(self._get(field), ensure_ascii=False, default=str))
        return UserError(f"{self.place}:{self._names[field]}: {problem or f'must be {FIELDS[field]}, not {value}'}.")

    def _get(self, field: str) -> Any:
        return self._raw.get(self._names[field]) if field in self._names else None

    def text(self, field: str) -> str | None:
        """A text."""
        value = self._get(field)
        if not isinstance(value, str | None):
            raise self.wrong(field)
        if value and not value.isascii() and _HALF.search(value):
            raise self.wrong(field, "holds half of a surrogate pair (\\ud800 to \\udfff), which is no character. Correct it")
        return value

    def instruction(self) -> str:
        """The instruction, which no row may lack."""
        value, name = self.text("instruction"), self._names["instruction"]
        if value is None:
            key = _meant(name, frozenset(self._raw))
            raise self.wrong("instruction", f"missing; must be {FIELDS['instruction']}" + f" (is '{key}' meant?)" * bool(key))
        if not value.strip():
            raise self.wrong("instruction")
        return value

    def judgment(self, *, ignored: bool) -> str | None:
        """The judgment; a misspelt name must not turn a judged row into a satisfactory one."""
        value = self.text("judgment")
        if value is not None and not value.strip() and not ignored:
            raise self.wrong("judgment")
        name = self._names.get("judgment")
        if value is None and name is not None and name not in self._raw and (key := _meant(name, frozenset(self._raw))):
            raise UserError(f"{self.place}:{key}: is '{name}' meant? Rename it; a satisfactory response has \"{name}\": null.")
        return value

    def id(self) -> str | None:
        """The row's own name."""
        value = self._get("id")
        if value is None:
            return None
        if value == "" or isinstance(value, bool) or not isinstance(value, int | str):
            raise self.wrong("id")
        return str(value) if isinstance(value, int) else self.text("id")

    def number(self, field: str, limits: tuple[float, float]) -> float | None:
        """A finite number within limits."""
        value = self._get(field)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(field)
        if not limits[0] <= value <= limits[1] or value in (math.inf, -math.inf):
            raise self.wrong(field, f"{short(str(value))} is out of range; data.scores says {limits[0]:g} to {limits[1]:g}")
        return float(value)

    def faults(self, output: str) -> tuple[Fault, ...] | None:
        """What is known to be wrong in the output."""
        value = self._get("wrong")
        if value is None:
            return None
        faults = []
        for item in value if isinstance(value, list) else [None]:
            if not isinstance(item, Mapping) or not {"start", "end"} <= set(item) <= {"start", "end", "right"}:
                raise self.wrong("wrong")
            start, end, right = item["start"], item["end"], item.get("right")
            if not (type(start) is type(end) is int and isinstance(right, str | None)):
                raise self.wrong("wrong")
            if not 0 <= start < end <= len(output):
                raise self.wrong("wrong", f"{start} to {end} are no characters of the output, which has {len(output)}")
            if right is not None and _HALF.search(right):
                raise self.wrong("wrong", "its 'right' holds half of a surrogate pair (\\ud800 to \\udfff). Correct it")
            faults.append(Fault(start, end, right))
        return tuple(faults)
