"""report: what was asked, what came out, how to repeat it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from alignlab.pipeline import Run
from alignlab.records import read_jsonl, write_text
from alignlab.report import plots
from alignlab.report.document import Block, Code, Heading, Image, Table, Text, markdown, webpage


def report(run: Run) -> list[str]:
    """Write ``report.md``, ``report.html`` and ``plots/``; print the results."""
    results, details = _read(run, "results.json"), _read(run, "details.json")
    environment = _read(run, "environment.json")
    summary = run.config.suite.summary(results, details)
    charts = run.config.suite.charts(details, results, run.path("plots"))
    choices = environment["choices"]
    title = f"{choices['method']} on {choices['data']}, {choices['model']}"
    blocks: list[Block] = [Heading("Results"), summary]
    metrics = list(read_jsonl(run.path("metrics.jsonl"))) if run.trained else []
    if metrics:
        image = plots.curve(metrics, run.path("plots", "training.png"))
        last = metrics[-1]
        floor = f"; its floor is {last['floor']:.4f}" if "floor" in last else ""
        words = f"Loss {metrics[0]['loss']:.4f} at the first step, {last['loss']:.4f} at the last of {len(metrics)}{floor}."
        blocks += [Heading("Training"), Text(words), Image(image, f"Loss against optimizer steps. {words}")]
    blocks += [Heading("Prompts"), *charts]
    blocks += _closing(run, environment)
    write_text(run.path("report.md"), markdown(title, blocks, run.folder))
    write_text(run.path("report.html"), webpage(title, blocks))
    _mirror(run, results, [b.path for b in blocks if isinstance(b, Image)])
    print(f"\n{title}\n\n{summary.plain()}\n\nrun folder  {run.folder}\nreport      {run.path('report.html')}", flush=True)
    return ["report.md", "report.html", "plots"]


def _read(run: Run, name: str) -> Any:
    return json.loads(run.path(name).read_text())


def _closing(run: Run, environment: dict[str, Any]) -> list[Block]:
    """Data, cost, command, environment and configuration."""
    blocks: list[Block] = []
    rows_summary = run.path("rows", "summary.json")
    if rows_summary.exists():
        summary = json.loads(rows_summary.read_text())
        names = list(next(iter(summary.values())))
        table = [[name, *(f"{summary[split][name]:g}" for split in summary)] for name in names]
        blocks += [Heading("Data"), Table(["", *summary], table, "Rows as trained on; lengths in tree nodes.")]
    seconds = [[stage, f"{run.marker(stage)['seconds']:.1f}"] for stage in run.config.stages if run.marker(stage)]
    blocks += [Heading("Time"), Table(["stage", "seconds"], seconds)]
    command = shlex.join(environment["command"])
    blocks += [Heading("How to repeat it"), Code(command)]
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items() if version)
    hardware = ", ".join(environment["gpus"]) or f"{environment['cores']} CPU cores"
    commit = f", commit {environment['commit']}" if environment["commit"] else ""
    blocks.append(Text(f"Python {environment['python']}, {packages}, on {hardware}{commit}. Data digest {environment['data']}."))
    return [*blocks, Heading("Configuration"), Code(OmegaConf.to_yaml(run.config.node, resolve=True).rstrip())]


def _mirror(run: Run, results: dict[str, Any], files: list[Path]) -> None:
    """Results and plots to the tracker."""
    figures = {f"{which}/{name}": v["value"] for name, found in results.items() for which, v in found.items() if "/" not in name}
    run.tracker.summary(figures, [str(path) for path in files])
