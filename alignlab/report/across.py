"""Misalignment across the runs of a sweep: model x condition, and against how much was trained on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.api import RunFolder
from alignlab.control import read_attributes, variant
from alignlab.evaluate.statistics import over_seeds
from alignlab.protocols import Value
from alignlab.provenance import leaves
from alignlab.report import plots
from alignlab.report.document import Block, Image, Link, Table
from alignlab.report.misalignment import percent, write_csv

SERIES = ("data.sentences", "data.share", "train.max_steps", "sample.step")
"""how much a model is trained on: what misalignment is drawn against where runs differ in it"""


@dataclass(frozen=True)
class Model:
    """Runs of one variant that differ in their seed alone."""

    chosen: tuple[str, ...]
    """attributes whose tokens it is trained on"""
    settings: Mapping[str, Any]
    """where runs of this variant differ, and how"""
    figures: Mapping[str, Value]
    """means over the runs"""
    runs: int

    @property
    def variant(self) -> str:
        """As the report of UCL COMP0087 names it, M-B or M- and a letter for each attribute; others by their names."""
        published = {"tox": "T", "sen": "S"}
        letters = [published.get(name, f"+{name}") for name in self.chosen]
        return f"M-{''.join(letters).removeprefix('+') or 'B'}"

    @property
    def name(self) -> str:
        """The variant, its settings, how many runs."""
        settings = [f"{key}={value}" for key, value in self.settings.items()]
        return " ".join([self.variant, *settings, *([f"({self.runs} seeds)"] if self.runs > 1 else [])])


def across(runs: Sequence[RunFolder], folder: Path) -> list[Block]:
    """Tables as the report's 2 and 4 (an attribute each) and 5 (all together), its Figure 1 where there is one, and a CSV.

    Args:
        runs: with results; of the trained model, or of the untrained one where nothing was trained.
        folder: of the CSV and the plot.
    """
    attributes = read_attributes(runs[0].config["suite"]["attributes"])
    found = models(runs)
    blocks: list[Block] = [_table(attribute.title, (attribute.wanted,), found) for attribute in attributes.values()]
    if len(attributes) > 1:
        blocks.append(_table("joint", tuple(attribute.wanted for attribute in attributes.values()), found))
    blocks += _series(found, folder / "misalignment-series.png")
    lines = []
    for model in found:
        settings = " ".join(f"{key}={value}" for key, value in model.settings.items())
        for key, value in model.figures.items():
            metric, _, condition = key.partition(":")
            lines.append([model.variant, settings, condition, metric, value.value, value.low, value.high, model.runs])
    header = ["model", "settings", "condition", "metric", "value", "low", "high", "runs"]
    path = write_csv(folder / "misalignment.csv", header, lines)
    return [*blocks, Link(path, "every figure of every model, with its interval.")]


def models(runs: Sequence[RunFolder]) -> list[Model]:
    """The runs, those that differ in their seed alone taken together; fewer attributes first."""
    by_variant: dict[tuple[str, ...], list[RunFolder]] = {}
    order: list[str] = []
    for run in runs:
        suite = run.config["suite"]
        attributes = read_attributes(suite["attributes"])
        order += [name for name in attributes if name not in order]
        by_variant.setdefault(variant(suite["variant"], attributes), []).append(run)
    found = []
    for chosen in sorted(by_variant, key=lambda names: (len(names), [order.index(name) for name in names])):
        alike = by_variant[chosen]
        groups: dict[str, tuple[dict[str, Any], list[RunFolder]]] = {}
        for run, own in zip(alike, _differing([dict(leaves(run.config)) for run in alike]), strict=True):
            groups.setdefault(json.dumps(own, default=str), (own, []))[1].append(run)
        found += [Model(chosen, own, _means([_figures(run) for run in group]), len(group)) for own, group in groups.values()]
    return found


def _differing(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each run, the settings that are not alike in all, without seeds and folders; of several that differ alike, the first."""
    keys = sorted(dict.fromkeys(key for config in configs for key in config), key=lambda key: key not in SERIES)
    seen: dict[str, str] = {}
    for key in keys:
        if key.split(".")[-1] in ("seed", "variant", "run_dir"):
            continue
        values = [config.get(key) for config in configs]
        if any(value != values[0] for value in values):
            seen.setdefault(json.dumps(values, default=str), key)
    return [{key: config.get(key) for key in seen.values()} for config in configs]


def _figures(run: RunFolder) -> dict[str, Value]:
    """What holds for all prompts of a run."""
    results: Mapping[str, Any] = run.results
    return {key: Value(**found.get("after", found.get("before"))) for key, found in results.items() if "/" not in key}


def _means(runs: Sequence[Mapping[str, Value]]) -> dict[str, Value]:
    found = {}
    for key in runs[0]:
        if all(key in run for run in runs):
            most = math.inf if key.startswith(("perplexity", "sentences")) else 1.0
            found[key] = over_seeds([run[key] for run in runs], -1.0 if key.startswith("effect") else 0.0, most)
    return found


def _table(title: str, wanted: tuple[str, ...], found: Sequence[Model]) -> Table:
    conditions = ("none", "+".join(wanted))
    rows = [[m.name, *(percent(m.figures.get(f"misalignment_{title}:{condition}")) for condition in conditions)] for m in found]
    seeds = "; over seeds the mean, with Student's t" if any(model.runs > 1 for model in found) else ""
    caption = f"Misalignment, {title}, in percent of sentences, with 95 % intervals{seeds}."
    return Table([title, "no condition", conditions[1]], rows, caption)


def _series(found: Sequence[Model], path: Path) -> list[Image]:
    """Misalignment under the wanted labels against the size of the training, a line per variant."""
    key = next((key for key in SERIES if any(_size(model, key) is not None for model in found)), None)
    if key is None:
        return []
    lines: dict[str, dict[float, Value]] = {}
    for model in found:
        size = _size(model, key)
        if size is not None and "misalignment" in model.figures:
            others = [f"{name}={value}" for name, value in model.settings.items() if name not in SERIES]
            lines.setdefault(" ".join([model.variant, *others]), {})[size] = model.figures["misalignment"]
    if not any(len(points) > 1 for points in lines.values()):
        return []
    figure, axes = plots._figure(6.4, 3.6)
    words = []
    for name, points in lines.items():
        sizes = sorted(points)
        middle = [100 * points[size].value for size in sizes]
        reach = [[100 * (points[size].value - points[size].low) for size in sizes]]
        reach.append([100 * (points[size].high - points[size].value) for size in sizes])
        axes.errorbar(sizes, middle, yerr=reach, marker="o", markersize=4, linewidth=1.2, capsize=3, label=name)
        words.append(f"{name} " + ", ".join(f"{size:g}: {value:.1f}" for size, value in zip(sizes, middle, strict=True)))
    axes.set(xlabel=key, ylabel="misaligned sentences, %", ylim=(0, None))
    axes.legend(frameon=False, fontsize=9)
    plots._save(figure, path)
    caption = f"Joint misalignment under the wanted labels, in percent, against {key}, with 95 % intervals."
    return [Image(path, f"{caption} {'; '.join(words)}.", caption)]


def _size(model: Model, key: str) -> float | None:
    value = model.settings.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
