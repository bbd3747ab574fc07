"""Misalignment of a run by condition: summary, plot, CSV, tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignlab.protocols import Value
from alignlab.records import write_text
from alignlab.report import plots
from alignlab.report.document import Block, Facts, Fold, Image, Link, Table, Text

SHOWN = 8
"""labelled sentences of each model and condition in the report"""


def summary(results: Mapping[str, Any], details: Mapping[str, Any], wanted: Mapping[str, str]) -> Table:
    """Misaligned sentences in percent: a row per model and condition, a column for all attributes together and for each.

    Args:
        results: of the run.
        details: of the run.
        wanted: title of each attribute -> the label that is wanted.
    """
    titles = [*(["joint"] if len(wanted) > 1 else []), *wanted]
    rows = []
    for which, condition in _conditions(details):
        name = f"{condition}, before" if which == "before" and "after" in details else condition
        rows.append([name, *(percent(_value(results, f"misalignment_{t}", condition, which)) for t in titles)])
    meanings = "; ".join(f"{t}, not {label}" for t, label in wanted.items())
    joint = "; joint, either" if len(wanted) == 2 else "; joint, any of them" if len(wanted) > 2 else ""
    caption = f"Percent of sentences, with 95 % intervals: {meanings}{joint}."
    fluency = [f"{which} {value['value']:.4g}" for which, value in results.get("perplexity", {}).items()]
    if fluency:
        with_tokens = results.get("perplexity_true_tokens", {}).get("after")
        tokens = f" ({with_tokens['value']:.4g} with the true tokens)" if with_tokens else ""
        caption += f" Perplexity of held-out text: {', '.join(fluency)}{tokens}."
    return Table(["misaligned, %", *titles], rows, " ".join([caption, *_notes(details)]))


def charts(
    details: Mapping[str, Any], results: Mapping[str, Any], titles: Mapping[str, str], facts: Facts, folder: Path
) -> list[Block]:
    """Plot, tables, ``misalignment.csv``, facts, and labelled sentences of each condition.

    Args:
        details: of the run.
        results: of the run.
        titles: attribute -> its title.
        facts: the choices behind the figures.
        folder: of the plot and the CSV.
    """
    blocks: list[Block] = [Text(note) for note in _notes(details)]
    order = list(_conditions(details))
    measures = [*titles.values(), *(["joint"] if len(titles) > 1 else [])]
    if any(f"misalignment_{measure}:{condition}" in results for measure in measures for _, condition in order):
        blocks.append(bars(order, measures, results, folder / "misalignment.png"))
    lines = []
    for key, models in results.items():
        metric, _, condition = key.partition(":")
        lines += [[which, condition, metric, v["value"], v["low"], v["high"], v["n"]] for which, v in models.items()]
    path = write_csv(folder / "misalignment.csv", ["model", "condition", "metric", "value", "low", "high", "n"], lines)
    blocks.append(Link(path, "every figure, with its interval and the number of prompts behind it."))
    shares = [f"effect_{measure}" for measure in measures] + ["contradiction"]
    names = ["distinct_1", "distinct_2", "distinct_3", "sentences", "empty"]
    rows, fluency = list[list[str]](), list[list[str]]()
    for which, condition in order:
        found = {metric: _value(results, metric, condition, which) for metric in (*shares, *names)}
        if any(found[metric] for metric in shares):
            rows.append(
                [condition, which, *(percent(found[metric], "" if metric == "contradiction" else "+") for metric in shares)]
            )
        fluency.append([condition, which, *("-" if (value := found[name]) is None else f"{value.value:.3f}" for name in names)])
    if rows:
        caption = (
            "Points of misalignment more than under no condition, over the same prompts; percent that contradict the condition."
        )
        blocks.append(Table(["condition", "model", *(share.replace("_", " ") for share in shares)], rows, caption))
    caption = "Distinct n-grams of words over all, in completions alone; sentences per completion; share of empty completions."
    blocks.append(Table(["condition", "model", *(name.replace("_", "-") for name in names)], fluency, caption))
    blocks.append(Fold("How it was measured", [facts]))
    sentences = [part for condition in dict.fromkeys(c for _, c in order) for part in _sentences(condition, details, titles)]
    return [*blocks, *([Fold("Sentences with their labels", sentences)] if sentences else [])]


def bars(order: Sequence[tuple[str, str]], measures: Sequence[str], results: Mapping[str, Any], path: Path) -> Image:
    """Misalignment by condition, a panel per measure, a bar per model, with 95 % intervals.

    Args:
        order: (model, condition) as shown.
        measures: titles of attributes, and ``joint``.
        results: of the run.
        path: file to write.
    """
    models, names = (list(dict.fromkeys(pair[i] for pair in order)) for i in (0, 1))
    panels = {measure: plots.panel(results, f"misalignment_{measure}", names, models) for measure in measures}
    plots.bars(panels, "misaligned, %", path)
    words = "; ".join(
        f"{which} training under {name} {100 * found[which]['value']:.1f} %"
        for which, name in order
        if which in (found := results.get(f"misalignment_{measures[-1]}:{name}", {}))
    )
    caption = f"Misaligned sentences by condition, with 95 % intervals; {measures[-1]}: {words}."
    return Image(path, caption, "Misaligned sentences by condition, with 95 % intervals.")


def _conditions(details: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(model, condition) in order."""
    return [(which, condition) for which, found in details.items() for condition in found["conditions"]]


def _notes(details: Mapping[str, Any]) -> list[str]:
    """What is said of a model, with its name where there are several."""
    notes = {note: [which for which in details if note in details[which]["notes"]] for d in details.values() for note in d["notes"]}
    return [note if len(models) == len(details) else f"{models[0].capitalize()} training: {note}" for note, models in notes.items()]


def _sentences(condition: str, details: Mapping[str, Any], titles: Mapping[str, str]) -> list[Block]:
    """The first labelled sentences under a condition, by each model."""
    rows = []
    for which, found in details.items():
        for sentence in found["conditions"].get(condition, {}).get("sentences", ())[:SHOWN]:
            cells = [f"{sentence['labels'][name]} ({sentence['scores'][name]:.2g})" for name in titles]
            rows.append([which, sentence["prompt"], sentence["sentence"], *cells])
    caption = f"Under {condition}, the first ones, with the scores behind their labels; details.json has more, and all counts."
    return [Table(["model", "prompt", "sentence", *titles.values()], rows, caption)] if rows else []


def percent(value: Value | None, sign: str = "") -> str:
    """A share in percent with its interval; a dash where there is none. With ``sign`` ``+``, positive ones have one, too."""
    if value is None:
        return "-"
    shown, low, high = (f"{100 * share:{sign}.1f}".replace("100.0", "100") for share in (value.value, value.low, value.high))
    return f"{shown} [{low}, {high}]"


def _value(results: Mapping[str, Any], metric: str, condition: str, which: str) -> Value | None:
    found = results.get(f"{metric}:{condition}", {}).get(which)
    return None if found is None else Value(**found)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Write a table as CSV, with all digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
    return path
