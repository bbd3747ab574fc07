"""report: what was asked, what came out, how to repeat it."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from alignlab.pipeline import Run
from alignlab.records import write_text
from alignlab.report.document import Image, flat, markdown
from alignlab.report.run import Report
from alignlab.report.webpage import webpage


def report(run: Run) -> list[str]:
    """Write ``report.md``, ``report.html`` and ``plots/``; print the results."""
    found = Report(run)
    blocks = found.blocks()
    write_text(run.path("report.md"), markdown(found.title, blocks, run.folder))
    write_text(run.path("report.html"), webpage(found.title, blocks, run.folder))
    _mirror(run, found.results, [block.path for block in flat(blocks) if isinstance(block, Image)])
    page = run.path("report.html")
    caption = textwrap.fill(found.summary.caption, 80)
    print(f"\n{found.title}\n\n{found.summary.plain()}\n{caption}\n\nrun folder  {run.folder}\nreport      {page}", flush=True)
    return ["report.md", "report.html", "plots"]


def _mirror(run: Run, results: dict[str, Any], files: list[Path]) -> None:
    """Results and plots to the tracker."""
    figures = {f"{which}/{name}": v["value"] for name, found in results.items() for which, v in found.items() if "/" not in name}
    run.tracker.summary(figures, [str(path) for path in files])
