"""score: the objective of every record, without training."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from alignlab.api import RunFolder
from alignlab.engine.batch import collate
from alignlab.engine.scorer import Scorer, edge_logprobs_of
from alignlab.errors import UserError
from alignlab.journal import SUFFIX, Journal
from alignlab.pipeline import Run
from alignlab.protocols import Row
from alignlab.records import write_jsonl
from alignlab.track import Display
from alignlab.trees import chunks

if TYPE_CHECKING:
    from torch import Tensor


def score(run: Run) -> list[str]:
    """Write ``scores.jsonl``: a line per record and part, and per token where ``score.tokens`` asks for it."""
    wanted = {"before": ["before"], "after": ["after"], "both": ["before", "after"]}[run.config.score.model]
    if "after" in wanted and not run.trained:
        raise UserError("score.model: there is no trained model yet. Run the train stage first, or take score.model=before.")
    with Journal(run.path("scores.jsonl" + SUFFIX), run.digest("score"), run.stop, "lines") as journal:
        count = write_jsonl(run.path("scores.jsonl"), (line for which in wanted for line in _lines(run, which, journal)))
    if not count:
        raise UserError("score: no record makes a row by itself, so there is nothing to score (a pair of two records is none).")
    run.say(f"score: {count} lines")
    drawn: Sequence[str] = ()
    if run.config.score.tokens:
        drawn = run.config.method.scored(RunFolder(run.folder), run.config.data.scoring(), run.path("plots"))
        if drawn:
            run.say(f"score: {', '.join(str(run.path(name)) for name in drawn)}")
    return ["scores.jsonl", *drawn]


def _lines(run: Run, which: str, journal: Journal) -> Iterator[dict[str, Any]]:
    """The lines of a model, which is loaded when one lacks."""
    hardware = run.config.hardware
    models = [which, "before"] if run.config.method.reference and which == "after" else [which]
    scorers: list[Scorer] = []

    def make(chunk: Sequence[tuple[int, int, Row]]) -> Iterator[dict[str, Any]]:
        if not scorers:
            scorers.extend(Scorer(run.load(model), hardware.backend, hardware.logits_mib) for model in models)
        rows = [row for _, _, row in chunk]
        found = [edge_logprobs_of(scorer, rows, hardware.tokens_per_micro) for scorer in scorers]
        for (index, part, row), logp, reference in zip(chunk, found[0], found[-1], strict=True):
            yield _line(run, {"index": index, "part": part, "model": which}, row, logp.double(), reference.double())

    yield from journal.through(_chunks(run, which), make)


def _line(run: Run, line: dict[str, Any], row: Row, logp: Tensor, reference: Tensor) -> dict[str, Any]:
    """What ``scores.jsonl`` says of a row from the log-probabilities of its edges, [E], by the model and by the untrained one."""
    method = run.config.method
    if method.reference:
        row = replace(row, columns={**row.columns, "reference": reference.cpu().numpy()})
    loss = method.loss(logp, collate([row]).to(run.device))
    line |= {"loss": float(loss.total), "mass": row.mass, "edges": len(row.source)}
    return line | {"tokens": _tokens(run, row, logp.tolist())} if run.config.score.tokens else line


def _chunks(run: Run, which: str) -> Iterator[list[tuple[int, int, Row]]]:
    """Rows of every record, as many at a time as are computed together, each with its index and part."""
    waiting: deque[tuple[int, int]] = deque()  # index and part of the rows under way
    with Display(f"score ({which})", sum(1 for _ in run.config.data.scoring())) as display:
        for chunk in chunks(_parts(run, waiting), run.config.hardware.tokens_per_micro):
            numbered = [(*waiting.popleft(), row) for row in chunk]
            yield numbered
            display.update(numbered[-1][0] + 1)


def _parts(run: Run, numbers: deque[tuple[int, int]]) -> Iterator[Row]:
    """Rows of every record; their index and part are put at the end of ``numbers``."""
    for index, record in run.config.data.scoring():
        try:
            for part, row in enumerate(run.config.method.parts(record, run.text)):
                numbers.append((index, part))
                yield row
        except UserError as error:
            run.config.data.reject(record, error)


def _tokens(run: Run, row: Row, logp: list[float]) -> list[dict[str, Any]]:
    """Each edge: ``context`` counts the row's trees from 0; ``after`` is the text before it, from its tree's first scored place."""
    parent, tokens, tree = row.parent.tolist(), row.tokens.tolist(), (np.cumsum(row.parent < 0) - 1).tolist()
    first = {tree[source]: source for source in sorted(row.source.tolist(), reverse=True)}
    after: list[list[int]] = []
    for node, p in enumerate(parent):
        start = first.get(tree[node], len(parent))
        after.append([*(after[p] if p >= 0 else []), tokens[node]] if p >= start else [tokens[node]] if node > start else [])
    lines = []
    for e, value in enumerate(logp):
        source, target = int(row.source[e]), int(row.target[e])
        line = {
            "context": tree[source],
            "after": run.text.tokenizer.decode(after[source]),
            "token": target,
            "text": run.text.tokenizer.decode([target]),
            "logp": value,
        }
        lines.append(line | {name: column[e].item() for name, column in row.columns.items()})
    return lines
