"""The token microscope of a run: its page and its plots, as files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alignlab.evaluate.detection import Inspected, from_scores, precision_recall_f1, with_gold
from alignlab.records import Judged, Record, write_text

if TYPE_CHECKING:
    from alignlab.api import RunFolder

SHOWN = 6
"""responses in the picture of tokens"""


def draw(
    models: Mapping[str, Sequence[Inspected]], threshold: float, folder: Path, plots: Path, name: str = "microscope"
) -> list[tuple[Path, str]]:
    """Write ``NAME.html`` into ``folder`` and two pictures into ``plots``; each file with what it shows.

    Args:
        models: ``before`` and perhaps ``after`` -> the same judged responses in the same order, at least one.
        threshold: ratio of probabilities above which a token counts as detected.
        folder: of the page.
        plots: of the pictures.
        name: the page's, and the pictures' beginning.
    """
    from alignlab.report.microscope import microscope
    from alignlab.report.token_plots import detection_plot, tokens_plot

    page = folder / f"{name}.html"
    write_text(page, microscope(models, threshold, "Token microscope"))
    first = next(iter(models.values()))
    written = []
    if with_gold(first):
        qualities = {which: precision_recall_f1(items, threshold) for which, items in models.items()}
        found = "; ".join(
            f"{which} F1 {q.f1:.3f} (precision {q.precision:.3f}, recall {q.recall:.3f})" for which, q in qualities.items()
        )
        detection_plot(models, threshold, plots / f"{name}-detection.png")
        words = f"Detection of the known wrong tokens against the threshold. At {threshold:g}: {found}."
        written.append((plots / f"{name}-detection.png", words))
    tokens_plot(first[:SHOWN], threshold, plots / f"{name}-tokens.png")
    words = f"Judged responses, each token tinted by what the judgment does to its probability ({next(iter(models))} training)."
    written.append((plots / f"{name}-tokens.png", words))
    words = f"{len(first)} judged responses token by token, with a slider for the threshold; a page of its own, beside this report."
    return [*written, (page, words)]


def draw_scores(run: RunFolder, records: Iterable[tuple[int, Record]], threshold: float, plots: Path) -> list[str]:
    """The microscope of a run's ``scores.jsonl``: names of the files written, relative to the run folder."""
    judged = {index: record for index, record in records if isinstance(record, Judged) and not record.satisfactory}
    models = from_scores(run.scores, judged)
    if not models:
        return []
    return [path.relative_to(run.path).as_posix() for path, _ in draw(models, threshold, run.path, plots, "scores-microscope")]
