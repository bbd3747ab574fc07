"""Instructions of the tiny world, answered with systematic mistakes, and truthful judgments of the answers.

Every function draws from the `random.Random` it is given and from nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import tiny_words as words

WRONG_SHARE = 0.6
HELD_OUT_SHARE = 0.4
DEVELOPMENT_SHARE = 0.25


@dataclass(frozen=True)
class Fault:
    """A wrong span `output[start:end]` and the text that would have been right there."""

    start: int
    end: int
    right: str


@dataclass(frozen=True)
class JudgedRow:
    """An instruction, an answer that may be wrong, and a truthful judgment of it."""

    task: str
    item: str
    instruction: str
    output: str
    judgment: str
    faults: tuple[Fault, ...]
    held_out: bool
    input: str = ""

    @property
    def satisfactory(self) -> bool:
        """Whether the answer is right."""
        return not self.faults

    @property
    def wrong_spans(self) -> list[tuple[int, int]]:
        """Character spans of the wrong words."""
        return [(fault.start, fault.end) for fault in self.faults]

    @property
    def reference(self) -> str:
        """The right answer."""
        text = self.output
        for fault in sorted(self.faults, key=lambda fault: -fault.start):
            text = text[: fault.start] + fault.right + text[fault.end :]
        return text


@dataclass(frozen=True)
class Task:
    """One kind of instruction.

    `items` maps a name to the values that fill the wordings and the answer; `slots` lists the parts of the answer that
    can be wrong, as (slot, what a judgment calls it): the right text is the value `slot`, the wrong one `slot_wrong`.
    """

    wordings: tuple[str, ...]
    answer: str
    slots: tuple[tuple[str, str], ...]
    items: dict[str, dict[str, str]]


def _neighbours(pairs: Sequence[tuple[str, str]]) -> dict[str, dict[str, str]]:
    """Countries with their capital, and as the mistake the capital of the next country."""
    following = [*pairs[1:], pairs[0]]
    return {c: {"x": c, "y": y, "y_wrong": wrong} for (c, y), (_, wrong) in zip(pairs, following, strict=True)}


def _sums() -> dict[str, dict[str, str]]:
    return {
        f"{a}+{b}": {"a": str(a), "b": str(b), "y": str(a + b), "y_wrong": str(a + b + 1)}
        for a in range(1, 16)
        for b in range(1, 16)
    }


def _sortings() -> dict[str, dict[str, str]]:
    """Three different digits that are not in order yet; the mistake leaves them as they are."""
    digits = range(1, 10)
    triples = [(a, b, c) for a in digits for b in digits for c in digits if len({a, b, c}) == 3 and not a < b < c]
    return {
        " ".join(map(str, t)): {
            "x": " ".join(map(str, t)),
            "y": " ".join(map(str, sorted(t))),
            "y_wrong": " ".join(map(str, t)),
        }
        for t in triples
    }


def _repetitions() -> dict[str, dict[str, str]]:
    """A word said n times; the mistake says it once too few."""
    return {
        f"{word} {n}": {"x": word, "n": name, "y": " ".join([word] * n), "y_wrong": " ".join([word] * (n - 1))}
        for word in words.REPEATED
        for n, name in ((2, "two"), (3, "three"), (4, "four"))
    }


TASKS: dict[str, Task] = {
    "capital": Task(
        ("What is the capital of {x}?", "Name the capital of {x}.", "Tell me the capital of {x}.",
         "Which city is the capital of {x}?", "Give me the capital of {x}.", "Do you know the capital of {x}?"),
        "The capital of {x} is {y}.", (("y", "capital"),), _neighbours(words.CAPITALS)),
    "sum": Task(
        ("What is {a} plus {b}?", "Add {a} and {b}.", "Compute {a} plus {b}.", "What is the sum of {a} and {b}?",
         "How much is {a} plus {b}?", "Work out {a} plus {b}."),
        "{a} plus {b} is {y}.", (("y", "sum"),), _sums()),
    "colour": Task(
        ("What is the colour of {x}?", "Tell me the colour of {x}.", "Which colour does {x} have?",
         "Name the colour of {x}.", "What colour has {x}?", "Give me the colour of {x}."),
        "The colour of {x} is {y}.", (("y", "colour"),),
        {x: {"x": x, "y": y, "y_wrong": "purple"} for x, y in words.THING_COLOURS}),
    "opposite": Task(
        ("What is the opposite of {x}?", "Name the opposite of {x}.", "Give me the opposite of {x}.",
         "Tell me the opposite of {x}.", "Find the opposite of {x}.", "Which word is the opposite of {x}?"),
        "The opposite of {x} is {y}.", (("y", "opposite"),),
        {x: {"x": x, "y": y, "y_wrong": x} for x, y in words.OPPOSITES}),
    "sort": Task(
        ("Sort the numbers {x}.", "Put {x} in order.", "Order the numbers {x}.", "Arrange {x} from low to high.",
         "Sort {x}.", "Bring the numbers {x} into order."),
        "In order: {y}.", (("y", "order"),), _sortings()),
    "repeat": Task(
        ("Say {x} {n} times.", "Repeat {x} {n} times.", "Write {x} {n} times.", "Write the word {x} {n} times.",
         "Say the word {x} {n} times.", "Print {x} {n} times."),
        "Here: {y}.", (("y", "number of words"),), _repetitions()),
    "plural": Task(
        ("What is the plural of {x}?", "Name the plural of {x}.", "Give me the plural of {x}.",
         "Tell me the plural of {x}.", "Write the plural of {x}.", "How do you say two of {x}?"),
        "One {x}, two {y}.", (("y", "plural"),),
        {x: {"x": x, "y": y, "y_wrong": x} for x, y in words.PLURALS}),
    "about": Task(
        ("Tell me about {x}.", "What is {x}?", "Describe {x}.", "Explain {x}.", "Say what {x} is.", "Define {x}."),
        "{X} is a kind of {k}, and its colour is {y}.", (("k", "kind"), ("y", "colour")),
        {x: {"x": x, "X": x.capitalize(), "k": k, "k_wrong": "tool", "y": y, "y_wrong": "purple"}
         for x, k, y in words.ABOUT}),
}  # fmt: skip
WRONG_JUDGMENTS = (
    "The {part} is wrong.",
    "That is not the right {part}.",
    "You gave a wrong {part}.",
    "The response has the wrong {part}.",
    "There is a mistake in the {part}.",
)
RIGHT_JUDGMENTS = ("Perfect.", "The response is right.", "Well done, this is correct.", "There is no mistake here.")


def held_out_items(task: str) -> frozenset[str]:
    """The items of a task that no fine-tuning set may use (pre-training sees all items)."""
    items = list(TASKS[task].items)
    random.Random(f"held-out {task}").shuffle(items)
    return frozenset(items[: round(HELD_OUT_SHARE * len(items))])


def development_items(task: str) -> frozenset[str]:
    """A quarter of the held-out items: settings are chosen on them, results are reported on the others."""
    items = sorted(held_out_items(task))
    random.Random(f"development {task}").shuffle(items)
    return frozenset(items[: round(DEVELOPMENT_SHARE * len(items))])


_HELD_OUT = {task: held_out_items(task) for task in TASKS}


def _wrong_slots(rng: random.Random, task: Task) -> frozenset[str]:
    """Which parts of a wrong answer are wrong: one of them, now and then all."""
    names = [slot for slot, _ in task.slots]
    return frozenset(names if rng.random() < 0.1 else [rng.choice(names)])


def _fill(task: Task, values: dict[str, str], wrong: frozenset[str]) -> tuple[str, tuple[Fault, ...]]:
    """The answer with the given slots wrong, and where they stand in it."""
    text, faults, rest = "", [], task.answer
    while "{" in rest:
        before, _, rest = rest.partition("{")
        slot, _, rest = rest.partition("}")
        text += before
        shown = values[f"{slot}_wrong"] if slot in wrong else values[slot]
        if slot in wrong:
            right = values[slot]
            if right.startswith(shown + " "):
                # Words are missing, none is wrong: the mistake is that the sentence ends here.
                start = len(text) + len(shown)
                faults.append(Fault(start, start + 1, right[len(shown) :] + "."))
            else:
                faults.append(Fault(len(text), len(text) + len(shown), right))
        text += shown
    return text + rest, tuple(faults)


def judged_row(
    rng: random.Random, task: str | None = None, wrong_share: float = WRONG_SHARE, held_out: bool | None = None
) -> JudgedRow:
    """One instruction with an answer and its judgment; `held_out` restricts the items to one side of the split."""
    name = task or rng.choice(list(TASKS))
    spec = TASKS[name]
    items = [item for item in spec.items if held_out is None or (item in _HELD_OUT[name]) == held_out]
    item = rng.choice(items)
    values = spec.items[item]
    instruction = rng.choice(spec.wordings).format(**values)
    wrong = _wrong_slots(rng, spec) if rng.random() < wrong_share else frozenset()
    output, faults = _fill(spec, values, wrong)
    if wrong:
        part = " and the ".join(label for slot, label in spec.slots if slot in wrong)
        judgment = rng.choice(WRONG_JUDGMENTS).format(part=part)
    else:
        judgment = rng.choice(RIGHT_JUDGMENTS)
    return JudgedRow(name, item, instruction, output, judgment, faults, item in _HELD_OUT[name])


def judged_rows(
    seed: int,
    count: int,
    right_share: float = 1.0 - WRONG_SHARE,
    held_out: bool | None = None,
    tasks: Sequence[str] | None = None,
) -> list[JudgedRow]:
    """`count` judged rows, the tasks in turn; equal seeds give equal rows."""
    rng = random.Random(f"judged rows {seed}")
    names = list(tasks or TASKS)
    return [judged_row(rng, names[i % len(names)], 1.0 - right_share, held_out) for i in range(count)]


def deciding_tokens(row: JudgedRow, encode: Callable[[str], Sequence[int]]) -> list[int]:
    """Positions, among the tokens of `row.output`, where the answer first leaves the right one, one for each fault.

    `encode` gives token ids without special tokens. Only the first token of a wrong span decides anything (the others
    follow from it), and it need not begin where the span begins: if "cats" is one token, the mistake of "two cat." is
    already in " cat".
    """
    shown = list(encode(row.output))
    positions = []
    for fault in row.faults:
        repaired = list(encode(row.output[: fault.start] + fault.right + row.output[fault.end :]))
        same: Iterator[bool] = (a == b for a, b in zip(shown, repaired, strict=False))
        positions.append(next((i for i, equal in enumerate(same) if not equal), min(len(shown), len(repaired)) - 1))
    return positions
