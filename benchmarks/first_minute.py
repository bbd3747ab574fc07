"""The first minute of a newcomer: how long ``--help`` takes, when the first training step is done, how long the whole demo takes.

python -m benchmarks.first_minute [--rounds 3]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import machine, table


def demo(folder: Path) -> tuple[float, float]:
    """Seconds to the first line of metrics.jsonl, and in all."""
    started, first = time.perf_counter(), 0.0
    command = [sys.executable, "-m", "alignlab", f"run_dir={folder / 'run'}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = folder / "run/metrics.jsonl"
    while process.poll() is None:
        if not first and metrics.exists() and metrics.stat().st_size:
            first = time.perf_counter() - started
        time.sleep(0.05)
    assert process.returncode == 0
    return first, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="counted runs")
    rounds = parser.parse_args().rounds
    figures = []
    for _ in range(rounds):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "alignlab", "--help"], check=True, stdout=subprocess.DEVNULL)
        helped = time.perf_counter() - started
        with tempfile.TemporaryDirectory() as folder:
            figures.append((helped, *demo(Path(folder))))
    columns = list(zip(*figures, strict=True))
    names = ("--help, s", "first training step, s", "whole demo, s")
    print(table(["", "fastest", "slowest"], [[n, f"{min(c):.1f}", f"{max(c):.1f}"] for n, c in zip(names, columns, strict=True)]))
    print(f"\n({machine()}; {rounds} runs)")


if __name__ == "__main__":
    main()
