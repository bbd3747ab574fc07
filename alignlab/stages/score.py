"""score: the objective of every record, without training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from alignlab.engine.batch import collate
from alignlab.engine.scorer import Scorer, edge_logprobs_of
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
    capacity = config.hardware.tokens_per_micro
    total = sum(1 for _ in config.data.scoring())
    with Display(f"score ({which})", total) as display:
        for chunk in _chunks(_parts(run), capacity):
            for (index, part, row), logp in zip(chunk, edge_logprobs_of(scorer, [row for *_, row in chunk], capacity), strict=True):
                loss = config.method.loss(logp.double(), collate([row]).to(run.device))
                line = {"index": index, "part": part, "model": which, "loss": float(loss.total)}
                line |= {"mass": row.mass, "edges": len(row.source)}
                if config.score.tokens:
                    line["tokens"] = _tokens(run, row, logp.double().tolist())
                yield line
            display.update(index + 1)


def _parts(run: Run) -> Iterator[tuple[int, int, Row]]:
    for index, record in enumerate(run.config.data.scoring()):
        for part, row in enumerate(run.config.method.parts(record, run.text)):
            yield index, part, row


def _chunks(parts: Iterator[tuple[int, int, Row]], capacity: int) -> Iterator[list[tuple[int, int, Row]]]:
    """Consecutive rows within the capacity; a longer one alone."""
    chunk: list[tuple[int, int, Row]] = []
    used = 0
    for part in parts:
        length = len(part[2].tokens)
        if chunk and used + length > capacity:
            yield chunk
            chunk, used = [], 0
        chunk.append(part)
        used += length
    if chunk:
        yield chunk


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
