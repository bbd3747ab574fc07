"""prepare: records of the source -> training rows on disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np

from alignlab.data.rows import RowStore, write_rows
from alignlab.pipeline import Run
from alignlab.records import Record, write_json, write_jsonl


def prepare(run: Run) -> list[str]:
    """Write ``records.jsonl``, ``rows/*.arrow`` and a summary of them."""
    config, text = run.config, run.text
    write_jsonl(run.path("records.jsonl"), config.data.training())
    files = ["records.jsonl", "rows/train.arrow", "rows/summary.json"]
    splits = {"train": config.data.training()}
    validation = config.data.validation_records()
    if validation:
        splits["validation"] = iter(validation)
        files.append("rows/validation.arrow")
    for record in config.data.testing():  # what cannot be evaluated is said before anything is trained
        deque(config.method.parts(record, text), maxlen=0)
    summary = {}
    for split, records in splits.items():
        path = run.path("rows", f"{split}.arrow")
        count = _Counter(records)
        write_rows(path, config.method.rows(count, text, config.seed))
        summary[split] = {"records": count.seen, **_summary(RowStore(path))}
    write_json(run.path("rows", "summary.json"), summary)
    train = summary["train"]
    run.say(f"prepare: {train['records']} records, {train['rows']} rows, {train['tokens']} tokens, {train['edges']} of them scored")
    return files


class _Counter:
    """Counts what passes through."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._records, self.seen = records, 0

    def __iter__(self) -> Iterator[Record]:
        for record in self._records:
            self.seen += 1
            yield record


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
