"""Write the prompt files that ship with alignlab: targets and wordings of the tiny world, for `diffuse`.

    python scripts/tiny_prompts.py --out alignlab/shipped

`tasks/` holds six tasks, in the paper's division, to train on together, alone, or all but one; `unseen/` other wordings of
them, to be evaluated only. The other folders stand by themselves.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

from tiny_picks import BIOGRAPHY_REQUESTS, PICK_SETS, in_braces, pick_wordings, varied_person

NUMBERS = ("even", "odd", "prime", "numbers-1-10", "numbers-1-100")
DATES = ("days", "dates-june", "dates-december")
COUNTRIES = tuple(name for name in PICK_SETS if name.startswith("countries-"))
TRAINED_NAMES = 24
PEOPLE = 96
UNSEEN_FRAME = 6  # wordings from here on are never trained on
CURVE_FRAME = 9  # and those from here on ask for numbers from 1 to x
CURVE = range(5, 101, 5)
Prompt = dict[str, object]


def wording(name: str, index: int) -> str:
    """A request of a set; frame, phrase for the thing and phrase for the braces change with the index."""
    wordings = pick_wordings(name)
    things, braces = len(PICK_SETS[name][0]), 3
    return wordings[(index * things + index % things) * braces + (index // 2) % braces]


def members(name: str) -> list[str]:
    """The members of a set: numbers and dates in their order, words by the alphabet."""
    return sorted(PICK_SETS[name][1], key=lambda m: (int(m.split()[-1]), "") if m.split()[-1].isdigit() else (0, m))


def prompt(name: str, index: int, *, targets: Sequence[str] | None = None, test: bool = False) -> Prompt:
    """A prompt file of a set, uniform over its members or over the targets given."""
    chosen = [in_braces(member) for member in (members(name) if targets is None else targets)]
    return {"request": wording(name, index), "response": "", "targets": chosen} | ({"split": "test"} if test else {})


def known_names() -> list[str]:
    """The first names that are trained on; the others show what lies beyond the targets."""
    return sorted(random.Random("names").sample(PICK_SETS["names"][1], TRAINED_NAMES))


def task_files() -> dict[str, Prompt]:
    """Six tasks: wordings to train on under `tasks`, others under `unseen`."""
    files: dict[str, Prompt] = {}

    def add(path: str, name: str, wordings: int, first: int = 0, targets: Sequence[str] | None = None) -> None:
        for i in range(wordings):
            files[f"tasks/{path}{i + 1}.json"] = prompt(name, first + i, targets=targets)
            number = wordings + i + 1
            files[f"unseen/{path}{number}.json"] = prompt(name, UNSEEN_FRAME + first + i, targets=targets, test=True)

    add("names/w", "names", 2, targets=known_names())
    add("fruits/w", "fruits", 2)
    add("occupations/w", "occupations", 2)
    for i, name in enumerate(COUNTRIES):
        add(f"countries/{name.removeprefix('countries-')}-w", name, 1, first=i)
    for name in DATES:
        add(f"dates/{name.removeprefix('dates-')}-w", name, 2)
    for name in NUMBERS:
        add(f"numbers/{name.removeprefix('numbers-')}/w", name, 2)
    return files


def single_files() -> dict[str, Prompt]:
    """Prompts beside the six tasks."""
    files: dict[str, Prompt] = {}
    for folder, name, wordings in (("numbers-1-10", "numbers-1-10", 6), ("colours", "colours", 3), ("binomial", "numbers-0-10", 3)):
        for i in range(2 * wordings):
            files[f"{folder}/w{i + 1:02d}.json"] = prompt(name, i, test=i >= wordings)
            if folder == "binomial":
                made = files[f"{folder}/w{i + 1:02d}.json"]
                files[f"{folder}/w{i + 1:02d}.json"] = made | {"weights": [math.comb(10, n) / 2**10 for n in range(11)]}
    for x in CURVE:
        for i in range(5):
            files[f"numbers-1-to-x/{x:03d}-w{i + 1}.json"] = prompt(f"numbers-1-{x}", CURVE_FRAME + i, test=True)
    for i in range(2):
        files[f"all-names/w{i + 1}.json"] = prompt("names", UNSEEN_FRAME + i, test=True)
    rng = random.Random("people")
    people = list(dict.fromkeys(varied_person(rng) for _ in range(PEOPLE)))
    files["biographies/train.json"] = {"request": BIOGRAPHY_REQUESTS[0], "response": "", "targets": people, "eos": False}
    for i, request in enumerate((BIOGRAPHY_REQUESTS[0], BIOGRAPHY_REQUESTS[4])):
        files[f"biographies/whole-{i + 1}.json"] = {"request": request, "response": "", "targets": [], "split": "test"}
    return files


def prompt_files() -> dict[str, Prompt]:
    """The shipped prompt files by relative path."""
    return task_files() | single_files()


def prompt_text(content: Prompt) -> str:
    """A prompt file's exact content."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write the prompt files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write them into")
    out = parser.parse_args().out
    for relative, content in prompt_files().items():
        path = out / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(prompt_text(content), encoding="utf-8")


if __name__ == "__main__":
    main()
