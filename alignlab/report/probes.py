"""What probes measured while training: curves, and a token's neighbours."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignlab.report import plots
from alignlab.report.document import Block, Image, Table

OF_TOKEN = re.compile(r"(?s)(.+)/(similarity|similarity_chance|nearest)")
"""figures of the probe of a new token, whose name may hold a slash"""

WORDS = {
    "important": ("Loss of important and of other tokens, and of new tokens in prompts", "nats per token"),
    "gradient": ("Cosine between the gradients of downstream and diverse rows", "cosine"),
}
"""probe -> what it measures, and the unit"""

FIGURES = {
    "nll": "important tokens",
    "other_nll": "other tokens",
    "similarity": "to the instruction it stands for",
    "similarity_chance": "of an average token to that instruction",
}
"""figure -> what it is called"""


def split(name: str) -> tuple[str, str] | None:
    """Probe and figure of a metric's name; None where it is no probe's."""
    of_token = OF_TOKEN.fullmatch(name)
    if of_token:
        return of_token[1], of_token[2]
    probe, slash, figure = name.partition("/")
    return (probe, figure) if slash and probe and figure else None


def probe_blocks(metrics: Sequence[Mapping[str, Any]], folder: Path) -> list[Block]:
    """A plot for each probe, and each token's neighbours when first, halfway and last looked at.

    Args:
        metrics: of each optimizer step, with a probe's figures, numbers or words, under ``PROBE/FIGURE`` where it measured.
        folder: of the plots.
    """
    names = list(dict.fromkeys(name for row in metrics for name in row))
    probes: dict[str, dict[str, list[tuple[int, Any]]]] = {}
    for name in names:
        place = split(name)
        known = [(int(row["step"]), row[name]) for row in metrics if row.get(name) is not None]
        if place is not None and known:
            probes.setdefault(place[0], {})[place[1]] = known
    blocks: list[Block] = []
    rows = []
    for number, (probe, figures) in enumerate(probes.items()):
        lines = {figure: known for figure, known in figures.items() if not any(isinstance(value, str) for _, value in known)}
        for part, some in enumerate(_panels(lines)):
            blocks.append(_plot(probe, some, folder / f"probe-{number}{'b' * part}.png"))
        for figure, known in figures.items():
            chosen = dict.fromkeys((0, (len(known) - 1) // 2, len(known) - 1)) if figure not in lines else ()
            rows += [[probe, str(known[i][0]), str(known[i][1])] for i in chosen]
    if rows:
        caption = "Nearest tokens in the input embedding, with the cosine of each."
        blocks.append(Table(["token", "step", "nearest"], rows, caption))
    return blocks


def _panels(lines: Mapping[str, list[tuple[int, float]]]) -> list[dict[str, list[tuple[int, float]]]]:
    """The curves of a probe by plot: losses of tokens that are only read are far above those of answers."""
    read = [name for name in lines if name not in FIGURES] if "nll" in lines else []
    parts = [{name: known for name, known in lines.items() if (name in read) == wanted} for wanted in (False, True)]
    return [part for part in parts if part]


def _plot(probe: str, lines: Mapping[str, Sequence[tuple[int, float]]], path: Path) -> Image:
    figure, axes = plots._figure(5.6, 3.2)
    of_token = set(lines) <= {"similarity", "similarity_chance"}
    title, unit = (f"Cosine of the input embedding of {probe}", "cosine") if of_token else WORDS.get(probe, (probe, ""))
    said = []
    for (name, known), style in zip(lines.items(), ("-", "--", ":", "-.") * len(lines), strict=False):
        label = FIGURES.get(name, f"{name} in prompts" if probe == "important" else name)
        look = {"marker": "." if len(known) < 20 else None, "linewidth": 1.2, "label": label.replace("$", r"\$")}
        axes.plot(*zip(*known, strict=True), style, **look)
        (first, then), (last, now) = known[0], known[-1]
        said.append(f"{label} {then:.3g} at step {first}, {now:.3g} at step {last}")
    if unit == "nats per token" and all(value > 0 for known in lines.values() for _, value in known):
        axes.set_yscale("log")
    if unit == "cosine":
        axes.axhline(0, color=plots.BEFORE, linewidth=0.8)
    axes.set(xlabel="optimizer step", ylabel=unit)
    axes.set_title("\n".join(textwrap.wrap(title, 76)).replace("$", r"\$"), fontsize=9, loc="left")
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=9)
    return Image(plots._save(figure, path), f"{title}, against optimizer steps: {'; '.join(said)}.", f"{title}: {'; '.join(said)}.")
