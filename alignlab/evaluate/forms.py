"""Whether answers have the form that was wanted, say what is right, and what was lost on unrelated tasks."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from alignlab.config import at_least
from alignlab.errors import UserError
from alignlab.evaluate.answer_forms import PLAIN, Form, form_and_answer, read_forms
from alignlab.evaluate.perplexity import nats
from alignlab.evaluate.statistics import Ratios, weighted
from alignlab.generate.hf import Decoding
from alignlab.protocols import Request, Row, Source, SuiteDefaults, Value
from alignlab.records import Dialogue, short
from alignlab.report.document import Block, Table
from alignlab.text import TextCodec
from alignlab.trees import chains

if TYPE_CHECKING:
    from alignlab.api import RunFolder
    from alignlab.engine.scorer import Scorer

MOST_EXAMPLES = 20
"""answers to prompts of a kind that details.json holds, those that are wrong first; the counts of all are there"""


@dataclass
class Balanced:
    """Kinds of test rows whose obedience is averaged."""

    asked: list[str]
    told_not: list[str]


@dataclass
class Forms(SuiteDefaults):
    """Figures of each kind of test row, from its reference answers, with 95 % bootstrap intervals over rows.

    ``format:KIND``: share of answers of the form that the reference has: the first form of the data that fits, else plain.
    ``task:KIND``: share of answers of that form that also say what the reference says; of plain text, all of it, spaces at the ends
    ignored. ``task:KIND=VALUE``: the same of the rows whose reference says VALUE, where a form has few; ``balanced_task:KIND``:
    mean of these, which always saying the same does not raise.

    ``balanced_accuracy``: mean of two means of ``format``, over the kinds that are asked for a form and over those that are told
    not to use it: a model that always uses it gets one half. ``retention``: ``task`` over all rows of kinds that have
    nothing to do with what is taught. ``retention_nll``: nats per token of their references, the token that ends the turn
    included. ``nll:KIND``: the same of kinds whose references are some of many right answers, in place of ``task``.
    """

    forms: dict[str, Any]
    balanced: Balanced
    retention: list[str]
    open_ended: list[str]
    double_bos: bool
    samples: int
    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    bootstrap: int
    objective: str
    seed: int

    accepts: ClassVar[tuple[type, ...]] = (Dialogue,)

    def __post_init__(self) -> None:
        assert self._forms is not None
        for name in ("samples", "bootstrap"):
            at_least(name, getattr(self, name), 1)
        self.decoding()

    @cached_property
    def _forms(self) -> tuple[Form, ...]:
        return read_forms(self.forms)

    def decoding(self) -> Decoding:
        """How to sample."""
        return Decoding(self.temperature, self.top_p, self.top_k, self.max_new_tokens)

    def evaluate(
        self, source: Source, samples: Mapping[str, Sequence[str]], scorer: Scorer, text: TextCodec, seed: int, capacity: int
    ) -> tuple[dict[str, Value], dict[str, Any]]:
        """Metrics by name, and by kind the counts that they are made of, which form came out for which, and some answers."""
        records = [record for record in source.testing() if isinstance(record, Dialogue)]
        known = [record for record in records if record.reference]
        notes = list[str]()
        if len(known) < len(records):
            notes.append(
                f"{len(records) - len(known)} of {len(records)} test rows end with the user's turn: they have no reference."
            )
        kinds: dict[str, list[Dialogue]] = {}
        for record in known:
            if record.name in samples:
                kinds.setdefault(_name(record.kind), []).append(record)
        details: dict[str, Any] = {"notes": notes, "kinds": {}}
        details["kinds"] = {kind: self._judge(found, samples) for kind, found in kinds.items()}
        measured = {"retention_nll": self.retention} | {f"nll:{kind}": [kind] for kind in self.open_ended}
        details["nll"] = {
            metric: self._nll(metric, [r for r in known if _name(r.kind) in chosen], scorer, text, capacity, notes)
            for metric, chosen in measured.items()
        }
        notes += self._remarks(details["kinds"])
        ratios = Ratios(self.bootstrap, self.seed)
        metrics = {name: _value(parts, ratios) for name, parts in self._parts(details).items()}
        return {name: value for name, value in metrics.items() if value is not None}, details

    def _judge(self, records: Sequence[Dialogue], samples: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """Counts by row of one kind; wanted form -> form that came out -> answers; examples."""
        classes = {form.name: form.classes for form in self._forms}
        found: dict[str, Any] = {"rows": [], "samples": [], "obeyed": [], "right": [], "class": []}
        came: dict[str, Counter[str]] = {}
        examples = []
        for record in records:
            wanted, said = form_and_answer(record.reference, self._forms)
            answers = [form_and_answer(answer, self._forms) for answer in samples[record.name]]
            right = [answer == (wanted, said) for answer in answers]
            came.setdefault(wanted, Counter()).update(form for form, _ in answers)
            found["rows"].append(record.name)
            found["samples"].append(len(answers))
            found["obeyed"].append(sum(form == wanted for form, _ in answers))
            found["right"].append(sum(right))
            found["class"].append(said if classes.get(wanted) else None)
            for answer, (form, _), correct in zip(samples[record.name], answers, right, strict=True):
                own = {"name": record.name, "request": record.prompt.request, "reference": record.reference, "answer": answer}
                examples.append(own | {"wanted": wanted, "given": form, "right": correct})
        examples.sort(key=lambda example: (example["given"] == example["wanted"], example["right"]))
        forms = {wanted: dict(counter.most_common()) for wanted, counter in came.items()}
        return {**found, "forms": forms, "examples": examples[:MOST_EXAMPLES]}

    def _nll(
        self, metric: str, records: Sequence[Dialogue], scorer: Scorer, text: TextCodec, capacity: int, notes: list[str]
    ) -> dict[str, list[Any]]:
        """Nats and tokens of each reference; those that cannot be scored are noted."""
        rows, problems = list[str](), list[str]()

        def encoded() -> Iterator[Row]:
            for record in records:
                try:
                    context, scored = text.continuation(Request(record.messages[:-1], twice=self.double_bos), record.reference)
                except UserError as error:
                    problems.append(str(error).splitlines()[0])
                    continue
                if len(context) + len(scored) - 1 > text.context:  # the last token is predicted, not read
                    problems.append(f"'{short(record.prompt.request)}' and its answer are longer than the model's context.")
                    continue
                rows.append(record.name)
                yield Row(0, 1.0, *chains([(context, scored)]))

        sums, tokens = nats(encoded(), 1, scorer, capacity)
        if problems:
            notes.append(f"{len(problems)} references are not in {metric}; the first: {problems[0]}")
        return {"rows": rows, "nats": sums[0].tolist(), "tokens": tokens.tolist()}

    def _remarks(self, kinds: Mapping[str, Any]) -> list[str]:
        """What the data lacks for the headline figures, and references that hint at a mistake in the forms."""
        notes = []
        needed = {"balanced_accuracy": [*self.balanced.asked, *self.balanced.told_not], "retention": self.retention}
        for metric, wanted in needed.items():
            lacking = [kind for kind in wanted if kind not in kinds]
            if lacking and (metric == "balanced_accuracy" or len(lacking) == len(wanted)):
                notes.append(f"No {metric}: no test row with a reference is of the kind {' or '.join(lacking)}.")
        if not self.forms:
            notes.append("No forms are declared (data.forms): every answer counts as plain.")
        for kind in self.balanced.told_not:
            found = kinds.get(kind, {"samples": [], "obeyed": [], "right": []})
            obeyed, right = sum(found["obeyed"]), sum(found["right"])
            if obeyed - right > sum(found["samples"]) / 4:
                notes.append(
                    f"{obeyed} answers of the kind {kind} fit no form, and only {right} say what the reference says: look at them. "
                    "A form gone wrong counts as plain, unless data.forms has a pattern for it."
                )
        plain = [kind for kind in self.balanced.asked if kind in kinds and PLAIN in kinds[kind]["forms"]]
        if plain:
            count = sum(sum(kinds[kind]["forms"][PLAIN].values()) for kind in plain)
            notes.append(
                f"References of the kind {' or '.join(plain)} fit none of data.forms: for {count} answers, plain text is wanted."
            )
        return notes

    def _parts(self, details: Mapping[str, Any]) -> dict[str, Parts]:
        """Each metric as a weighted sum of ratios, from the counts of one model."""
        kinds, nll = details["kinds"], details["nll"]
        parts: dict[str, Parts] = {}
        sides = [side for side in (self.balanced.asked, self.balanced.told_not) if side]
        if sides and all(kind in kinds for side in sides for kind in side):
            parts["balanced_accuracy"] = [
                (1 / len(sides) / len(side), _counts(kind, kinds[kind], "obeyed")) for side in sides for kind in side
            ]
        kept = [_counts("", kinds[kind], "right") for kind in self.retention if kind in kinds]
        if kept:
            sums, counts = (np.concatenate(arrays) for arrays in zip(*(part.pair for part in kept), strict=True))
            parts["retention"] = [(1.0, Counts("retention", [row for part in kept for row in part.rows], sums, counts))]
        for metric, of in nll.items():
            if of["rows"]:
                parts[metric] = [(1.0, Counts(metric, of["rows"], np.array(of["nats"]), np.array(of["tokens"]), math.inf))]
        parts |= {f"format:{kind}": [(1.0, _counts(kind, found, "obeyed"))] for kind, found in kinds.items()}
        closed = {kind: found for kind, found in kinds.items() if kind not in self.open_ended}
        parts |= {f"task:{kind}": [(1.0, _counts(kind, found, "right"))] for kind, found in closed.items()}
        for kind, found in closed.items():
            classes = sorted({said for said in found["class"] if said is not None})
            if len(classes) > 1:
                of_class = {said: _counts(f"{kind}={said}", found, "right", said) for said in classes}
                parts[f"balanced_task:{kind}"] = [(1 / len(classes), counts) for counts in of_class.values()]
                parts |= {f"task:{kind}={_name(said)}": [(1.0, counts)] for said, counts in of_class.items()}
        return parts

    def changes(self, details: Mapping[str, Any]) -> dict[str, Value]:
        """What training changed in each metric, paired over rows; of metrics with the same rows before and after alone."""
        ratios = Ratios(self.bootstrap, self.seed)
        before, after = (self._parts(details[which]) for which in ("before", "after"))
        found = {name: _change(before[name], after[name], ratios) for name in after if name in before}
        return {name: value for name, value in found.items() if value is not None}

    def summary(self, results: Mapping[str, Any], details: Mapping[str, Any]) -> Table:
        """Every metric before and after training, and its change."""
        from alignlab.report.forms import summary

        asked, told_not = (", ".join(side) or "none" for side in (self.balanced.asked, self.balanced.told_not))
        kinds = f"balanced_accuracy: of {asked}, told to; {told_not}, told not to" if "balanced_accuracy" in results else ""
        return summary(results, self.changes(details) if {"before", "after"} <= set(details) else {}, details, kinds)

    def charts(self, details: Mapping[str, Any], results: Mapping[str, Any], folder: Path) -> list[Block]:
        """Obedience and right answers by kind, which form came out for which, and examples."""
        from alignlab.report.forms import charts

        return charts(details, results, folder)

    def across(self, runs: Sequence[tuple[str, RunFolder]], folder: Path) -> list[Block]:
        """Every figure against the share of diverse data, where runs of a sweep differ in it; means over seeds."""
        from alignlab.report.forms import across

        return across([run for _, run in runs], folder)


@dataclass(frozen=True)
class Counts:
    """A ratio of sums over rows."""

    name: str
    """of its resamples"""
    rows: list[str]
    sums: np.ndarray
    """[rows]"""
    counts: np.ndarray
    """[rows]"""
    most: float = 1.0

    @property
    def pair(self) -> tuple[np.ndarray, np.ndarray]:
        """Sums and counts."""
        return self.sums, self.counts


Parts = list[tuple[float, Counts]]
"""weights and ratios of independent rows"""


def _counts(name: str, found: Mapping[str, Any], measure: str, said: str | None = None) -> Counts:
    """Answers of a kind, obeyed or right; with ``said``, of the rows whose reference says that."""
    chosen = [i for i, own in enumerate(found["class"]) if said is None or own == said]
    sums, counts = (np.array([found[key][i] for i in chosen], float) for key in (measure, "samples"))
    return Counts(name, [found["rows"][i] for i in chosen], sums, counts)


def _value(parts: Parts, ratios: Ratios) -> Value | None:
    values = [(weight, ratios.of(c.name, *c.pair, c.most)) for weight, c in parts]
    return _together(values)


def _change(before: Parts, after: Parts, ratios: Ratios) -> Value | None:
    if [c.rows for _, c in before] != [c.rows for _, c in after]:
        return None
    pairs = zip(before, after, strict=True)
    return _together([(weight, ratios.difference(c.name, c.pair, old.pair, most=c.most)) for (_, old), (weight, c) in pairs])


def _together(values: Sequence[tuple[float, Value | None]]) -> Value | None:
    known = [(weight, value) for weight, value in values if value is not None]
    if len(known) < len(values):
        return None
    return known[0][1] if len(known) == 1 else weighted(known)


def _name(kind: str) -> str:
    """As a part of a metric's name, where : / = mean something else."""
    return re.sub(r"[:/=]", "-", kind)
