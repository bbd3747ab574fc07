"""Runs of a sweep, those that differ in their seed alone taken together: their figures as means, as a CSV, as curves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.api import RunFolder
from alignlab.evaluate.statistics import over_seeds
from alignlab.protocols import Value
from alignlab.provenance import leaves
from alignlab.report.misalignment import write_csv

Bounds = Callable[[str], tuple[float, float]]
"""least and greatest value that a metric can have"""


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone."""

    settings: Mapping[str, Any]
    """where they differ from other runs, and how"""
    figures: Mapping[str, Value]
    """means over the runs, of what holds for all prompts"""
    runs: int

    @property
    def name(self) -> str:
        """The settings, how many runs."""
        return " ".join(words(self.settings) + ([f"({self.runs} seeds)"] if self.runs > 1 else []))

    def number(self, key: str) -> float | None:
        """The value of a setting, where it is a number."""
        value = self.settings.get(key)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def words(settings: Mapping[str, Any], without: Sequence[str] = ()) -> list[str]:
    """Settings as on the command line."""
    return [f"{key}={value}" for key, value in settings.items() if key not in without]


def grouped(runs: Sequence[RunFolder], bounds: Bounds, first: Sequence[str] = (), apart: Sequence[str] = ()) -> list[Group]:
    """The runs, those that differ in their seed alone taken together, in the order of the first of each.

    Args:
        runs: with results; of the trained model, or of the untrained one where nothing was trained.
        bounds: of each metric.
        first: settings to be named before others.
        apart: last parts of the names of settings that are not looked at.
    """
    together: dict[str, tuple[dict[str, Any], list[RunFolder]]] = {}
    for run, own in zip(runs, _differing([dict(leaves(run.config)) for run in runs], first, apart), strict=True):
        together.setdefault(json.dumps(own, default=str), (own, []))[1].append(run)
    return [Group(own, _means([_figures(run) for run in alike], bounds), len(alike)) for own, alike in together.values()]


def _differing(configs: Sequence[Mapping[str, Any]], first: Sequence[str], apart: Sequence[str]) -> list[dict[str, Any]]:
    """Of each run, the settings that are not alike in all, without seeds and folders; of several that differ alike, the first."""
    keys = sorted(dict.fromkeys(key for config in configs for key in config), key=lambda key: key not in first)
    seen: dict[str, str] = {}
    for key in keys:
        if key.split(".")[-1] in ("seed", "run_dir", *apart):
            continue
        values = [config.get(key) for config in configs]
        if any(value != values[0] for value in values):
            seen.setdefault(json.dumps(values, default=str), key)
    return [{key: config.get(key) for key in seen.values()} for config in configs]


def _figures(run: RunFolder) -> dict[str, Value]:
    """What holds for all prompts of a run."""
    results: Mapping[str, Any] = run.results
    return {key: Value(**found.get("after", found.get("before"))) for key, found in results.items() if "/" not in key}


def _means(runs: Sequence[Mapping[str, Value]], bounds: Bounds) -> dict[str, Value]:
    return {key: over_seeds([run[key] for run in runs], *bounds(key)) for key in runs[0] if all(key in run for run in runs)}


def write_figures(path: Path, groups: Iterable[tuple[Sequence[str], Group]], header: Sequence[str]) -> Path:
    """Every figure of every group as CSV, each line under ``header`` and ``settings,condition,metric,value,low,high,runs``.

    Args:
        path: file to write.
        groups: what stands under ``header``, and the group.
        header: first columns.
    """
    lines = []
    for own, group in groups:
        for key, value in group.figures.items():
            metric, _, condition = key.partition(":")
            figures = [value.value, value.low, value.high, group.runs]
            lines.append([*own, " ".join(words(group.settings)), condition, metric, *figures])
    return write_csv(path, [*header, "settings", "condition", "metric", "value", "low", "high", "runs"], lines)


Lines = Mapping[str, Mapping[float, Value]]
"""name of a line -> place on the x axis -> value"""


def draw(axes: Any, lines: Lines, scale: float, digits: int) -> str:
    """Draw lines with intervals; their values in words.

    Args:
        axes: where to draw.
        lines: what to draw.
        scale: of the values; 100 shows shares in percent.
        digits: of the values in words.
    """
    said = []
    for (name, points), marker in zip(lines.items(), "osD^vP" * len(lines), strict=False):
        places = sorted(points)
        middle = [scale * points[x].value for x in places]
        reach = [[scale * (points[x].value - points[x].low) for x in places]]
        reach.append([scale * (points[x].high - points[x].value) for x in places])
        axes.errorbar(places, middle, yerr=reach, marker=marker, markersize=4, linewidth=1.2, capsize=3, label=name)
        figures = ", ".join(f"{x:g}: {y:.{digits}f}" for x, y in zip(places, middle, strict=True))
        said.append(f"{name} {figures}".lstrip())
    return "; ".join(said)
