"""Which sentences are trained on, held out and evaluated: draws for each, and the records themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from alignlab.data.files import labels
from alignlab.data.labelling import Labelling, labels_of
from alignlab.errors import UserError
from alignlab.records import Labelled
from alignlab.seeds import uniform

if TYPE_CHECKING:
    from alignlab.data.labelled import LabelledText


@dataclass(frozen=True)
class Part:
    """The sentences of a block: arrays of one entry each."""

    texts: ClassVar[tuple[str, ...]] = ("text", "at", "origin")
    """columns that are read for chosen sentences alone"""

    file: pq.ParquetFile
    table: pa.Table
    """the other columns"""
    numbers: np.ndarray
    labels: dict[str, np.ndarray]
    """attribute -> number of the label"""
    strengths: dict[str, np.ndarray]
    """attribute -> what the label was made of, NaN if nothing"""
    bare: np.ndarray
    held: np.ndarray
    validated: np.ndarray
    order: np.ndarray
    """what ``sentences`` and ``test`` take the smallest of"""


@dataclass(frozen=True)
class Plan:
    """Counts of all sentences, and what tells those that are used."""

    trained: int
    held: int
    bare: int
    labels: dict[str, np.ndarray]
    """attribute -> sentences of each label"""
    ranges: dict[str, tuple[float, float]]
    """attribute -> least and largest score"""
    cut: float
    """largest order of a sentence that is trained on"""
    candidates: np.ndarray
    """[3, sentences] order, combination of labels and number of those that may be evaluated"""


class Splits:
    """The labelled sentences of a source."""

    def __init__(self, source: LabelledText, labelling: Labelling) -> None:
        self._source, self._labelling = source, labelling

    def _parts(self) -> Iterator[Part]:
        first = 0
        for path, counts in self._labelling.blocks:
            if counts["sentences"]:
                with pq.ParquetFile(path) as file:
                    yield self._part(file, first)
            first += counts["sentences"]

    def _part(self, file: pq.ParquetFile, first: int) -> Part:
        source = self._source
        table = file.read([name for name in file.schema_arrow.names if name not in Part.texts])
        found = {name: labels_of(name, attribute, table) for name, attribute in source.control.items()}
        place = table["number"].to_numpy(), table["sentence"].to_numpy()
        drawn = {what: uniform(source.seed, what, *place) for what in ("bare", "held_out", "validation", "order")}
        held = drawn["held_out"] < source.held_out
        return Part(
            file=file,
            table=table,
            numbers=np.arange(first, first + table.num_rows),
            labels={name: label for name, (label, _) in found.items()},
            strengths={name: strength for name, (_, strength) in found.items()},
            bare=drawn["bare"] < source.bare_share,
            held=held,
            validated=held & (drawn["validation"] < (source.validation or 0.0)),
            order=drawn["order"],
        )

    @cached_property
    def plan(self) -> Plan:
        """One pass over all that is known of the sentences but their texts; there must be some."""
        most, control = self._source.sentences, self._source.control
        trained = held = bare = waiting = 0
        counts = {name: np.zeros(len(attribute.labels), np.int64) for name, attribute in control.items()}
        ranges = dict.fromkeys(control, (math.inf, -math.inf))
        orders, candidates = list[np.ndarray](), list[np.ndarray]()
        for part in self._parts():
            trained, held, bare = trained + int((~part.held).sum()), held + int(part.held.sum()), bare + int(part.bare.sum())
            for name, (low, high) in ranges.items():
                counts[name] += np.bincount(part.labels[name], minlength=len(counts[name]))
                known = part.strengths[name][~np.isnan(part.strengths[name])]
                ranges[name] = float(known.min(initial=low)), float(known.max(initial=high))
            candidates.append(self._candidates(part))
            if most is not None:
                orders.append(part.order[~part.held])
                waiting += len(orders[-1])
                if waiting > 2 * most:
                    orders, waiting = [_smallest(orders, most)], most
        cut = math.inf if most is None or trained <= most else float(_smallest(orders, most).max())
        return Plan(min(trained, most or trained), held, bare, counts, ranges, cut, np.concatenate(candidates, 1))

    def _candidates(self, part: Part) -> np.ndarray:
        chosen = part.held & ~part.validated & ~part.bare
        if self._source.test.words is not None:
            (least, most), words = self._source.test.words, part.table["words"].to_numpy()
            chosen &= (least <= words) & (words <= most)
        sizes = tuple(len(attribute.labels) for attribute in self._source.control.values())
        combination = np.ravel_multi_index(tuple(part.labels.values()), sizes)
        return np.stack([part.order[chosen], combination[chosen], part.numbers[chosen]])

    @cached_property
    def tested(self) -> list[Labelled]:
        """What is evaluated, in the drawn order; where balanced, each combination of labels in turn.

        Raises:
            UserError: there are too few.
        """
        test, (order, combination, number) = self._source.test, self.plan.candidates
        if not test.count:
            return []
        groups: list[Sequence[str]] = [()]
        if test.balanced:
            groups = list(product(*(attribute.labels for attribute in self._source.control.values())))
        wanted, picked = test.count // len(groups), []
        for i, names in enumerate(groups):
            mine = combination == i if names else np.ones(len(order), bool)
            picked.append(number[mine][order[mine].argsort()][:wanted].astype(np.int64))
            if len(picked[-1]) < (wanted if names else 1):
                raise self._too_few(names, wanted, len(picked[-1]))
        numbers = np.stack(picked, 1).ravel()
        found = dict(self.records(lambda part: np.isin(part.numbers, numbers)))
        return [found[n] for n in numbers.tolist()]

    def _too_few(self, names: Sequence[str], wanted: int, found: int) -> UserError:
        words = self._source.test.words
        kind = f"{wanted} held-out sentences" + (f" of {words[0]} to {words[1]} words" if words else "")
        whose = f" that are {' '.join(names)}" if names else ""
        ways = "lower data.test.count, raise data.held_out or set data.test.balanced=false" if names else "raise data.held_out"
        alone = ""
        for name, label in zip(self._source.control, names, strict=False):
            attribute, counts = self._source.control[name], self.plan.labels[name]
            if attribute.threshold is not None and counts.max() == counts.sum():
                low, high = self.plan.ranges[name]
                alone = f"No sentence is {label}: " if not counts[attribute.labels.index(label)] else "Every sentence is so: "
                alone += f"scores go from {low:g} to {high:g}, and data.attributes.{name}.threshold is {attribute.threshold:g}.\n"
        return UserError(f"data.test.count: asks for {kind}{whose}, and there are {found}.\n{alone}One may {ways}.")

    def records(self, chosen: Callable[[Part], np.ndarray]) -> Iterator[tuple[int, Labelled]]:
        """The sentences of each part that ``chosen`` says [sentences], with their numbers, as a stream."""
        files, column, control = self._labelling.files, self._source.columns.text, self._source.control
        prefixes = [labels(files)[file] for file in files]
        for part in self._parts():
            at = np.flatnonzero(chosen(part))
            if not len(at):
                continue
            table = part.file.read(list(Part.texts)).take(at)
            texts = [table[name].to_pylist() for name in Part.texts]
            places = [part.table[name].to_numpy()[at].tolist() for name in ("file", "row", "sentence")]
            flags = [array[at].tolist() for array in (part.numbers, part.bare, part.held)]
            named = [[attribute.labels[i] for i in part.labels[name][at]] for name, attribute in control.items()]
            strengths = [array[at].tolist() for array in part.strengths.values()]
            rows = zip(*texts, *places, *flags, zip(*named, strict=True), zip(*strengths, strict=True), strict=True)
            for text, place, origin, file, row, sentence, number, bare, held, label, strength in rows:
                yield (
                    number,
                    Labelled(
                        name=f"{prefixes[file]}{row}-{sentence}",
                        text=text,
                        labels=dict(zip(control, label, strict=True)),
                        scores={name: value for name, value in zip(control, strength, strict=True) if value == value},
                        bare=bare,
                        dataset=origin,
                        held_out=held,
                        where=f"{files[file]}{place}:{column}[{sentence}]",
                    ),
                )


def _smallest(parts: Sequence[np.ndarray], count: int) -> np.ndarray:
    values = np.concatenate(parts)
    return np.partition(values, count - 1)[:count] if len(values) > count else values
