"""Do control tokens condition, and do two do it together? Four variants and two baselines on the tiny model's world, five seeds.

    python -m benchmarks.conditioning_study --out benchmarks/results/conditioning_study.json            # ten minutes, two cores
    python -m benchmarks.conditioning_study --out benchmarks/results/conditioning_study.json --tables   # of runs made before

The world (`scripts/tiny_toned.py`): 1,500 documents of one to three sentences in five tones, drawn by the seed, which is that of
the training, too. Every run takes the settings of `python -m alignlab method=conditioning`: the whole model is trained, three
epochs of 16 sentences a step; all labels are those of the shipped word lists. M-B has no control tokens, M-T those of toxicity, M-S
those of sentiment, M-TS both; `filtering` trains on the sentences that are wanted in both attributes alone, `unlikelihood` unlearns
the others, neither with control tokens; `M-TS, 1 %` leaves 1 % of the sentences without tokens as the paper does, not 30 %.

What is reported: mean over the seeds and 95 % interval (Student's t) of the misalignment of 400 completions without a prompt, in
percent, under each condition that the report's tables have; of the perplexity of held-out text, without control tokens and with the
true ones; of the share of distinct bigrams. What was expected before the first run: the joint misalignment of M-TS under both
tokens at least 15 points below that of M-B, M-T and M-S below M-B in their own attribute, intervals apart; perplexity of M-TS
within 10 % of that of M-B.

A model of a million parameters in a synthetic world, labelled by word lists: a demonstration, not the report's experiment.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
SEEDS = (0, 1, 2, 3, 4)
MODELS: dict[str, tuple[str, ...]] = {
    "M-B": ("method.variant=none",),
    "M-T": ("method.variant=tox",),
    "M-S": ("method.variant=sen",),
    "M-TS": ("method.variant=toxsen",),
    "M-TS, 1 %": ("method.variant=toxsen", "data.bare_share=0.01"),
    "filtering": ("method.variant=none", "method.objective=filtering"),
    "unlikelihood": ("method.variant=none", "method.objective=unlikelihood"),
}
TABLES = {
    "toxicity": ("none", "nontoxic", "toxic"),
    "sentiment": ("none", "pos", "neg"),
    "joint": ("none", "nontoxic+pos"),
}
"""attribute -> conditions, as in the report's Tables 2, 4 and 5, and the opposite label"""
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
"""97.5 % quantile of Student's t by degrees of freedom"""

Figures = dict[str, dict[str, float]]


def measure(model: str, seed: int) -> Figures:
    """Train, sample, evaluate: before and after -> metric -> value."""
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(SCRIPTS))
    import torch

    import alignlab
    import tiny_toned

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place, open(os.devnull, "w") as nowhere:
        data = Path(place, "rows.jsonl")
        data.write_text(tiny_toned.lines(seed))
        asked = [
            "method=conditioning",
            *MODELS[model],
            f"data.path={data}",
            f"data.cache={place}/cache",
            f"seed={seed}",
            "suite.samples=400",
            "train.save_every_steps=null",
            f"sample.model={'both' if model == 'M-B' else 'after'}",
            "stages=[prepare,train,sample,evaluate]",
            "tracker=none",
            "hardware=cpu",
            f"run_dir={place}/run",
        ]
        with redirect_stdout(nowhere), redirect_stderr(nowhere):
            run = alignlab.run(asked)
        return {
            which: {name: value[which]["value"] for name, value in run.results.items() if which in value}
            for which in ("before", "after")
        }


def perform(known: dict[str, Figures], out: Path, processes: int) -> None:
    """Run what is not known yet; the file is written after each."""
    waiting = [(model, seed) for seed in SEEDS for model in MODELS if f"{model} seed={seed}" not in known]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(measure, *job): "{} seed={}".format(*job) for job in waiting}
        for count, future in enumerate(as_completed(futures), 1):
            known[futures[future]] = future.result()
            temporary = out.with_suffix(".tmp")
            temporary.write_text(json.dumps(known, indent=1) + "\n")
            temporary.replace(out)
            print(f"{count}/{len(waiting)} {futures[future]}", file=sys.stderr, flush=True)


def cell(values: Sequence[float], scale: float = 100.0, digits: int = 1) -> str:
    """Mean and its 95 % interval."""
    mean = fmean(values)
    half = STUDENT[len(values) - 1] * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    low, high = mean - half, mean + half
    return f"{mean * scale:.{digits}f} [{low * scale:.{digits}f}, {high * scale:.{digits}f}]"


def row(name: str, known: dict[str, Figures], metrics: Sequence[str], which: str, scale: float, digits: int) -> str:
    """A line of a table; a dash for what a model was not asked."""
    runs = [known[f"{name} seed={seed}"][which] for seed in SEEDS if f"{name} seed={seed}" in known]
    cells = [cell([run[m] for run in runs], scale, digits) if runs and all(m in run for run in runs) else "-" for m in metrics]
    return f"| {'untrained' if which == 'before' else name} | " + " | ".join(cells) + " |"


def tables(known: dict[str, Figures]) -> str:
    """The tables, from the runs."""
    lines: list[str] = []

    def add(title: str, header: Sequence[str], metrics: Sequence[str], scale: float, digits: int) -> None:
        lines.extend(["", f"| {title} | " + " | ".join(header) + " |", "| --- |" + " ---: |" * len(header)])
        lines.append(row("M-B", known, metrics, "before", scale, digits))
        lines.extend(row(name, known, metrics, "after", scale, digits) for name in MODELS)

    for attribute, conditions in TABLES.items():
        add(f"misalignment %, {attribute}", conditions, [f"misalignment_{attribute}:{c}" for c in conditions], 100, 1)
    add("held-out text", ("perplexity", "with true tokens"), ("perplexity", "perplexity_true_tokens"), 1, 3)
    add("distinct bigrams %", ("none", "nontoxic+pos"), ("distinct_2:none", "distinct_2:nontoxic+pos"), 100, 1)
    return "\n".join(lines[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON of all runs; those in it are not made again")
    parser.add_argument("--tables", action="store_true", help="only print the tables")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(args.out.read_text()) if args.out.exists() else {}
    if not args.tables:
        perform(known, args.out, args.processes)
    print(tables(known))


if __name__ == "__main__":
    main()
