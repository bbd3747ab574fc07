"""Judged responses: alpaca-style rows in JSON, JSON lines or Parquet, on disk or on the hub."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from alignlab.config import at_least, finite
from alignlab.data.converters import CONVERTERS
from alignlab.data.files import RawRow, raw_rows, refuse_one_object
from alignlab.data.row_source import RawFields, RowSource, halved, meant
from alignlab.errors import UserError
from alignlab.records import Fault, Judged, Prompt, short
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
"""fields of a row"""


class _Row(RawFields):
    fields = FIELDS

    def instruction(self) -> str:
        """The instruction, which no row may lack."""
        value = self.text("instruction")
        if value is None:
            key = self._meant("instruction")
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
        if value is None and name is not None and name not in self._raw and (key := self._meant("judgment")):
            raise UserError(f"{self.place}:{key}: is '{name}' meant? Rename it; a satisfactory response has \"{name}\": null.")
        return value

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
            if right is not None and halved(right):
                raise self.wrong("wrong", "its 'right' holds half of a surrogate pair (\\ud800 to \\udfff). Correct it")
            faults.append(Fault(start, end, right))
        return tuple(faults)


@dataclass
class JudgedRows(RowSource):
    """Rows with an ``instruction``, perhaps an ``input``, an ``output`` and a ``judgment`` of it, null where it is satisfactory.

    A ``score`` of at least ``score_threshold`` makes a row satisfactory whatever its judgment.
    """

    yields: ClassVar[type] = Judged
    what: ClassVar[str] = "judged rows"
    reader: ClassVar[type[RawFields]] = _Row

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
        super().__post_init__()
        self._fitting: set[Path] = set()
        if self.convert is not None and self.convert not in CONVERTERS:
            raise ValueError(f"convert: must be one of {', '.join(CONVERTERS)} or null, not {self.convert!r}")
        if len(self.scores) != 2 or not self.scores[0] < self.scores[1]:
            raise ValueError(f"scores: must be the least and the greatest score, not {list(self.scores)}")
        finite("downsample", self.downsample)
        at_least("downsample", self.downsample, 0)

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
                self._reject(record.where, UserError(f"{record.where}:{self._names(key).get('output', 'output')}: {problem}"))

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

    def prompts(self) -> Sequence[Prompt]:
        """A prompt for each test row."""
        return [Prompt(record.name, record.instruction, dataset=record.dataset) for record in self._tested]

    def _names(self, key: str) -> Mapping[str, str]:
        return super()._names(key) if self.convert is None else {field: field for field in FIELDS}

    def _rows(self, key: str) -> Iterator[tuple[str, int, RawRow]]:
        if self.convert is not None:
            converted = CONVERTERS[self.convert](self._files(key), raw_rows)
            rows = ((place, row) for place, row in converted if not isinstance(row, str))  # a text says why one is left out
            yield from (("", number, row) for number, row in enumerate(rows))
            return
        for file in self._files(key):
            self._check_columns(file, key)
        yield from super()._rows(key)

    def _check_columns(self, file: Path, key: str) -> None:
        """Refuse a file that has other columns; rows that are not trained on need neither response nor judgment."""
        if file in self._fitting:
            return
        names = self._names(key)
        fields = [field for field in ("instruction", "output", "judgment") if field in names]
        fields += [field for field, name in names.items() if name != field and field not in fields]
        known, trained = set[str](), False
        for _, raw in raw_rows(file):
            if not isinstance(raw, UserError):
                known |= set(raw)
                trained |= not (key == "test" or raw.get(names.get("split", "")) == "test")
            if known.issuperset(names[field] for field in fields):
                break
        lacking = [field for field in fields[: None if trained else 1] if names[field] not in known]
        if known and lacking:
            raise _other_columns(file, lacking[0], names[lacking[0]], frozenset(known))
        self._fitting.add(file)

    def _record(self, row: _Row, name: str, key: str) -> Judged:
        instruction, more = row.instruction(), row.text("input")
        score = row.number("score", self.scores)
        good = score is not None and score >= self.score_threshold
        judgment = row.judgment(ignored=good)
        output = row.text("output") or ""
        return Judged(
            name=name,
            instruction=f"{instruction}\n{more}" if more else instruction,
            output=output,
            judgment=None if good else judgment,
            score=score,
            refined=row.text("i_ans") or None,
            reference=row.text("reference"),
            faults=row.faults(output),
            task=row.text("task") or "",
            dataset=row.text("dataset") or "",
            held_out=row.held_out() or key == "test",
            where=row.place,
        )


def _other_columns(file: Path, field: str, name: str, known: frozenset[str]) -> UserError:
    """What to say of a file that lacks a column."""
    if field == "instruction" and file.suffix == ".json":
        refuse_one_object(file)
    more = {
        "output": ", or data.test=FILE for rows that are only sampled from",
        "judgment": ", or null if all are satisfactory",
    }
    return UserError(
        f"{file}: no row has '{name}'; there are {', '.join(sorted(known))}.\n"
        f"Give data.columns.{field}={meant(name, known - set(FIELDS)) or 'NAME'}, the column that holds it{more.get(field, '')}."
    )
