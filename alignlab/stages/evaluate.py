"""evaluate: samples and exact probabilities -> metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from alignlab.engine.scorer import Scorer
from alignlab.journal import SUFFIX, Journal
from alignlab.pipeline import Run
from alignlab.records import read_jsonl, write_json


def evaluate(run: Run) -> list[str]:
    """Write ``results.json`` and, for the charts, ``details.json``."""
    config = run.config
    samples: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in read_jsonl(run.path(config.sample.file)):
        samples[row["model"]][row["prompt"]].append(row["text"])
    models = run.models()
    with Journal(run.path("results.json" + SUFFIX), run.digest("evaluate"), run.stop, "models", len(models)) as journal:
        for place, which in enumerate(models):
            if place not in journal.done:
                journal.add([(place, _evaluated(run, which, samples[which]))])
        found = dict(zip(models, journal, strict=True))
    results: dict[str, dict[str, Any]] = {}
    for which, (metrics, _) in found.items():
        for name, value in metrics.items():
            results.setdefault(name, {})[which] = value
    write_json(run.path("results.json"), results)
    write_json(run.path("details.json"), {which: details for which, (_, details) in found.items()})
    return ["results.json", "details.json"]


def _evaluated(run: Run, which: str, samples: Mapping[str, Sequence[str]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics and details of one model."""
    config = run.config
    scorer = Scorer(run.load(which, step=config.sample.step), config.hardware.backend, config.hardware.logits_mib)
    metrics, details = config.suite.evaluate(config.data, samples, scorer, run.text, config.seed, config.hardware.tokens_per_micro)
    return {name: asdict(value) for name, value in metrics.items()}, details
