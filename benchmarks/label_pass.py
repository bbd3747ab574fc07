"""Labelling and packing: how long ``prepare`` takes over plain text with the paper's steps, and how much memory.

python -m benchmarks.label_pass [--sentences 50000]

Synthetic documents in the form of pile-detoxify (sentences, a toxicity score of each, an origin), of the paper's lengths: 31 tokens
a sentence on average, 64 at most. They are cleaned, labelled by VADER, drawn from, tokenized and written as rows, in a process of
its own. A second run finds the labels. To reach, at 800,000 sentences on two cores: 10 minutes, 2 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np

from alignlab.paths import resolve
from benchmarks.common import machine, table

PER_DOCUMENT = 20
PAPER = 800_000


def words() -> list[str]:
    """What the tiny model's tokenizer takes for one token each, so that words are about tokens."""
    vocabulary = json.loads(Path(resolve("alignlab:models/tiny/tokenizer.json")).read_text())["model"]["vocab"]
    return sorted(token[1:] for token in vocabulary if token[0] == "Ġ" and token[1:].isalpha())


def write(path: Path, count: int) -> float:
    """A file of ``count`` sentences; their mean number of words."""
    random, known = np.random.default_rng(0), np.array(words())
    lengths = np.clip(random.gamma(4.0, 27 / 4, count), 10, 60).astype(int)
    remaining = iter(range(count))
    with path.open("w") as file:
        while document := list(islice(remaining, PER_DOCUMENT)):
            texts = [" ".join(random.choice(known, lengths[i])) + "." for i in document]
            scores = (10 ** random.uniform(-3.5, -1, len(texts))).tolist()
            file.write(json.dumps({"texts": texts, "scores": scores, "meta": {"pile_set_name": "Pile-CC"}}) + "\n")
    return float(lengths.mean())


def prepare(folder: Path) -> dict[str, float]:
    """Seconds and MiB of the stage, from what it leaves behind."""
    choices = ["method=conditioning", "data=pile-detoxify", "model=tiny", "stages=[prepare]", "overwrite=true"]
    choices += [f"data.path={folder}/text.jsonl", "data.files=null", "data.share=null", "data.test.balanced=false"]
    choices += [f"data.cache={folder}/cache", f"run_dir={folder}/run"]
    subprocess.run([sys.executable, "-m", "alignlab", *choices], check=True)
    return json.loads((folder / "run/done/prepare.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=50_000)
    count = parser.parse_args().sentences
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mean = write(folder / "text.jsonl", count)
        for what in ("labels and rows", "rows alone"):
            left = prepare(folder)
            seconds = left["seconds"]
            whole = PAPER / count * seconds / 60
            rows.append([what, f"{seconds:.1f}", f"{count / seconds:.0f}", f"{whole:.1f}", f"{left['peak_mib']['resident']:.0f}"])
    print(table(["", "seconds", "sentences/s", f"minutes for {PAPER}", "peak, MiB"], rows))
    print(f"\n{count} sentences of {mean:.1f} words on average ({machine()}).")


if __name__ == "__main__":
    main()
