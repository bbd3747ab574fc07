"""All benchmarks, one after the other."""

from __future__ import annotations

import subprocess
import sys

NAMES = (
    "first_minute",
    "diffuse_pass",
    "cut_pass",
    "sentence_pass",
    "label_pass",
    "sampling",
    "self_sampling",
    "scorer_overhead",
    "checkpoint_cost",
)

for name in NAMES:
    print(f"\n## python -m benchmarks.{name}\n", flush=True)
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
