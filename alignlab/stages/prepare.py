"""prepare: records of the source -> training rows on disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, tee

import numpy as np

from alignlab.data.rows import RowStore, write_rows
from alignlab.errors import UserError
from alignlab.journal import SUFFIX, Journal
from alignlab.paths import content
from alignlab.pipeline import Run
from alignlab.protocols import Row
from alignlab.records import Record, write_json, write_jsonl
from alignlab.trees import chunks


def prepare(run: Run) -> list[str]:
    """Write ``records.jsonl``, ``rows/*.arrow`` and a summary of them."""
    config, text = run.config, run.text
    made = () if config.plan else config.data.make(run.workshop())
    tried = (config.data.training(), config.data.validation_records()) if config.data.lenient else ()
    tested = {record.name: record for record in config.data.testing()}
    wrong = set()
    for record in chain(*tried, tested.values()):
        try:  # what cannot be used is said before anything is trained
            deque(config.method.parts(record, text), maxlen=0)
        except UserError as error:
            config.data.reject(record, _named(error, record))
            wrong.add(record.name)
    for prompt in run.prompts("after" if "train" in config.stages else "before") if "sample" in config.stages else ():
        try:
            text.request(config.method.request(prompt))
        except UserError as error:
            if prompt.name not in tested:  # the suite's own, which nobody may pass over
                raise
            if prompt.name not in wrong:
                config.data.reject(tested[prompt.name], _named(error, tested[prompt.name]))
    run.path("rejected.jsonl").unlink(missing_ok=True)
    write_jsonl(run.path("records.jsonl"), config.data.training())
    files = ["records.jsonl", "rows/train.arrow", "rows/summary.json", "rows/made.json", *made]
    splits = {"train": config.data.training()}
    validation = config.data.validation_records()
    if validation:
        splits["validation"] = iter(validation)
        files.append("rows/validation.arrow")
    summary = {}
    for split, records in splits.items():
        path = run.path("rows", f"{split}.arrow")
        count, cut = _Counter(records), _Cut()
        rows = cut.over(config.method.rows(count, text, config.seed))
        try:
            write_rows(path, with_reference(run, rows, split) if config.method.reference else rows)
        except UserError as error:
            if split == "train" or not str(error).startswith("data: "):
                raise
            lacking = str(error).removeprefix("data").splitlines()[0]  # only these rows lack something
            raise UserError(f"data.{split}{lacking}\nGive a larger share, or a path to rows that have it.") from None
        left_out = max(0, count.seen - cut.groups)
        summary[split] = {"records": count.seen, "truncated": cut.rows, "left_out": left_out, **_summary(RowStore(path))}
    write_json(run.path("rows", "summary.json"), summary)
    write_json(run.path("rows", "made.json"), {name: content(str(run.path(name))) for name in made})
    if config.data.rejected:
        rejected = ({"row": place, "reason": reason} for place, reason in config.data.rejected.items())
        run.say(f"prepare: {write_jsonl(run.path('rejected.jsonl'), rejected)} wrong rows passed over; rejected.jsonl says why")
        files.append("rejected.jsonl")
    for note in config.data.notes():
        run.say(f"prepare: {note}")
    train = summary["train"]
    fate = {"cut at their end": train["truncated"], "left out by the method": train["left_out"]}
    lost = "".join(f", {number} {what}" for what, number in fate.items() if number)
    size = f"{train['rows']} rows, {train['tokens']} tokens, {train['edges']} of them scored"
    run.say(f"prepare: {train['records']} records{lost}, {size}")
    return files


def with_reference(run: Run, rows: Iterable[Row], split: str) -> Iterator[Row]:
    """The rows of a split with the log-probability of each edge under the untrained model, as a column ``reference``.

    Of a plan they are 0.
    """
    if run.config.plan:
        yield from (replace(row, columns={**row.columns, "reference": np.zeros(len(row.source))}) for row in rows)
        return
    from alignlab.engine.scorer import Scorer, edge_logprobs_of

    hardware = run.config.hardware
    scorers: list[Scorer] = []  # loaded when rows lack

    def make(chunk: Sequence[Row]) -> Iterator[list[float]]:
        if not scorers:
            scorers.append(Scorer(run.load("before"), hardware.backend, hardware.logits_mib))
        for logp in edge_logprobs_of(scorers[0], chunk, hardware.tokens_per_micro):
            yield logp.tolist()

    again, rows = tee(rows)
    with Journal(run.path("rows", f"{split}.arrow{SUFFIX}"), run.digest("prepare"), run.stop, f"rows of {split}") as journal:
        for row, logp in zip(again, journal.through(chunks(rows, hardware.tokens_per_micro), make), strict=True):
            yield replace(row, columns={**row.columns, "reference": np.array(logp, np.float64)})


def _named(error: UserError, record: Record) -> UserError:
    """The error, with the place of the record in front where it does not name it."""
    where = getattr(record, "where", "")
    return error if not where or where in str(error) or str(error).startswith("model.") else UserError(f"{where}: {error}")


class _Counter:
    """Counts what passes through."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._records, self.seen = records, 0

    def __iter__(self) -> Iterator[Record]:
        for record in self._records:
            self.seen += 1
            yield record


class _Cut:
    """Counts rows of which something was cut off, and groups."""

    def __init__(self) -> None:
        self.rows = self.groups = 0

    def over(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows, counted on the way."""
        last = None
        for row in rows:
            self.rows += row.truncated
            self.groups += row.group != last
            last = row.group
            yield row


def _summary(rows: RowStore) -> dict[str, float]:
    length = rows.length if len(rows) else np.zeros(1, np.int64)
    return {
        "rows": len(rows),
        "groups": len(np.unique(rows.group)),
        "mass": float(rows.mass.sum()),
        "tokens": int(rows.length.sum()),
        "edges": int(rows.edges.sum()),
        "shortest": int(length.min()),
        "mean": float(length.mean()),
        "longest": int(length.max()),
    }
