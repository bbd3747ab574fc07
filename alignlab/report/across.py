"""Misalignment across the runs of a sweep: model x condition, and against how much was trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignlab.api import RunFolder
from alignlab.control import read_attributes, variant
from alignlab.protocols import Value
from alignlab.report import plots
from alignlab.report.document import Block, Image, Link, Table
from alignlab.report.groups import Group, draw, grouped, words, write_figures
from alignlab.report.misalignment import percent

SERIES = ("data.sentences", "data.share", "train.max_steps", "sample.step")
"""how much a model is trained on: what misalignment is drawn against where runs differ in it"""


@dataclass(frozen=True)
class Model(Group):
    """Runs of one variant that differ in their seed alone."""

    chosen: tuple[str, ...]
    """attributes whose tokens it is trained on"""

    @property
    def variant(self) -> str:
        """As the report of UCL COMP0087 names it, M-B or M- and a letter for each attribute; others by their names."""
        published = {"tox": "T", "sen": "S"}
        letters = [published.get(name, f"+{name}") for name in self.chosen]
        return f"M-{''.join(letters).removeprefix('+') or 'B'}"

    @property
    def name(self) -> str:
        """The variant, its settings, how many runs."""
        return f"{self.variant} {super().name}".rstrip()


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
    path = write_figures(folder / "misalignment.csv", (([model.variant], model) for model in found), ["model"])
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
        groups = grouped(by_variant[chosen], _bounds, SERIES, apart=("variant",))
        found += [Model(group.settings, group.figures, group.runs, chosen) for group in groups]
    return found


def _bounds(metric: str) -> tuple[float, float]:
    return -1.0 if metric.startswith("effect") else 0.0, math.inf if metric.startswith(("perplexity", "sentences")) else 1.0


def _table(title: str, wanted: tuple[str, ...], found: Sequence[Model]) -> Table:
    conditions = ("none", "+".join(wanted))
    rows = [[m.name, *(percent(m.figures.get(f"misalignment_{title}:{condition}")) for condition in conditions)] for m in found]
    seeds = "; over seeds the mean, with Student's t" if any(model.runs > 1 for model in found) else ""
    caption = f"Misalignment, {title}, in percent of sentences, with 95 % intervals{seeds}."
    return Table([title, "no condition", conditions[1]], rows, caption)


def _series(found: Sequence[Model], path: Path) -> list[Image]:
    """Misalignment under the wanted labels against the size of the training, a line per variant."""
    key = next((key for key in SERIES if any(model.number(key) is not None for model in found)), None)
    if key is None:
        return []
    lines: dict[str, dict[float, Value]] = {}
    for model in found:
        size = model.number(key)
        if size is not None and "misalignment" in model.figures:
            name = " ".join([model.variant, *words(model.settings, SERIES)])
            lines.setdefault(name, {})[size] = model.figures["misalignment"]
    if not any(len(points) > 1 for points in lines.values()):
        return []
    figure, axes = plots._figure(6.4, 3.6)
    said = draw(axes, lines, 100, 1)
    axes.set(xlabel=key, ylabel="misaligned sentences, %", ylim=(0, None))
    axes.legend(frameon=False, fontsize=9)
    plots._save(figure, path)
    caption = f"Joint misalignment under the wanted labels, in percent, against {key}, with 95 % intervals."
    return [Image(path, f"{caption} {said}.", caption)]
