"""Labelled sentences, out of plain text: the data of control tokens."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, ClassVar

import numpy as np

from alignlab.config import at_least
from alignlab.control import Attribute, read_attributes
from alignlab.data.labelling import Labelling, too_many
from alignlab.data.splits import Part, Splits
from alignlab.errors import UserError, did_you_mean
from alignlab.protocols import QuietSource
from alignlab.records import Labelled, Prompt, Record


@dataclass
class Columns:
    """What the columns of a row are called; ``meta.origin`` lies within ``meta``."""

    text: str
    origin: str | None
    labels: dict[str, str | None]


@dataclass
class Picked:
    """Which held-out sentences are sampled from and evaluated."""

    count: int
    balanced: bool
    words: tuple[int, int] | None

    def __post_init__(self) -> None:
        at_least("count", self.count, 0)
        if self.words is not None and not (len(self.words) == 2 and 1 <= self.words[0] <= self.words[1]):
            raise ValueError(f"words: must be the fewest and the most words, not {list(self.words)}")


@dataclass
class LabelledText(QuietSource):
    """Sentences of text files, each with a label of every attribute.

    Documents are drawn (``share``), and those of some origins left out. A row holds sentences, or a text that ``splitter`` cuts
    into them. What ``clean`` matches is deleted, and what has fewer than ``min_words`` words left out; a sentence gets its labels
    from columns or from the attributes' labellers. This follows ``scripts/dataset_builder.py`` of the authors
    (SHarrison00/finetuning_llms_with_conditioning), who count words with ``label_suffix`` behind them, too. One departure: whether
    a document is drawn, and whether a sentence is bare, held out, evaluated or left out by ``sentences``, is a function of the seed
    and of its number alone, where the authors shuffle. So shares are met on average.

    Held-out sentences are never trained on. Of a share of them (``validation``) the loss is measured while training. Of the others,
    bare ones apart, ``test`` says which are evaluated: drawn ones, and where ``balanced`` each combination of labels in turn, so
    that the first n are balanced, too.
    """

    yields: ClassVar[type] = Labelled

    path: Any
    files: str | None
    revision: str | None
    columns: Columns
    leave_out: list[str]
    share: float | None
    clean: str | None
    splitter: str | None
    label_suffix: str
    attributes: dict[str, Any]
    bare_share: float
    min_words: int
    sentences: int | None
    held_out: float
    validation: float | None
    test: Picked
    max_bad_rows: int
    cache: str | None
    seed: int

    def __post_init__(self) -> None:
        self.rejected: dict[str, str] = {}
        self._late: set[str] = set()
        paths = [self.path] if isinstance(self.path, str) else self.path
        if not paths:
            raise ValueError("path: give a file of text, a folder of them or the name of a data set on the hub")
        if not (isinstance(paths, list) and all(isinstance(path, str) and path for path in paths)):
            raise ValueError(f"path: must be text or a list of texts in square brackets, not {self.path!r}")
        self.path = paths
        self.control: Mapping[str, Attribute] = read_attributes(self.attributes)
        """the attributes, read"""
        self.ready = {name: column for name, column in self.columns.labels.items() if column is not None}
        """attribute -> column, of those whose labels or scores stand in the rows"""
        for name in self.ready:
            if name not in self.control:
                near = did_you_mean(name, self.control)
                raise ValueError(f"columns.labels: '{name}' is not an attribute ({', '.join(self.control)}).{near}")
        if self.leave_out and self.columns.origin is None:
            raise ValueError("leave_out: names origins, and columns.origin is null; name the column that holds them")
        self._check_numbers()

    def _check_numbers(self) -> None:
        for name in ("bare_share", "held_out"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: must be a share from 0 to less than 1, not {getattr(self, name)}")
        for name in ("share", "validation"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ValueError(f"{name}: must be a share between 0 and 1, or null, not {value}")
        for name, least in {"min_words": 1, "sentences": 1, "max_bad_rows": 0}.items():
            at_least(name, getattr(self, name), least)
        combinations = prod(len(attribute.labels) for attribute in self.control.values())
        longest = self.test.words[1] if self.test.words else None
        if self.test.balanced and 0 < self.test.count < combinations:
            raise ValueError(f"test: a balanced count must be {combinations} at least, one for each combination of labels")
        if longest is not None and longest < self.min_words:
            raise ValueError(f"test: no sentence has at most {longest} words, as min_words is {self.min_words}")
        try:
            re.compile(self.clean or "")
        except re.error as error:
            raise ValueError(f"clean: is no regular expression: {error}") from None

    def training(self) -> Iterator[Labelled]:
        """Sentences to train on: those that are not held out, or ``sentences`` of them; a larger number has the same ones and more.

        Raises:
            UserError: none is left.
        """
        plan = self._splits.plan
        if not plan.trained:
            raise UserError(f"data.held_out: all {plan.held} sentences are held out, and none is left to train on. Lower it.")
        return self._kept(lambda part: ~part.held & (part.order <= plan.cut))

    def validation_records(self) -> list[Labelled]:
        """The held-out sentences whose loss is measured while training."""
        return list(self._kept(lambda part: part.validated)) if self.validation else []

    def testing(self) -> Iterator[Labelled]:
        """The held-out sentences to sample from and to evaluate on.

        Raises:
            UserError: there are too few.
        """
        return (record for record in self._splits.tested if record.name not in self._late)

    def scoring(self) -> Iterator[tuple[int, Labelled]]:
        """Every sentence that has its labels, with its number among them."""
        found = self._splits.records(lambda part: np.ones(len(part.held), bool))
        return ((number, record) for number, record in found if record.name not in self._late)

    def prompts(self) -> Sequence[Prompt]:
        """A prompt for each sentence that is evaluated: the whole of it."""
        return [Prompt(record.name, record.text, dataset=record.dataset) for record in self.testing()]

    @property
    def lenient(self) -> bool:
        """Whether some rows may be wrong."""
        return self.max_bad_rows > 0

    def reject(self, record: Record, error: UserError) -> None:
        """Note a sentence that cannot be used; raise ``error`` if it is one more than ``max_bad_rows``."""
        assert isinstance(record, Labelled)
        self._late.add(record.name)
        self.rejected[record.where] = str(error)
        if len(self.rejected) > self.max_bad_rows:
            raise too_many(self.max_bad_rows, str(error))

    def digest(self) -> str:
        """Digest of the files, of what the labellers read and of how sentences are made of them.

        Raises:
            MissingError: a labeller or the splitter lacks something; this is asked before anything is read.
            UserError: there are no files.
        """
        return self._labelling.digest

    def notes(self) -> list[str]:
        """What became of rows and sentences, for a person; warnings stand last."""
        plan, told = self._splits.plan, self._counted()
        told.append(f"{plan.trained} sentences to train on, {plan.held} held out; {plan.bare} of all bare")
        for name, attribute in self.control.items():
            counts = zip(attribute.labels, plan.labels[name] / plan.labels[name].sum(), strict=True)
            told.append(f"{attribute.title}: {', '.join(f'{label} {share:.1%}'.replace('%', ' %') for label, share in counts)}")
        return told + [f"warning: {warning}" for warning in self._warnings()]

    def _kept(self, chosen: Callable[[Part], np.ndarray]) -> Iterator[Labelled]:
        """Chosen sentences, without those that were rejected."""
        return (record for _, record in self._splits.records(chosen) if record.name not in self._late)

    @cached_property
    def _labelling(self) -> Labelling:
        return Labelling(self)

    @cached_property
    def _survey(self) -> Mapping[str, Any]:
        survey = self._labelling.survey
        self.rejected |= survey["rejected"]
        return survey

    @cached_property
    def _splits(self) -> Splits:
        """The sentences, once everything is read and scored.

        Raises:
            UserError: there are none; or see :class:`Labelling`.
        """
        survey = self._survey
        if not any(counts["sentences"] for _, counts in self._labelling.blocks):
            why = next((f"\nThe first wrong row: {reason}" for reason in survey["rejected"].values()), "")
            raise UserError(f"data.path: no sentence is left: {'; '.join(self._counted())}. Lower data.min_words, say.{why}")
        return Splits(self, self._labelling)

    def _counted(self) -> list[str]:
        """What became of the rows and of their sentences."""
        survey, counts = self._survey, Counter[str]()
        for _, block in self._labelling.blocks:
            counts.update(block)
        gone = [f"{survey['not_drawn']} not drawn"] if self.share is not None else []
        gone += [f"{count} of {origin}" for origin, count in survey["left_out"].items()]
        gone += [f"{len(survey['rejected'])} wrong"] if survey["rejected"] else []
        rows = f"{survey['documents']} of {survey['rows']} documents" + (f" (left out: {', '.join(gone)})" if gone else "")
        lacking = f", {counts['unlabelled']} without a label" if counts["unlabelled"] else ""
        return [rows, f"{counts['sentences']} sentences (left out: {counts['short']} under {self.min_words} words{lacking})"]

    def _warnings(self) -> Iterator[str]:
        survey, plan, test = self._survey, self._splits.plan, self.test
        absent = [origin for origin in self.leave_out if origin not in survey["left_out"]]
        if absent:
            near = did_you_mean(absent[0], survey["origins"])
            yield f"data.leave_out: no document is of {', '.join(absent)} (there are {', '.join(survey['origins'])}).{near}"
        if self.sentences is not None and plan.trained < self.sentences:
            yield f"data.sentences is {self.sentences}, and only {plan.trained} can be trained on"
        if not test.balanced and len(self._splits.tested) < test.count:
            yield f"data.test.count is {test.count}, and only {len(self._splits.tested)} can be evaluated; raise data.held_out"
        for name, attribute in self.control.items():
            counts, (low, high) = plan.labels[name], plan.ranges[name]
            if counts.max() == counts.sum():
                scores = f": scores go from {low:g} to {high:g}, and data.attributes.{name}.threshold is {attribute.threshold}"
                every = f"every sentence is {attribute.labels[counts.argmax()]}"
                yield every + scores * (attribute.threshold is not None and low <= high)
