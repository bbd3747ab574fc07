"""What checkpoints cost: seconds of one against those of the steps between two of them.

    python -m benchmarks.checkpoint_cost [--saves 5]

Real runs (prepare, train) of method=diffuse with its LoRA: the embedded model, and one of the
shape of GPT-2 small with random weights. Every second step is saved, with its manifest and everything synced to the disk; the
medians of saving and of a step, in the same run, give the share of training time at the default interval. A step is small here,
one prompt of 39 tokens: with more tokens it takes longer, and a checkpoint does not.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import alignlab
from alignlab.train.checkpoint import Checkpoints
from benchmarks.common import machine, table


def measured(folder: Path, saves: int, *model: str) -> tuple[float, float, int, int]:
    """Median seconds of a step and of a checkpoint, its bytes, and the default interval in steps."""
    seconds: list[float] = []
    save = Checkpoints.save

    def timed(*arguments: Any) -> Path:
        started = time.perf_counter()
        path = save(*arguments)
        seconds.append(time.perf_counter() - started)
        return path

    common = ["tracker=none", "stages=[prepare,train]", f"run_dir={folder / 'run'}", *model]
    with contextlib.redirect_stderr(io.StringIO()):
        alignlab.run([*common, "stages=[prepare]"])
        interval = alignlab.RunFolder(folder / "run").config["train"]["save_every_steps"]
        Checkpoints.save = timed  # type: ignore[method-assign]
        try:
            run = alignlab.run([*common, f"train.max_steps={2 * saves}", "train.save_every_steps=2", "overwrite=true"])
        finally:
            Checkpoints.save = save  # type: ignore[method-assign]
    size = sum(path.stat().st_size for path in (run.path / f"checkpoints/step-{2 * saves}").iterdir())
    return median(row["seconds"] for row in run.metrics[1:]), median(seconds), size, interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saves", type=int, default=5, help="checkpoints of each run")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=".") as name:
        large = ["model=gpt2", "model.weights=random", "train.lora.targets=all-linear", "train.epochs=10"]
        for title, model in {"embedded model": ["train.epochs=10"], "GPT-2 small, random weights": large}.items():
            step, save, size, interval = measured(Path(name, title.split()[0]), options.saves, *model)
            rows.append([title, f"{step * 1e3:.0f}", f"{save * 1e3:.1f}", f"{size / 2**20:.1f}", f"{save / (interval * step):.2%}"])
    print(table(["model", "a step, ms", "a checkpoint, ms", "MiB", f"share of {interval} steps"], rows))
    print(f"\n{machine()}; medians of {options.saves} checkpoints and {2 * options.saves - 1} steps, in the folder where this ran.")


if __name__ == "__main__":
    main()
