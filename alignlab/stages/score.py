"""score: the objective of every record, without training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from alignlab.engine.batch import collate
from alignlab.engine.scorer import Scorer
from alignlab.errors import UserError
from alignlab.pipeline import Run
from alignlab.protocols import Row
from alignlab.records import write_jsonl
from alignlab.track import Display


def score(run: Run) -> list[str]:
    """Write ``scores.jsonl``: a line per record and part, and per token where ``score.tokens`` asks for it."""
    wanted = {"before": ["before"], "after": ["after"], "both": ["before", "after"]}[run.config.score.model]
    if "after" in wanted and not run.trained:
        raise UserError("score.model: there is no trained model yet. Run the train stage first, or take score.model=before.")
    count = write_jsonl(run.path("scores.jsonl"), (line for which in wanted for line in _lines(run, which)))
    run.say(f"score: {count} lines")
    return ["scores.jsonl"]


def _lines(run: Run, which: str) -> Iterator[dict[str, Any]]:
    config = run.config
    scorer = Scorer(run.load(which), config.hardware.backend, config.hardware.logits_mib)
    parts = _parts(run)
    with Display(f"score ({which})", len(parts)) as display:
        for first, last in _chunks([len(row.tokens) for _, _, row in parts], config.hardware.tokens_per_micro):
            chunk = parts[first:last]
            batch = collate([row for _, _, row in chunk]).to(run.device)
            with torch.no_grad():
                logp = scorer(batch)
            for i, (index, part, row) in enumerate(chunk):
                own, alone = logp[batch.row == i].double(), collate([row]).to(run.device)
                loss = config.method.loss(own, alone)
                line = {"index": index, "part": part, "model": which, "loss": float(loss.total)}
                line |= {"mass": row.mass, "edges": len(row.source)}
                if config.score.tokens:
                    line["tokens"] = _tokens(run, row, own.tolist())
                yield line
            display.update(last)


def _parts(run: Run) -> list[tuple[int, int, Row]]:
    return [
        (index, part, row)
        for index, record in enumerate(run.config.data.scoring())
        for part, row in enumerate(run.config.method.parts(record, run.text))
    ]


def _chunks(lengths: list[int], capacity: int) -> Iterator[tuple[int, int]]:
    """Runs of consecutive rows within the capacity."""
    first, used = 0, 0
    for i, length in enumerate(lengths):
        if i > first and used + length > capacity:
            yield first, i
            first, used = i, 0
        used += length
    if lengths:
        yield first, len(lengths)


def _tokens(run: Run, row: Row, logp: list[float]) -> list[dict[str, Any]]:
    """Each edge: ``context`` counts the row's trees from 0, ``after`` is the text between the first scored place and the token."""
    parent, tokens, tree, roots = row.parent.tolist(), row.tokens.tolist(), [], 0
    start = int(row.source.min())
    after: list[list[int]] = []
    for node, p in enumerate(parent):
        roots += p < 0
        tree.append(roots - 1)
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
