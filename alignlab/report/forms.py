"""Forms of answers: of a run by kind of test row, and of a sweep against the share of diverse data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignlab.api import RunFolder
from alignlab.protocols import Value
from alignlab.report import plots
from alignlab.report.document import Block, Fold, Image, Link, Table, Text, cut
from alignlab.report.groups import Group, draw, grouped, words, write_figures
from alignlab.report.misalignment import percent

SHOWN, LONGEST = 5, 300
"""examples of each kind and model in the report, and characters of their texts"""

RATIO = "data.diverse_ratio"
"""what figures are drawn against where runs of a sweep differ in it"""

HEADLINE = ("balanced_accuracy", "retention", "retention_nll")
"""metrics over several kinds"""


def summary(results: Mapping[str, Any], changes: Mapping[str, Value], details: Mapping[str, Any], words: str) -> Table:
    """Every metric before and after training and its change; those of single reference answers stand in the charts.

    Args:
        results: of the run.
        changes: of each metric, where there is one.
        details: of the run.
        words: of the caption.
    """
    models = list(details)
    rows = []
    for name, found in results.items():
        if "=" not in name:
            values = [Value(**found[which]) if which in found else None for which in models]
            change = [_shown(name, changes.get(name), "+", 2)] if changes else []
            rows.append([name, *(_shown(name, value, digits=2) for value in values), *change])
    caption = ". ".join(filter(None, ["In percent, retention_nll in nats per token, with 95 % intervals", words])) + "."
    return Table(["", *models, *(["change"] if changes else [])], rows, " ".join([caption, *_notes(details)]))


def charts(details: Mapping[str, Any], results: Mapping[str, Any], folder: Path) -> list[Block]:
    """Bars by kind, right answers by reference, which form came out where which was wanted, and examples.

    Args:
        details: of the run.
        results: of the run.
        folder: of the plot.
    """
    blocks: list[Block] = [Text(note) for note in _notes(details)]
    kinds = list(dict.fromkeys(kind for found in details.values() for kind in found["kinds"]))
    if not kinds:
        return blocks
    panels = {title: plots.panel(results, metric, kinds, list(details)) for metric, title in TITLES.items()}
    caption = "Answers of the wanted form, and those of them that are right, by kind of test row, with 95 % intervals."
    said = "; ".join(
        f"{which} training {kind} {100 * value['value']:.1f} %"
        for which, values in panels[TITLES["format"]].items()
        for kind, value in values.items()
    )
    path = plots.bars(panels, "answers, %", folder / "forms.png")
    blocks.append(Image(path, f"{caption} Of the wanted form: {said}.", caption))
    blocks += _by_class(results, list(details))
    rows = [row for kind in kinds for row in _confusion(kind, details)]
    words = "Answers by the form of the reference; on the right, those of another form by their own, most frequent first."
    blocks.append(Fold("Which form came out", [Table(["kind", "wanted", "model", "answers", "as wanted", "instead"], rows, words)]))
    return [*blocks, Fold("Answers, the wrong ones first", [_examples(kind, details) for kind in kinds])]


TITLES = {"format": "of the wanted form", "task": "of the wanted form, and right"}
"""panels of the plot by metric"""


def _by_class(results: Mapping[str, Any], models: Sequence[str]) -> list[Block]:
    """Right answers where the reference can say few things, by what it says."""
    rows = []
    for name, found in results.items():
        if "=" in name:
            kind, said = name.partition(":")[2].split("=", 1)
            values = [Value(**found[which]) if which in found else None for which in models]
            count = max(value.n for value in values if value is not None)
            rows.append([kind, said, str(count), *map(percent, values)])
    words = "Percent right by what the reference says; balanced_task is their mean."
    return [Table(["kind", "reference", "rows", *models], rows, words)] if rows else []


def _confusion(kind: str, details: Mapping[str, Any]) -> list[list[str]]:
    """A row per wanted form and model."""
    counts = {which: found["kinds"].get(kind, {"forms": {}})["forms"] for which, found in details.items()}
    rows = []
    for wanted in dict.fromkeys(wanted for forms in counts.values() for wanted in forms):
        for which, came in ((which, forms.get(wanted, {})) for which, forms in counts.items()):
            others = ", ".join(f"{form} {count}" for form, count in came.items() if form != wanted)
            rows.append([kind, wanted, which, str(sum(came.values())), str(came.get(wanted, 0)), others or "-"])
    return rows


def _examples(kind: str, details: Mapping[str, Any]) -> Table:
    rows = []
    for which, found in details.items():
        for example in found["kinds"].get(kind, {}).get("examples", ())[:SHOWN]:
            obeyed = example["given"] == example["wanted"]
            verdict = f"{example['given']}, not {example['wanted']}" if not obeyed else "right" if example["right"] else "wrong"
            texts = [_middle(example["request"]), cut(example["reference"], LONGEST), cut(example["answer"], LONGEST)]
            rows.append([which, verdict, *texts])
    return Table(["model", "answer is", "request", "reference", "answer"], rows, f"{kind}; details.json has more.")


def _middle(text: str) -> str:
    """A text without its middle: what form is wanted often stands at its end."""
    left_out = len(text) - LONGEST
    return text if left_out <= 0 else f"{text[: LONGEST // 3]} … [{left_out} characters] … {text[-2 * LONGEST // 3 :]}"


def _notes(details: Mapping[str, Any]) -> list[str]:
    """What is said of the models, each once."""
    return list(dict.fromkeys(note for found in details.values() for note in found["notes"]))


def _shown(metric: str, value: Value | None, sign: str = "", digits: int = 3) -> str:
    if value is None or not _in_nats(metric):
        return percent(value, sign)
    form = f"{sign}.{digits}f"
    return f"{value.value:{form}} [{value.low:{form}}, {value.high:{form}}]"


def _in_nats(metric: str) -> bool:
    """Whether a metric is no share but nats per token."""
    return metric == "retention_nll" or metric.startswith("nll:")


def across(runs: Sequence[RunFolder], folder: Path) -> list[Block]:
    """Tables of all figures, curves against the share of diverse data where runs differ in it, and a CSV.

    Args:
        runs: with results; of the trained model, or of the untrained one where nothing was trained.
        folder: of the CSV and the plot.
    """
    found = grouped(runs, lambda metric: (0.0, math.inf if _in_nats(metric) else 1.0), [RATIO, "data.diverse_source"])
    every = list(dict.fromkeys(name for group in found for name in group.figures))
    seeds = "; over seeds the mean, with Student's t" if any(group.runs > 1 for group in found) else ""
    tables: list[Block] = []
    captions = {"": "In percent, retention_nll in nats per token"} | {name: f"Percent {title}" for name, title in TITLES.items()}
    captions["nll"] = "Nats per token of references of which there may be many"
    for metric, title in captions.items():
        own = [n for n in every if (n.partition(":")[0] == metric and "=" not in n if metric else n in HEADLINE)]
        if own:
            rows = [[group.name, *(_shown(name, group.figures.get(name)) for name in own)] for group in found]
            header = [metric, *(name.partition(":")[2] or name for name in own)]
            tables.append(Table(header, rows, f"{title}, with 95 % intervals{seeds}."))
    path = write_figures(folder / "forms.csv", (([], group) for group in found), [])
    return [*tables, *_curves(runs, found, every, folder / "forms-ratios.png"), Link(path, "every figure, with its interval.")]


def _curves(runs: Sequence[RunFolder], found: Sequence[Group], every: Sequence[str], path: Path) -> list[Image]:
    """Figures against the share of diverse data, a panel per figure and a line per setting beside it."""
    sizes = sorted({size for group in found if (size := group.number(RATIO)) is not None})
    shown = [*(name for name in HEADLINE if name in every), *(name for name in every if name.startswith(("format:", "nll:")))]
    if len(sizes) < 2 or not shown:
        return []
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(2.6 * columns, 1.9 * rows + 0.5), layout="constrained", squeeze=False)
    said = []
    for axes, name in zip(grid.flat, shown, strict=False):
        lines: dict[str, dict[float, Value]] = {}
        for group in found:
            size = group.number(RATIO)
            if size is not None and name in group.figures:
                lines.setdefault(" ".join(words(group.settings, [RATIO])), {})[size] = group.figures[name]
        nats = _in_nats(name)
        figures = draw(axes, lines, 1 if nats else 100, 3 if nats else 1)
        said += [f"{name}: {figures}"] if name in HEADLINE else []
        untrained = _untrained(runs, name)
        if untrained is not None:
            axes.axhline(untrained * (1 if nats else 100), color=plots.BEFORE, linestyle="--", linewidth=1, label="before training")
        axes.set_title(f"{name}, {'nats per token' if nats else '%'}", fontsize=8, loc="left")
        if not nats:
            axes.set_ylim(-4, 104)
        _ratios(axes, sizes)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_visible(axes.has_data())
    handles, labels = grid[0, 0].get_legend_handles_labels()
    named = [(handle, label) for handle, label in zip(handles, labels, strict=True) if label]
    if named:
        figure.legend(*zip(*named, strict=True), loc="outside upper right", ncols=3, frameon=False, fontsize=8)
    figure.supxlabel(RATIO, fontsize=8)
    caption = f"Against {RATIO}, diverse dialogues as a multiple of the downstream ones, with 95 % intervals."
    return [Image(plots._save(figure, path), f"{caption} {'; '.join(said)}.", caption)]


def _ratios(axes: Any, sizes: Sequence[float]) -> None:
    """A logarithmic axis where ratios are far apart, with a place for 0."""
    least, most = min(size for size in sizes if size > 0), max(sizes)
    if most > 5 * least:
        if sizes[0] == 0:
            axes.set_xscale("symlog", linthresh=least, linscale=0.5)
        else:
            axes.set_xscale("log")
        axes.set_xlim(sizes[0] / 1.3 or -0.3 * least, 1.3 * most)
    axes.minorticks_off()
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.tick_params(labelsize=7)


def _untrained(runs: Sequence[RunFolder], metric: str) -> float | None:
    """Mean before training; None where not every run was asked then, or the runs have different models."""
    found = [run.results[metric]["before"]["value"] for run in runs if "before" in run.results.get(metric, {})]
    if len(found) < len(runs) or any(run.config["model"] != runs[0].config["model"] for run in runs):
        return None
    return math.fsum(found) / len(found)
