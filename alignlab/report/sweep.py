"""What a sweep leaves beside its runs: one table and one plot that compare them, and what their suite makes of them together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignlab.api import RunFolder
from alignlab.config import digest
from alignlab.records import write_json, write_text
from alignlab.report import plots
from alignlab.report.document import Block, Image, Table, flat, markdown


def write_sweep(jobs: Sequence[tuple[Sequence[str], Path, Any]]) -> tuple[list[Table], Path] | None:
    """Write ``table.md``, ``table.json`` and ``plot.png`` into ``runs/sweep-...``.

    Where the suites of all runs are of one class that has ``across(runs, folder)``, the blocks that it returns follow the table in
    ``table.md``: ``runs`` are name and :class:`alignlab.api.RunFolder` of each run with results, ``folder`` is for what it writes.

    Args:
        jobs: overrides, run folder and suite of each run that was finished.

    Returns:
        The table, of the metrics over all prompts after training, the suite's objective first, and those of ``across``; and where
        they stand. None when no run has results.
    """
    common = set.intersection(*(set(overrides) for overrides, _, _ in jobs)) if len(jobs) > 1 else set()
    runs, found, suites = list[tuple[str, RunFolder]](), [], []
    for overrides, folder, suite in jobs:
        path = folder / "results.json"
        if path.exists():
            runs.append((" ".join(o for o in overrides if o not in common) or folder.name, RunFolder(folder)))
            results = json.loads(path.read_text())
            found.append({k: v.get("after", v.get("before")) for k, v in results.items() if _compared(k)})
            suites.append(suite)
    if not found:
        return None
    names = [name for name, _ in runs]
    metrics = [name for name in found[0] if all(name in row for row in found)]
    objective = next((o for suite in suites if (o := getattr(suite, "objective", None)) in metrics), None)
    metrics.sort(key=lambda name: name.partition(":")[0] != objective)
    cells = [[n, *(f"{row[m]['value']:.4g}" for m in metrics)] for n, row in zip(names, found, strict=True)]
    table = Table(["run", *metrics], cells)
    target = Path("runs") / f"sweep-{digest([str(folder) for _, folder, _ in jobs])}"
    write_json(target / "table.json", dict(zip(names, found, strict=True)))
    blocks: list[Block] = [table]
    if metrics:
        shown = objective or metrics[0]
        blocks.append(Image(plots.comparison(names, [row[shown] for row in found], shown, target / "plot.png"), shown))
    if len({type(suite) for suite in suites}) == 1 and hasattr(suites[0], "across"):
        blocks += suites[0].across(runs, target)
    write_text(target / "table.md", markdown("Sweep: after training, means over prompts", blocks, target))
    return [block for block in flat(blocks) if isinstance(block, Table)], target / "table.md"


def _compared(metric: str) -> bool:
    """Means over all prompts and over the held-out ones; those of single prompts and tasks differ in meaning between runs."""
    return "/" not in metric and metric.partition(":")[2] in ("", "held-out")
