"""The run that the tests here disturb, and what is compared of it."""

from __future__ import annotations

from pathlib import Path

import alignlab
from alignlab.paths import resolve

NUMBERS = ",".join(str(resolve(f"alignlab:shipped/numbers-1-10/{name}.json")) for name in ("w01", "w02", "w07"))

COMMON = [
    "tracker=none",
    f"data.path=[{NUMBERS}]",
    "train.epochs=12",
    "train.save_every_steps=8",
    "suite.samples=20",
    "suite.bootstrap=20",
    "stages=[prepare,train,sample,evaluate]",
]
"""24 steps, 3 checkpoints, the last 2 kept"""


def outcome(folder: Path) -> dict[str, bytes]:
    """What two runs that are the same leave: name -> content."""
    names = [*folder.glob("adapter/*"), *folder.glob("rows/*"), *(folder / f"{n}.jsonl" for n in ("records", "samples"))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in [*names, folder / "results.json"]}


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in alignlab.RunFolder(folder).metrics]
