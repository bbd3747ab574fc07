"""score: the objective of every record, without training."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from alignlab.api import RunFolder
from alignlab.engine.batch import collate
from alignlab.engine.scorer import Scorer, edge_logprobs_of
from alignlab.errors import UserError
from alignlab.pipeline import Run
from alignlab.protocols import Row
from alignlab.records import write_jsonl
from alignlab.track import Display
from alignlab.trees import chunks


def score(run: Run) -> list[str]:
    """Write ``scores.jsonl``: a line per record and part, and per token where ``score.tokens`` asks for it."""
    wanted = {"before": ["before"], "after": ["after"], "both": ["before", "after"]}[run.config.score.model]
    if "after" in wanted and not run.trained:
        raise UserError("score.model: there is no trained model yet. Run the train stage first, or take score.model=before.")
    count = write_jsonl(run.path("scores.jsonl"), (line for which in wanted for line in _lines(run, which)))
    if not count:
        raise UserError("score: no record makes a row by itself, so there is nothing to score (a pair of two records is none).")
    run.say(f"score: {count} lines")
    drawn: Sequence[str] = ()
    if run.config.score.tokens:
        drawn = run.config.method.scored(RunFolder(run.folder), run.config.data.scoring(), run.path("plots"))
        if drawn:
            run.say(f"score: {', '.join(str(run.path(name)) for name in drawn)}")
    return ["scores.jsonl", *drawn]


def _lines(run: Run, which: str) -> Iterator[dict[str, Any]]:
    config, method = run.config, run.config.method
    capacity = config.hardware.tokens_per_micro
    scorers = [Scorer(run.load(which), config.hardware.backend, config.hardware.logits_mib)]
    if method.reference and which == "after":
        scorers.append(Scorer(run.load("before"), config.hardware.backend, config.hardware.logits_mib))
    total = sum(1 for _ in config.data.scoring())
    waiting: deque[tuple[int, int]] = deque()  # index and part of the rows under way
    with Display(f"score ({which})", total) as display:
        for chunk in chunks(_parts(run, waiting), capacity):
            found = [edge_logprobs_of(scorer, chunk, capacity) for scorer in scorers]
            for row, logp, reference in zip(chunk, found[0], found[-1], strict=True):
                index, part = waiting.popleft()
                if method.reference:
                    row = replace(row, columns={**row.columns, "reference": reference.double().cpu().numpy()})
                loss = method.loss(logp.double(), collate([row]).to(run.device))
                line = {"index": index, "part": part, "model": which, "loss": float(loss.total)}
                line |= {"mass": row.mass, "edges": len(row.source)}
                if config.score.tokens:
                    line["tokens"] = _tokens(run, row, logp.double().tolist())
                yield line
            display.update(index + 1)


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
