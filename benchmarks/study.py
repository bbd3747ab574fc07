"""Studies: runs over seeds in processes of their own, kept in one JSON file, and means with intervals over the seeds."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from alignlab.api import RunFolder

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
"""97.5 % quantile of Student's t by degrees of freedom"""

Figures = dict[str, dict[str, Any]]
"""before and after -> metric -> value"""


def alone() -> None:
    """Make this process one of several that share the machine, with the world's scripts importable."""
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(SCRIPTS))
    import torch

    torch.set_num_threads(1)


def run(asked: Sequence[str]) -> tuple[Figures, RunFolder]:
    """One run of alignlab, in silence."""
    import alignlab

    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        done = alignlab.run(list(asked))
    figures = {w: {name: value[w]["value"] for name, value in done.results.items() if w in value} for w in ("before", "after")}
    return figures, done


def perform(
    measure: Callable[[str, int], Figures], jobs: Sequence[tuple[str, int]], known: dict[str, Figures], out: Path, processes: int
) -> None:
    """Run what is not known yet; the file is written after each."""
    waiting = [job for job in jobs if key(*job) not in known]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(measure, *job): key(*job) for job in waiting}
        for count, future in enumerate(as_completed(futures), 1):
            known[futures[future]] = future.result()
            temporary = out.with_suffix(".tmp")
            temporary.write_text(json.dumps(known, indent=1) + "\n")
            temporary.replace(out)
            print(f"{count}/{len(waiting)} {futures[future]}", file=sys.stderr, flush=True)


def key(name: str, seed: int) -> str:
    """What a run is called in the file."""
    return f"{name} seed={seed}"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval."""
    half = STUDENT[len(values) - 1] * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return fmean(values), half


def cell(values: Sequence[float], scale: float = 100.0, digits: int = 1) -> str:
    """Mean and its 95 % interval."""
    mean, half = interval(values)
    return f"{mean * scale:.{digits}f} [{(mean - half) * scale:.{digits}f}, {(mean + half) * scale:.{digits}f}]"


def line(title: str, runs: Sequence[Mapping[str, Any]], metrics: Sequence[str], scale: float = 100.0, digits: int = 1) -> str:
    """A line of a table; a dash for what was not measured."""
    cells = [cell([run[m] for run in runs], scale, digits) if runs and all(m in run for run in runs) else "-" for m in metrics]
    return f"| {title} | " + " | ".join(cells) + " |"


def of(known: Mapping[str, Figures], name: str, seeds: Sequence[int], which: str) -> list[Mapping[str, Any]]:
    """The figures of a kind of run, seed by seed."""
    return [known[key(name, seed)][which] for seed in seeds if key(name, seed) in known]


def main(
    doc: str | None,
    measure: Callable[[str, int], Figures],
    names: Sequence[str],
    seeds: Sequence[int],
    tables: Callable[[dict[str, Figures], Path], str],
) -> None:
    """The command line of a study."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON of all runs; those in it are not made again")
    parser.add_argument("--tables", action="store_true", help="only print the tables")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(args.out.read_text()) if args.out.exists() else {}
    if not args.tables:
        perform(measure, [(name, seed) for seed in seeds for name in names], known, args.out, args.processes)
    print(tables(known, args.out))
