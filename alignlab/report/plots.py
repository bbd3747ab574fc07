"""Pictures of a run, as PNG files."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BEFORE, AFTER, TARGET = "#8c8c8c", "#1f6fb4", "#111111"


def _figure(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> Path:
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    temporary.replace(path)
    return path


def curve(metrics: Sequence[Mapping[str, float]], path: Path) -> Path:
    """Loss against optimizer steps, with its floor and validation loss where there are such."""
    figure, axes = _figure(5.6, 3.2)
    steps = [row["step"] for row in metrics]
    points = "." if len(steps) < 20 else None  # a line through one point cannot be seen
    axes.plot(steps, [row["loss"] for row in metrics], color=AFTER, marker=points, linewidth=1, label="loss")
    if "floor" in metrics[0]:
        axes.plot(steps, [row["floor"] for row in metrics], color=TARGET, linestyle="--", linewidth=1, label="floor")
    validated = [row for row in metrics if "validation_loss" in row]
    if validated:
        where, what = [row["step"] for row in validated], [row["validation_loss"] for row in validated]
        axes.plot(where, what, color="#c4560e", marker="o", markersize=3, linewidth=1, label="validation")
    axes.set(xlabel="optimizer step", ylabel="loss per unit of mass (nats)")
    axes.legend(frameon=False)
    return _save(figure, path)


def distribution(
    title: str, labels: Sequence[str], target: Sequence[float], models: Mapping[str, Sequence[float]], note: str, path: Path
) -> Path:
    """Probability of each target: asked for, and given by each model.

    Args:
        title: the request.
        labels: the targets, [n].
        target: their weights, [n].
        models: ``before`` and perhaps ``after`` -> probabilities, [n].
        note: figures to print under the title.
        path: file to write.
    """
    n = len(labels)
    inches = min(14, max(5.4, 0.34 * n + 2))
    figure, axes = _figure(inches, 3.4)
    if n <= 40:
        width = 0.8 / len(models)
        for i, (name, values) in enumerate(models.items()):
            where = [x + (i - (len(models) - 1) / 2) * width for x in range(n)]
            axes.bar(where, values, width, color=BEFORE if name == "before" else AFTER, label=name)
        axes.plot(range(n), target, color=TARGET, marker="_", markersize=12, linestyle="none", label="target")
        rotated = max(map(len, labels)) > 4
        axes.set_xticks(range(n), labels, rotation=60 if rotated else 0, ha="right" if rotated else "center", fontsize=9)
    else:  # too many to name: the likeliest first
        for name, values in models.items():
            axes.plot(range(n), sorted(values, reverse=True), color=BEFORE if name == "before" else AFTER, label=name)
        axes.plot(range(n), sorted(target, reverse=True), color=TARGET, linestyle="--", label="target")
        axes.set(xlabel=f"{n} targets, likeliest first", yscale="log")
    axes.set_ylabel("probability")
    title_lines = [*textwrap.wrap(title, int(13.5 * inches))[:3], *textwrap.wrap(note, int(13.5 * inches))]
    axes.set_title("\n".join(title_lines), fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=9)
    return _save(figure, path)


def logs(metrics: Sequence[Mapping[str, float | None]], names: Sequence[str], path: Path) -> Path:
    """A small curve for each of a method's own logs, against optimizer steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(5.6, 1.8 * rows if rows > 1 else 3.2), layout="constrained", squeeze=False)
    for axes, name in zip(grid.flat, names, strict=False):
        known = [(row["step"], row[name]) for row in metrics if row.get(name) is not None]
        axes.plot(*zip(*known, strict=True), color=AFTER, marker="." if len(known) < 20 else None, linewidth=1)
        axes.set_title(name, fontsize=9, loc="left")
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.set_visible(axes.has_data())
    return _save(figure, path)


def panel(results: Mapping[str, Any], metric: str, names: Sequence[str], models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Model -> name -> value of ``METRIC:NAME``, where results have one: a panel of :func:`bars`."""
    found = {name: results.get(f"{metric}:{name}", {}) for name in names}
    return {which: {name: values[which] for name, values in found.items() if which in values} for which in models}


def bars(panels: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]], label: str, path: Path) -> Path:
    """Shares in percent with their intervals: a panel per measure, a bar per model.

    Args:
        panels: measure -> model, ``before`` or ``after`` -> what stands below the bars -> ``value``, ``low`` and ``high``, shares.
        label: of the vertical axis.
        path: file to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(name for models in panels.values() for found in models.values() for name in found))
    models = list(dict.fromkeys(which for found in panels.values() for which in found))
    size = (max(5.6, 0.66 * len(names) + 1.6), 1.7 * len(panels) + 1.2)
    figure, grid = plt.subplots(len(panels), 1, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained")
    width = 0.8 / len(models)
    for axes, (measure, found) in zip(grid[:, 0], panels.items(), strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        for i, (which, values) in enumerate(found.items()):
            alone = [sum(name in other for other in found.values()) == 1 for name in values]
            shift = (i - (len(models) - 1) / 2) * width
            where = [names.index(name) + (0 if only else shift) for name, only in zip(values, alone, strict=True)]
            middle, low, high = ([100 * value[key] for value in values.values()] for key in ("value", "low", "high"))
            reach = [[m - b for m, b in zip(middle, low, strict=True)], [t - m for m, t in zip(middle, high, strict=True)]]
            look: dict[str, Any] = {"color": BEFORE if which == "before" else AFTER, "error_kw": {"linewidth": 1, "capsize": 2}}
            axes.bar(where, middle, 0.94 * width, label=f"{which} training", yerr=reach, **look)
        axes.set_title(measure, fontsize=9, loc="left")
        axes.set_ylim(0, 100)
        axes.set_ylabel(label, fontsize=8)
    spare = max(0.0, (4 - len(names)) / 2)  # so that a bar alone is no wall
    grid[-1, 0].set_xlim(-0.6 - spare, len(names) - 0.4 + spare)
    long = max(map(len, names)) > 8 or len(names) > 8
    grid[-1, 0].set_xticks(range(len(names)), names, rotation=40 if long else 0, ha="right" if long else "center", fontsize=9)
    if len(models) > 1:
        grid[0, 0].legend(frameon=False, fontsize=8, ncols=2, loc="upper right", bbox_to_anchor=(1, 1.3))
    return _save(figure, path)


def comparison(names: Sequence[str], values: Sequence[Mapping[str, float]], metric: str, path: Path) -> Path:
    """One metric of several runs, with its interval."""
    figure, axes = _figure(7, 0.4 * len(names) + 1.2)
    middle = [v["value"] for v in values]
    reach = [[v["value"] - v["low"] for v in values], [v["high"] - v["value"] for v in values]]
    axes.errorbar(middle, range(len(names)), xerr=reach, fmt="o", color=AFTER, capsize=3)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"{metric}, after training")
    return _save(figure, path)


def size_curve(sizes: Sequence[int], models: Mapping[str, Sequence[float]], title: str, path: Path) -> Path:
    """Entropy in nats against the number of targets, with that of an even distribution.

    Args:
        sizes: numbers of targets, ascending, [n].
        models: ``before`` and perhaps ``after`` -> mean entropies, [n].
        title: what is shown.
        path: file to write.
    """
    import numpy as np

    figure, axes = _figure(7, 3.6)
    for name, values in models.items():
        axes.plot(sizes, values, color=BEFORE if name == "before" else AFTER, marker="o", markersize=3, label=name)
    axes.plot(sizes, np.log(sizes), color=TARGET, linestyle="--", linewidth=1, label="even distribution")
    axes.set(xlabel="number of targets", ylabel="entropy (nats)")
    axes.set_title("\n".join(textwrap.wrap(title, 80)), fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=9)
    return _save(figure, path)
