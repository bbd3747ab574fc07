"""Record the trajectories of every method anew: python tests/invariant/record.py

Loss and norm of the gradient of 20 steps, on one process in fp32 without dropout, go to trajectories.json. To be run, and the
change explained in its commit, where a curve is meant to become another: another default, another order of the data, another
tiny model, another shipped row. A change that is meant to change no curve must leave the file as it is.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from trained import METHODS, curve, prepare, train

FILE = Path(__file__).with_name("trajectories.json")


def record() -> None:
    """Write the file; a method is a line of losses and one of norms."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for method, words in METHODS.items():
            run = prepare(Path(folder) / method, words)
            train([run])
            losses, norms = zip(*curve(run), strict=True)
            found[method] = {"loss": losses, "grad_norm": norms}
    lines = [
        f"{json.dumps(method)}: {{\n"
        + ",\n".join(f"  {json.dumps(name)}: [{', '.join(f'{v:.8g}' for v in values)}]" for name, values in kinds.items())
        + "\n}"
        for method, kinds in found.items()
    ]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    record()
