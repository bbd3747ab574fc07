"""The shipped plain text for control tokens: documents of toned sentences from the tiny world, without labels.

    python scripts/tiny_toned.py --out alignlab/shipped/toned/train.jsonl

A row is a document: {"texts": [its sentences]}.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from tiny_style import tone_sentences

COUNT = 1500


def documents(seed: int, count: int) -> list[list[str]]:
    """The sentences of each document, a pure function of the seed."""
    rng = random.Random(f"toned {seed}")
    return [[sentence.text for sentence in tone_sentences(rng)] for _ in range(count)]


def lines(seed: int, count: int = COUNT) -> str:
    """The documents as JSON lines."""
    return "".join(json.dumps({"texts": texts}) + "\n" for texts in documents(seed, count))


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=COUNT, help="documents")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(lines(args.seed, args.count))


if __name__ == "__main__":
    main()
