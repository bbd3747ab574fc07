"""The run that the tests here disturb, and what is compared of it."""

from __future__ import annotations

from pathlib import Path

import alignlab

COMMON = [
    "tracker=none",
    "train.epochs=10",
    "train.save_every_steps=20",
    "suite.samples=20",
    "stages=[prepare,train,sample,evaluate]",
]
"""60 steps, 3 checkpoints, the last 2 kept"""


def outcome(folder: Path) -> dict[str, bytes]:
    """What two runs that are the same leave: name -> content."""
    names = [*folder.glob("adapter/*"), *folder.glob("rows/*"), *(folder / f"{n}.jsonl" for n in ("records", "samples"))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in [*names, folder / "results.json"]}


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in alignlab.RunFolder(folder).metrics]


def rubbish(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if ".tmp" in path.name or path.name.endswith(".old")]
