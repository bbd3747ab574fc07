"""Judged responses: alpaca-style rows in JSON, JSON lines or Parquet, on disk or on the hub."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from alignlab.config import at_least
from alignlab.data.converters import CONVERTERS
from alignlab.data.files import find, raw_rows
from alignlab.errors import UserError, did_you_mean
from alignlab.records import Fault, Judged, Prompt, Record
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
    "id": "a text or a whole number",
    "task": "a text",
    "dataset": "a text",
    "split": '"train", "test" or "both"',
}
"""fields of a row; all others are passed over"""


@dataclass
class JudgedRows:
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
        for key in ("path", "test"):
            value = getattr(self, key)
            texts = [value] if isinstance(value, str) else value
            if texts is not None and not (isinstance(texts, list) and all(isinstance(t, str) and t for t in texts)):
                raise ValueError(f"{key}: must be text or a list of texts in square brackets, not {value!r}")
            setattr(self, key, texts or [])
        if not self.path:
            raise ValueError("path: give a file of judged rows, a folder of them or the name of a data set on the hub")
        if self.convert is not None and self.convert not in CONVERTERS:
            raise ValueError(f"convert: must be one of {', '.join(CONVERTERS)} or null, not {self.convert!r}")
        for name in self.columns:
            if name not in FIELDS:
                raise ValueError(f"columns: '{name}' is not a field of a row ({', '.join(FIELDS)}).{did_you_mean(name, FIELDS)}")
        if len(self.scores) != 2 or not self.scores[0] < self.scores[1]:
            raise ValueError(f"scores: must be the least and the greatest score, not {list(self.scores)}")
        at_least("downsample", self.downsample, 0)
        at_least("max_bad_rows", self.max_bad_rows, 0)
        at_least("test_rows", self.test_rows, 0)
        share = isinstance(self.validation, float) and 0 < self.validation < 1
        if not (self.validation is None or share or isinstance(self.validation, str)):
            raise ValueError(f"validation: must be a share between 0 and 1 or a path, not {self.validation!r}")

    def training(self) -> Iterator[Judged]:
        """Rows to train on: all judged ones, and of the satisfactory ones ``downsample`` x as many as are judged.

        Which ones stay is drawn from the seed; they are int(downsample x judged) at most, as in the authors' program.
        """
        dropped = self._dropped
        held = self._held
        yield from (record for n, record in self._trainable() if n not in dropped and n not in held)

    def _trainable(self) -> Iterator[tuple[int, Judged]]:
        return ((n, record) for n, record in self._read("path") if not record.held_out and self._usable(record))

    def _usable(self, record: Judged) -> bool:
        """Whether a row can be trained on; one without a response cannot."""
        if not record.output:
            self.reject(record, UserError(f"{record.where}:output: missing or empty, and the row is to be trained on."))
        return bool(record.output)

    @cached_property
    def _dropped(self) -> frozenset[int]:
        """Satisfactory rows that ``downsample`` leaves out."""
        if self.downsample is None:
            return frozenset()
        satisfactory = [(n, record.satisfactory) for n, record in self._trainable() if n not in self._held]
        good = [n for n, is_good in satisfactory if is_good]
        keep = int(self.downsample * (len(satisfactory) - len(good)))
        order = generator(self.seed, "downsample").permutation(len(good))
        return frozenset(good[i] for i in order[keep:])

    @cached_property
    def _held(self) -> frozenset[int]:
        """Rows whose loss is measured while training, where ``validation`` is a share."""
        if not isinstance(self.validation, float):
            return frozenset()
        numbers = [n for n, _ in self._trainable()]
        order = generator(0, "validation").permutation(len(numbers))
        return frozenset(numbers[i] for i in order[: max(1, round(self.validation * len(numbers)))])

    def validation_records(self) -> list[Judged]:
        """The validation share of the training rows, or the rows of the ``validation`` path."""
        if self.validation is None:
            return []
        if isinstance(self.validation, str):
            return [record for _, record in self._read("validation") if self._usable(record)]
        return [record for n, record in self._trainable() if n in self._held]

    def testing(self) -> Iterator[Judged]:
        """Rows to sample from and to evaluate on."""
        return iter(self._tested)

    @cached_property
    def _tested(self) -> list[Judged]:
        held_out = [record for _, record in self._read("path") if record.held_out]
        held_out += [record for _, record in self._read("test")]
        if held_out:
            return held_out
        first = (record for _, record in self._read("path"))
        return [record for record, _ in zip(first, range(self.test_rows), strict=False)]

    def scoring(self) -> Iterator[tuple[int, Judged]]:
        """Every row of ``path`` and ``test``, with its number over all of them, those that were passed over counted."""
        yield from self._read("path", "test")

    def prompts(self) -> Sequence[Prompt]:
        """A prompt for each test row."""
        return [Prompt(record.name, record.instruction, dataset=record.dataset) for record in self._tested]

    @property
    def lenient(self) -> bool:
        """Whether some rows may be wrong."""
        return self.max_bad_rows > 0

    def reject(self, record: Record, error: UserError) -> None:
        """Note a row that cannot be used.

        Raises:
            UserError: it is one more than ``max_bad_rows``.
        """
        assert isinstance(record, Judged)
        self._reject(record.where, error)

    def _reject(self, place: str, error: UserError) -> None:
        self.rejected[place] = str(error)
        if len(self.rejected) > self.max_bad_rows:
            if not self.max_bad_rows:
                raise error
            raise UserError(f"data.max_bad_rows: {self.max_bad_rows}, and there are more; this is one too many:\n{error}")

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
        for _ in self._read("path", "test", "validation"):
            pass
        return whole.hexdigest()[:16]

    def _files(self, key: str) -> list[Path]:
        roots = getattr(self, key)
        if key == "validation":
            roots = [roots] if isinstance(roots, str) else []
        return [file for root in roots for file in find(root, f"data.{key}", self.files, self.revision)]

    def _read(self, *keys: str) -> Iterator[tuple[int, Judged]]:
        """Rows of some keys' files with their numbers; what is wrong is raised, or passed over and noted."""
        count = 0
        for key in keys:
            files = self._files(key)
            several = len(files) > 1 and self.convert is None
            for place, raw in self._rows(files):
                number, count = count, count + 1
                if isinstance(raw, UserError):
                    self._reject(place, raw)
                    continue
                try:
                    record = self._record(raw, place, number, several, held_out=key == "test")
                except UserError as error:
                    self._reject(place, error)
                    continue
                if place not in self.rejected:
                    yield number, record

    def _rows(self, files: Sequence[Path]) -> Iterator[tuple[str, Mapping[str, Any] | UserError]]:
        """Raw rows under their canonical names, or what is wrong with them, each with its place."""
        if self.convert is not None:
            converted = CONVERTERS[self.convert](files, raw_rows)
            yield from ((place, row) for place, row in converted if not isinstance(row, str))  # texts say why a row is left out
            return
        for file in files:
            seen: dict[str, str] = {}
            known: set[str] = set()
            for place, raw in raw_rows(file):
                if isinstance(raw, UserError):
                    yield place, raw
                    continue
                known |= set(raw)
                row = self._renamed(raw)
                near = "" if "judgment" in row else did_you_mean(self._name("judgment") or "", set(raw) - set(FIELDS))
                if near:  # a misspelt name must not turn a judged row into a satisfactory one
                    yield place, UserError(f"{place}: has no '{self._name('judgment')}'.{near}")
                    continue
                name = row.get("id")
                if name is not None and str(name) in seen:
                    yield place, UserError(f"{place}:{self._name('id')}: {name!r} was given before, at {seen[str(name)]}.")
                    continue
                seen[str(name)] = place
                yield place, row
            if known and (lacking := [f for f in ("instruction", "judgment") if (c := self._name(f)) and c not in known]):
                if lacking == ["judgment"] and file in self._instructions:
                    continue
                raise self._other_columns(file, lacking[0], known)

    @cached_property
    def _instructions(self) -> frozenset[Path]:
        """Files that are only sampled from, and so need no judgments."""
        return frozenset(self._files("test"))

    def _name(self, name: str) -> str | None:
        """What a field is called in the files."""
        found = self.columns.get(name, name)
        return None if found is None else str(found)

    def _renamed(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        names = {f: self._name(f) for f in FIELDS}
        return {f: raw[name] for f, name in names.items() if name is not None and name in raw}

    def _other_columns(self, file: Path, lacking: str, known: Iterable[str]) -> UserError:
        listed = sorted(known)
        hint = did_you_mean(self._name(lacking) or lacking, listed)
        how = f"Give data.columns.{lacking}=NAME, the column that holds it"
        how += ", or null if every response is satisfactory." if lacking == "judgment" else "."
        return UserError(f"{file}: no row has '{self._name(lacking)}'; there are {', '.join(listed)}.{hint}\n{how}")

    def _record(self, raw: Mapping[str, Any], place: str, number: int, several: bool, *, held_out: bool) -> Judged:
        """A raw row as a record.

        Raises:
            UserError: a field is missing, mistyped or out of range.
        """
        row = _Row(raw, place, {f: self._name(f) or f for f in FIELDS})
        instruction, more = row.text("instruction", needed=True), row.text("input")
        judgment, score = row.text("judgment", empty=False), row.number("score", self.scores)
        output = row.text("output") or ""
        if score is not None and score >= self.score_threshold:
            judgment = None
        split = row.text("split") or "both"
        if split not in ("train", "test", "both"):
            raise row.wrong("split")
        stem = place.rpartition(":")[0].rpartition("/")[2].rpartition(".")[0]
        name = str(raw["id"]) if raw.get("id") is not None else str(number)
        if isinstance(raw.get("id"), list | dict | float):
            raise row.wrong("id")
        return Judged(
            name=f"{stem}-{name}" if several else name,
            instruction=f"{instruction}\n{more}" if more else instruction or "",
            output=output,
            judgment=judgment,
            score=score,
            refined=row.text("i_ans") or None,
            reference=row.text("reference"),
            faults=row.faults(output),
            task=row.text("task") or "",
            dataset=row.text("dataset") or "",
            held_out=held_out or split == "test",
            where=place,
        )


class _Row:
    """A raw row whose fields are asked for by type."""

    def __init__(self, raw: Mapping[str, Any], place: str, names: Mapping[str, str]) -> None:
        self._raw, self._place, self._names = raw, place, names

    def wrong(self, name: str, problem: str | None = None) -> UserError:
        """What to say of a field."""
        return UserError(f"{self._place}:{self._names[name]}: {problem or f'must be {FIELDS[name]}'}.")

    def text(self, name: str, *, needed: bool = False, empty: bool = True) -> str | None:
        """A text; null and absent are the same, unless it is needed."""
        value = self._raw.get(name)
        if value is None and needed:
            raise self.wrong(name, f"missing: {FIELDS[name]}")
        if value is None:
            return None
        if not isinstance(value, str) or (not value.strip() and (needed or not empty)):
            raise self.wrong(name)
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise self.wrong(name, "holds half of a surrogate pair (\\ud800 to \\udfff), which is no character")
        return value

    def number(self, name: str, limits: tuple[float, float]) -> float | None:
        """A finite number within limits."""
        value = self._raw.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name)
        if not (math.isfinite(value) and limits[0] <= value <= limits[1]):
            raise self.wrong(name, f"{value} is out of range; data.scores says {limits[0]:g} to {limits[1]:g}")
        return float(value)

    def faults(self, output: str) -> tuple[Fault, ...] | None:
        """What is known to be wrong in the output."""
        value = self._raw.get("wrong")
        if value is None:
            return None
        faults = []
        for item in value if isinstance(value, list) else [None]:
            if not isinstance(item, Mapping) or not {"start", "end"} <= set(item) <= {"start", "end", "right"}:
                raise self.wrong("wrong")
            start, end, right = item["start"], item["end"], item.get("right")
            if isinstance(start, bool) or not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(output)):
                raise self.wrong("wrong", f"{start} to {end} are no characters of the output, which has {len(output)}")
            if not (right is None or isinstance(right, str)):
                raise self.wrong("wrong")
            faults.append(Fault(start, end, right))
        return tuple(faults)
