"""Write judged answers of the tiny world, as JSON lines: what ships with alignlab, or other draws of the same kind.

    python scripts/tiny_judged.py --out alignlab/shipped/judged
    python scripts/tiny_judged.py --out FOLDER --seed 3 --right 0.4 --rows 1000 --items development

`train.jsonl` has answers on the items that may be trained on, few of them right; `test.jsonl` has instructions on held-out items
(`"split": "test"`), half of them with a wrong answer and its judgment, half with the right one. `wrong` and `reference` say what is
wrong and what would be right: evaluation reads them, training does not. `i_ans` is the right answer, as a refined one.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from tiny_tasks import TASKS, JudgedRow, development_items, judged_row

ROWS, RIGHT, TEST_ROWS = 400, 0.05, 240


def canonical(row: JudgedRow, name: str, *, test: bool) -> dict[str, object]:
    """A row in the form that alignlab reads."""
    made: dict[str, object] = {
        "id": name,
        "task": row.task,
        "instruction": row.instruction,
        "output": row.output,
        "judgment": None if row.satisfactory else row.judgment,
        "reference": row.reference,
        "wrong": [{"start": f.start, "end": f.end, "right": f.right} for f in row.faults],
    }
    if not row.satisfactory:
        made["i_ans"] = row.reference
    return made | ({"split": "test"} if test else {})


def training_rows(seed: int, count: int = ROWS, right: float = RIGHT) -> Iterator[dict[str, object]]:
    """Judged answers, the tasks in turn, every 1/right-th of them right."""
    rng, names = random.Random(f"judged training {seed}"), list(TASKS)
    good = set(rng.sample(range(count), round(right * count)))
    for i in range(count):
        yield canonical(judged_row(rng, names[i % len(names)], float(i not in good), held_out=False), f"{i}", test=False)


def held_out_rows(seed: int, count: int = TEST_ROWS, *, development: bool = False) -> Iterator[dict[str, object]]:
    """Instructions on held-out items, the tasks in turn: a wrong answer, then a right one; no instruction twice.

    With `development` on the quarter of the held-out items on which settings are chosen, else on the others.
    """
    rng, names = random.Random(f"judged test {seed} {development}"), list(TASKS)
    seen: set[str] = set()
    number = 0
    while number < count:
        name = names[number // 2 % len(names)]
        row = judged_row(rng, name, float(number % 2 == 0), held_out=True)
        if (row.item in development_items(name)) == development and row.instruction not in seen:
            seen.add(row.instruction)
            yield canonical(row, f"{name}-{number:03d}", test=True)
            number += 1


def lines(rows: Iterator[dict[str, object]]) -> str:
    """A file's exact content."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main() -> None:
    """Write the two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write them into")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=ROWS, help="answers to train on")
    parser.add_argument("--right", type=float, default=RIGHT, help="share of them that is right")
    parser.add_argument("--test-rows", type=int, default=TEST_ROWS)
    parser.add_argument("--items", choices=["test", "development"], default="test", help="which held-out items")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "train.jsonl").write_text(lines(training_rows(args.seed, args.rows, args.right)), encoding="utf-8")
    test = held_out_rows(args.seed, args.test_rows, development=args.items == "development")
    (args.out / "test.jsonl").write_text(lines(test), encoding="utf-8")


if __name__ == "__main__":
    main()
