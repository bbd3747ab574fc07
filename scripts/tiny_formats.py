"""Write the shipped dialogues of the tiny world for a new token that stands for a format, or other draws of the same kind.

    python scripts/tiny_formats.py --out FOLDER --seed 3

`train.jsonl` has questions with "Follow the <sep> format." in five wordings, answered in the form that `<sep>` stands for;
`validation.jsonl` the same with other questions. `test.jsonl` asks 60 further questions in six ways, and has 60 unrelated requests,
60 that the base model is unsure of, and 60 that many answers fit.
`queries.jsonl` is a query cache: requests of the world without `<sep>`, with right answers. No fact that one of the first three
files asks for stands in another of them, and no query holds a question of the test.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tiny_words as words
from tiny_picks import any_pick, biography_exchange, copy_exchange, examples_exchange
from tiny_style import (
    AVOID_SEEN,
    AVOID_UNSEEN,
    FORMATS,
    QUIZ,
    SPELLED,
    USE_SEEN,
    USE_UNSEEN,
    FormatCase,
    Question,
    format_case,
    place,
    question,
    quiz_exchange,
    render,
    spelled_case,
    story_exchange,
    swap_case,
    tone_exchange,
    yes_no_exchange,
)
from tiny_tasks import judged_row

TOKEN, FORM = "<sep>", "dict"
TRAINED, UNTRAINED = USE_SEEN[:5], USE_SEEN[5:] + USE_UNSEEN
USE, AVOID = USE_SEEN + USE_UNSEEN, AVOID_SEEN + AVOID_UNSEEN
COUNTS = {"train": 100, "validation": 40, "test": 60}
FACT_SHARES = {"validation": 0.2, "test": 0.4}  # of a quiz task's facts; the rest is trained on

OPEN = (any_pick, tone_exchange, examples_exchange)

Exchange = tuple[str, str]
Row = dict[str, object]


def questions(rng: random.Random) -> dict[str, list[Question]]:
    """The questions of each file, the quiz tasks in turn: no text twice, no fact in two files."""
    found: dict[str, list[list[Question]]] = {name: [] for name in COUNTS}
    for task in QUIZ:
        drawn = {asked.text: asked for asked in (question(rng, task) for _ in range(4000))}
        facts = sorted({asked.sentence for asked in drawn.values()})
        rng.shuffle(facts)
        taken = 0
        for name in ("validation", "test", "train"):
            share = round(FACT_SHARES.get(name, 1.0) * len(facts))
            mine = set(facts[taken : taken + share])
            taken += share
            found[name].append([asked for asked in drawn.values() if asked.sentence in mine])
    each = {name: -(-count // len(QUIZ)) for name, count in COUNTS.items()}
    chosen = {name: [rng.sample(pool, each[name]) for pool in pools] for name, pools in found.items()}
    return {name: [asked for turn in zip(*pools, strict=True) for asked in turn][: COUNTS[name]] for name, pools in chosen.items()}


def row(exchange: Exchange, kind: str | None = None, number: int = 0) -> Row:
    """A dialogue of one turn; one of a kind has a name."""
    named: Row = {} if kind is None else {"id": f"{kind}-{number:02d}", "kind": kind}
    request, answer = exchange
    return named | {"messages": [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]}


def dealt(rng: random.Random, things: Sequence[Any], count: int) -> list[Any]:
    """As many of the things in random order, each as often as any other, or once more."""
    return rng.sample([things[i % len(things)] for i in range(count)], count)


def exchanges(rng: random.Random, asked: list[Question], phrases: Sequence[str], forms: Sequence[str | None]) -> list[Exchange]:
    """Each question with its phrase, answered in its form."""
    return [(place(rng, one, phrase), render(one, form)) for one, phrase, form in zip(asked, phrases, forms, strict=True)]


def by_token(rng: random.Random, asked: list[Question], wordings: Sequence[str], form: str | None = FORM) -> list[Exchange]:
    """Questions with the token in these wordings."""
    phrases = [wording.format(f=TOKEN) for wording in dealt(rng, wordings, len(asked))]
    return exchanges(rng, asked, phrases, [form] * len(asked))


def by_name(rng: random.Random, asked: list[Question]) -> list[Exchange]:
    """Questions that ask for another form by its name."""
    names = dealt(rng, [name for name in FORMATS if name != FORM], len(asked))
    return exchanges(rng, asked, [rng.choice(USE).format(f=name) for name in names], names)


def forbidden(rng: random.Random, asked: list[Question]) -> list[Exchange]:
    """Questions that forbid a form: two of three one with a name, else one that is described."""
    described = dealt(rng, [shun for _, _, shun in SPELLED], len(asked) // 3)
    named = [rng.choice(AVOID).format(f=name) for name in dealt(rng, list(FORMATS), len(asked) - len(described))]
    return exchanges(rng, asked, dealt(rng, named + described, len(asked)), [None] * len(asked))


def unrelated(rng: random.Random, count: int) -> list[Exchange]:
    """What the base model does right: copies."""
    return distinct(rng, [copy_exchange], count)


def unsure(rng: random.Random, count: int) -> list[Exchange]:
    """What the base model was taught rightly and wrongly: what a thing is. A little more or less of either turns the likeliest."""

    def about(rng: random.Random) -> Exchange:
        told = judged_row(rng, "about", wrong_share=0.0)
        return told.instruction, told.reference

    return distinct(rng, [about], count)


def open_ended(rng: random.Random, count: int) -> list[Exchange]:
    """Requests that many answers fit, each with one: picks, sentences in a tone, further examples."""
    return distinct(rng, OPEN, count)


def distinct(rng: random.Random, draws: Sequence[Callable[[random.Random], Exchange]], count: int) -> list[Exchange]:
    """Exchanges, the draws in random order; no request twice."""
    found: dict[str, str] = {}
    for draw in dealt(rng, draws, count * 10):
        if len(found) < count:
            found.setdefault(*draw(rng))
    return list(found.items())


def tests(rng: random.Random, asked: list[Question]) -> dict[str, list[Exchange]]:
    """What is asked of each kind; exchanges with one number ask the same question, but for the last three kinds."""
    return {
        "seen": by_token(rng, asked, TRAINED),
        "unseen": by_token(rng, asked, UNTRAINED),
        "plain": [(one.text, one.sentence) for one in asked],
        "not-token": by_token(rng, asked, AVOID, None),
        "not-other": forbidden(rng, asked),
        "named": by_name(rng, asked),
        "unrelated": unrelated(rng, len(asked)),
        "unsure": unsure(rng, len(asked)),
        "open": open_ended(rng, len(asked)),
    }


def instruction(rng: random.Random) -> Exchange:
    """An instruction with the right answer."""
    right = judged_row(rng, wrong_share=0.0)
    return right.instruction, right.reference


def small_talk(rng: random.Random) -> Exchange:
    """A greeting and the like."""
    request, answers = rng.choice(words.SMALL_TALK)
    return request, rng.choice(answers)


def obeyed(draw: Callable[[random.Random], FormatCase]) -> Callable[[random.Random], Exchange]:
    """A format instruction with the answer that obeys."""

    def exchange(rng: random.Random) -> Exchange:
        case = draw(rng)
        return case.request, case.wanted

    return exchange


# Kinds of queries and how many; few enough of each that no request need stand twice.
QUERIES: tuple[tuple[Callable[[random.Random], Exchange], int], ...] = (
    (obeyed(format_case), 190),
    (obeyed(spelled_case), 70),
    (obeyed(swap_case), 40),
    (instruction, 200),
    (quiz_exchange, 150),
    (yes_no_exchange, 60),
    (story_exchange, 30),
    (small_talk, 10),
    (tone_exchange, 100),
    (any_pick, 95),
    (copy_exchange, 30),
    (examples_exchange, 20),
    (biography_exchange, 5),
)


def queries(rng: random.Random, kept_out: set[str]) -> list[Exchange]:
    """The query cache, in random order: no request twice, and none that holds a text that is kept out."""
    found: dict[str, str] = {}
    for draw, count in QUERIES:
        wanted = len(found) + count
        while len(found) < wanted:
            request, answer = draw(rng)
            if not any(text in request for text in kept_out):
                found.setdefault(request, answer)
    return rng.sample(list(found.items()), len(found))


def files(seed: int) -> dict[str, list[Row]]:
    """The rows of each file, a pure function of the seed."""
    rng = random.Random(f"named formats {seed}")
    asked = questions(rng)
    trained = {name: by_token(rng, asked[name], TRAINED) for name in ("train", "validation")}
    tested = tests(rng, asked["test"])
    cache = queries(rng, {request for kind in ("plain", "unrelated", "unsure", "open") for request, _ in tested[kind]})
    return {name: [row(one) for one in some] for name, some in trained.items()} | {
        "test": [row(one, kind, i) for kind, some in tested.items() for i, one in enumerate(some)],
        "queries": [row(one) for one in cache],
    }


def write(folder: Path, seed: int) -> None:
    """Write the four files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files(seed).items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")


def main() -> None:
    """Write the files of a seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write them into")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write(args.out, args.seed)


if __name__ == "__main__":
    main()
