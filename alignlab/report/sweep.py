"""What a sweep leaves beside its runs: one table and one plot that compare them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from alignlab.config import digest
from alignlab.records import write_json, write_text
from alignlab.report import plots
from alignlab.report.document import Table, markdown


def write_sweep(jobs: Sequence[tuple[Sequence[str], Path, str | None]]) -> tuple[Table, Path] | None:
    """Write ``table.md``, ``table.json`` and ``plot.png`` into ``runs/sweep-...``.

    Args:
        jobs: overrides, run folder and the suite's objective of each run that was finished.

    Returns:
        The table, of the metrics over all prompts after training, the objective first, or None when no run has results; and
        where it stands.
    """
    common = set.intersection(*(set(overrides) for overrides, _, _ in jobs)) if len(jobs) > 1 else set()
    names, found = [], []
    for overrides, folder, _ in jobs:
        path = folder / "results.json"
        if path.exists():
            names.append(" ".join(o for o in overrides if o not in common) or folder.name)
            results = json.loads(path.read_text())
            found.append({k: v.get("after", v.get("before")) for k, v in results.items() if _compared(k)})
    if not found:
        return None
    metrics = [name for name in found[0] if all(name in row for row in found)]
    objective = next((objective for *_, objective in jobs if objective in metrics), None)
    metrics.sort(key=lambda name: name.partition(":")[0] != objective)
    cells = [[n, *(f"{row[m]['value']:.4g}" for m in metrics)] for n, row in zip(names, found, strict=True)]
    table = Table(["run", *metrics], cells)
    target = Path("runs") / f"sweep-{digest([str(folder) for _, folder, _ in jobs])}"
    write_json(target / "table.json", dict(zip(names, found, strict=True)))
    shown = objective or metrics[0]
    plots.comparison(names, [row[shown] for row in found], shown, target / "plot.png")
    text = markdown("Sweep: after training, means over prompts", [table], target)
    write_text(target / "table.md", f"{text}\n![{shown}](plot.png)\n")
    return table, target / "table.md"


def _compared(metric: str) -> bool:
    """Means over all prompts and over the held-out ones; those of single prompts and tasks differ in meaning between runs."""
    return "/" not in metric and metric.partition(":")[2] in ("", "held-out")
