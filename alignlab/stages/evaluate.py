"""evaluate: samples and exact probabilities -> metrics."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from typing import Any

from alignlab.engine.scorer import Scorer
from alignlab.pipeline import Run
from alignlab.records import read_jsonl, write_json


def evaluate(run: Run) -> list[str]:
    """Write ``results.json`` and, for the charts, ``details.json``."""
    config = run.config
    samples: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in read_jsonl(run.path(config.sample.file)):
        samples[row["model"]][row["prompt"]].append(row["text"])
    results: dict[str, dict[str, Any]] = {}
    details: dict[str, dict[str, Any]] = {}
    for which in run.models():
        scorer = Scorer(run.load(which, step=config.sample.step), config.hardware.backend, config.hardware.logits_mib)
        metrics, detail = config.suite.evaluate(
            config.data, samples[which], scorer, run.text, config.seed, config.hardware.tokens_per_micro
        )
        details[which] = detail
        for name, value in metrics.items():
            results.setdefault(name, {})[which] = asdict(value)
    write_json(run.path("results.json"), results)
    write_json(run.path("details.json"), details)
    return ["results.json", "details.json"]
