"""Pictures of what a judgment does to the tokens of responses, as PNG files, and the tints they share with the microscope."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from alignlab.evaluate.detection import THRESHOLDS, Inspected, curve, detected, log_ratios
from alignlab.report import plots

METRICS = ("precision", "recall", "F1")

STEPS, OPACITY = (1.05, 1.2, 1.5, 2.0, 4.0), (0.15, 0.3, 0.45, 0.6, 0.75)
"""ratio, up or down, from which on a token is tinted; how strongly"""
WARM, COOL = "#c4560e", plots.AFTER
"""tint of a token that is likelier, less likely with the judgment: apart in any kind of colour vision, on light and dark paper"""

MOST_PLOTTED, MOST_LINES, LINE = 8, 6, 92
"""responses in a picture, lines of each, characters of a line"""
CHARACTER, ROW, POINTS = 0.0753, 0.21, 9
"""inches of a character and a line of text, and its size; the font is monospaced"""
_FONT: dict[str, Any] = {"family": "DejaVu Sans Mono", "fontsize": POINTS, "va": "center", "parse_math": False}


def shade(log_ratio: float) -> int:
    """The tint of a token, -5 (far less likely with the judgment) to 5; 0 within a few percent, or if the ratio is no number."""
    if math.isnan(log_ratio):
        return 0
    step = bisect_right([math.log(ratio) for ratio in STEPS], abs(log_ratio))
    return step if log_ratio > 0 else -step


def rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue of ``#rrggbb``, 0 to 255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def visible(text: str) -> str:
    """Text without what a screen hides or obeys: control characters as their pictures, marks of direction by their number.

    Line breaks and tabs stay, and so do the joiners that emoji and some scripts are spelled with.
    """
    pictured = re.sub(r"[\x00-\x08\x0b-\x1f]", lambda found: chr(0x2400 + ord(found[0])), text.replace("\x7f", "\u2421"))
    hidden = r"[\x80-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]"
    return re.sub(hidden, lambda found: f"⟨U+{ord(found[0]):04X}⟩", pictured)


def parted(piece: str) -> tuple[str, str]:
    """A token's spaces in front, and the rest as it is shown; one without a letter has a mark to be seen and touched by."""
    rest = piece.lstrip(" ")
    if piece and not rest:
        return "", "␣" * len(piece)
    return piece[: len(piece) - len(rest)], visible(rest).replace("\n", "↵\n").replace("\t", "⇥\t") or "∅"


def detection_plot(models: Mapping[str, Sequence[Inspected]], threshold: float, path: Path) -> Path:
    """Precision, recall and F1 against the threshold, before and after; ValueError where a model has no gold tokens.

    Args:
        models: ``before`` and perhaps ``after`` -> responses.
        threshold: the one in use; a line marks it.
        path: PNG file to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    stops = sorted({*THRESHOLDS, threshold})
    curves = {name: curve(items, stops) for name, items in models.items()}
    ticks = [tick for tick in (1, 1.5, 2, 3, 5) if stops[0] <= tick <= stops[-1]]
    figure, grid = plt.subplots(1, 3, figsize=(9.2, 2.9), layout="constrained", sharey=True)
    for column, (axes, metric) in enumerate(zip(grid, METRICS, strict=True)):
        for name, values in curves.items():
            first = name == "before"
            drawn = {"color": plots.BEFORE if first else plots.AFTER, "linestyle": "--" if first else "-"}
            axes.plot(stops, [quality[column] for quality in values], label=name, linewidth=1.6, **drawn)
        axes.axvline(threshold, color=plots.TARGET, linestyle=":", linewidth=1, label=f"in use: {threshold:g}")
        axes.set(xscale="log", ylim=(-0.02, 1.02), xlabel="threshold")
        axes.minorticks_off()
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_title(metric, fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    return plots._save(figure, path)


def tokens_plot(items: Sequence[Inspected], threshold: float, path: Path) -> Path:
    """The first responses with their tokens tinted; detected ones boxed, wrong ones underlined.

    At most ``MOST_PLOTTED`` responses, and ``MOST_LINES`` lines of each.

    Args:
        items: responses.
        threshold: of detection.
        path: PNG file to write.
    """
    drawn: list[tuple[int, list[_Cell]]] = []
    rows = 2  # the legend, and a line below it
    for item in items[:MOST_PLOTTED]:
        cells = _cells(item, threshold)
        drawn.append((rows, cells))
        rows += 4 + max(cell.row for cell in cells)
    width, height = (LINE + 2) * CHARACTER, rows * ROW
    figure, axes = plots._figure(width, height)
    figure.set_layout_engine("none")
    axes.set_position([CHARACTER / width, 0, LINE * CHARACTER / width, 1])
    axes.set(xlim=(0, LINE), ylim=(rows, 0))
    axes.axis("off")
    known = any(item.gold for item in items[:MOST_PLOTTED])
    for cell in _legend(threshold, known):
        cell.draw(axes, 0)
    for item, (top, cells) in zip(items, drawn, strict=False):
        for row, text in enumerate((item.instruction, item.judgment)):
            line = _drawable(" ".join(visible(text).split()))
            line = line if len(line) <= LINE else line[: LINE - 1] + "…"
            axes.text(0, top + row + 0.5, line, color="#57606a", style="italic" if row else "normal", **_FONT)
        for cell in cells:
            cell.draw(axes, top + 2)
    return plots._save(figure, path)


@dataclass(frozen=True)
class _Cell:
    """Characters of a token on one line of a picture: where, and how they look."""

    row: int
    column: int
    text: str
    tint: int
    found: bool = False
    wrong: bool = False

    def draw(self, axes: Any, top: int) -> None:
        """Onto axes whose units are a character and a line."""
        from matplotlib.patches import Rectangle

        x, y, width = self.column, top + self.row, len(self.text)
        if self.tint:
            colour = [part / 255 for part in rgb(WARM if self.tint > 0 else COOL)]
            axes.add_patch(Rectangle((x, y + 0.06), width, 0.8, color=(*colour, OPACITY[abs(self.tint) - 1]), linewidth=0))
        axes.text(x, y + 0.48, self.text, color=plots.TARGET, **_FONT)
        if self.wrong:
            axes.plot([x + 0.15, x + width - 0.15], [y + 1] * 2, color=plots.TARGET, linewidth=1.8)
        if self.found:
            axes.add_patch(Rectangle((x, y + 0.06), width, 0.8, fill=False, edgecolor=plots.TARGET, linewidth=1.3, clip_on=False))


def _cells(item: Inspected, threshold: float) -> list[_Cell]:
    """The tokens of a response from line to line; where it is cut, a mark."""
    cells: list[_Cell] = []
    row = column = 0
    gold = item.gold or [0] * len(item.pieces)
    for piece, ratio, found, wrong in zip(item.pieces, log_ratios(item), detected(item, threshold), gold, strict=True):
        space, shown = parted(piece)
        text = _drawable(shown.replace("\n", "").replace("\t", ""))[:LINE]
        column += len(space)
        if column + len(text) > LINE:
            row, column = row + 1, 0
        if row == MOST_LINES:
            return [*cells, _Cell(row - 1, LINE, "…", 0)]
        cells.append(_Cell(row, column, text, shade(ratio), found, bool(wrong)))
        column += len(text)
        if "\n" in piece:
            row, column = row + 1, 0
    return cells


def _legend(threshold: float, known: bool) -> list[_Cell]:
    """What the marks mean, on one line."""
    cells, column = [], 0

    def add(text: str, tint: int = 0, **marks: bool) -> None:
        nonlocal column
        cells.append(_Cell(0, column, text, tint, **marks))
        column += len(text)

    add("less likely ")
    for tint in range(-5, 6):
        add("  ", tint)
    add(" likelier with the judgment   ")
    add("detected", found=True)
    add(f" above {threshold:g}   ")
    if known:
        add("wrong", wrong=True)
    return cells


@cache
def _glyphs() -> frozenset[int]:
    """The characters that the font of the pictures has."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans Mono")).get_charmap())


def _drawable(text: str) -> str:
    """Text with a box for each character that the font lacks."""
    return "".join(letter if ord(letter) in _glyphs() else "□" for letter in text)
