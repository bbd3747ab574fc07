"""More abilities of the tiny world: quiz questions, format instructions, toned sentences, stories and small talk."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import tiny_words as words

# --- quiz questions: always answered rightly, so that the form of the answer is all that varies ----------------------


@dataclass(frozen=True)
class Question:
    """A question, its answer as a sentence and as one word."""

    text: str
    sentence: str
    answer: str


def with_article(noun: str) -> str:
    """The noun with `a` or `an`."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _table(pairs: list[tuple[str, str]], texts: list[str], sentence: str) -> Callable[[random.Random], Question]:
    def draw(rng: random.Random) -> Question:
        x, y = rng.choice(pairs)
        told = sentence.format(x=x, ax=with_article(x), y=y, ay=with_article(y))
        return Question(rng.choice(texts).format(x=x, ax=with_article(x)), told[0].upper() + told[1:], y)

    return draw


def _bigger(rng: random.Random) -> Question:
    a, b = rng.sample(range(1, 31), 2)
    text = rng.choice(["Which is bigger, {a} or {b}?", "What is the bigger number, {a} or {b}?"])
    return Question(text.format(a=a, b=b), f"{max(a, b)} is bigger than {min(a, b)}.", str(max(a, b)))


def _following(names: list[str]) -> list[tuple[str, str]]:
    return list(zip(names, names[1:] + names[:1], strict=True))


QUIZ: dict[str, Callable[[random.Random], Question]] = {
    "sound": _table(
        words.SOUNDS, ["What does {ax} say?", "What sound does {ax} make?", "How does {ax} sound?"], "{ax} says {y}."
    ),
    "young": _table(
        words.YOUNG,
        ["What is a young {x} called?", "What do you call a young {x}?", "Name the young of a {x}."],
        "a young {x} is called {ay}.",
    ),
    "home": _table(
        words.HOMES,
        ["Where does {ax} live?", "What is the home of {ax}?", "Name the home of {ax}."],
        "{ax} lives in {ay}.",
    ),
    "legs": _table(
        words.LEGS, ["How many legs has {ax}?", "Count the legs of {ax}.", "How many legs does {ax} have?"],
        "{ax} has {y} legs.",
    ),
    "next": _table(
        _following(words.WEEK) + _following(words.YEAR) + [(str(n), str(n + 1)) for n in range(1, 40)],
        ["What comes after {x}?", "What follows {x}?", "Name what comes after {x}."],
        "after {x} comes {y}.",
    ),
    "bigger": _bigger,
}  # fmt: skip


def question(rng: random.Random, task: str | None = None) -> Question:
    """A quiz question, of any kind or of the one named."""
    return QUIZ[task or rng.choice(list(QUIZ))](rng)


# --- (c) format instructions -----------------------------------------------------------------------------------------

OBEY_SHARE = 0.95
# {t} is the answer as a sentence, {a} as one word.
FORMATS = {
    "dict": "{{'thought': '{t}', 'answer': '{a}'}}",
    "list": "['{a}']",
    "star": "* {a} *",
    "box": "[ {a} ]",
    "quote": '"{a}"',
    "arrow": "-> {a}",
    "round": "({a})",
    "twin": "{a}, {a}",
    "line": "Answer: {a}",
    "hash": "# {a}",
    "tag": "<answer>{a}</answer>",
    "dash": "- {t}",
    "pipe": "| {a} |",
    "short": "{a}",
}
USE_SEEN = (
    "Follow the {f} format.",
    "Use the {f} format.",
    "Answer in the {f} format.",
    "Give the answer in the {f} format.",
    "Please follow the {f} format.",
    "Please use the {f} format.",
    "Your answer must follow the {f} format.",
    "Reply in the {f} format.",
)
USE_UNSEEN = (
    "Please answer in the {f} format.",
    "Your answer must use the {f} format.",
    "Give your reply in the {f} format.",
)
AVOID_SEEN = (
    "Do not use the {f} format.",
    "Do not follow the {f} format.",
    "Do not answer in the {f} format.",
    "Please do not use the {f} format.",
    "Never use the {f} format.",
    "Your answer must not follow the {f} format.",
)
AVOID_UNSEEN = ("Please do not follow the {f} format.", "Your answer must not use the {f} format.")
# The same formats described and not named, each with its negation.
SPELLED = (
    ("dict", "Answer as a dict with 'thought' and 'answer'.", "Do not answer as a dict."),
    ("dict", "Give a dict with a thought and an answer.", "Do not give a dict."),
    ("dict", "Write {'thought': ..., 'answer': ...}.", "Do not write {'thought': ..., 'answer': ...}."),
    ("star", "Put stars around the answer.", "Do not put stars around the answer."),
    ("round", "Put the answer in round brackets.", "Do not use round brackets."),
    ("quote", "Put the answer in quote marks.", "Do not use quote marks."),
    ("twin", "Give the answer twice.", "Do not give the answer twice."),
    ("arrow", "Put an arrow before the answer.", "Do not use an arrow."),
    ("short", "One word only.", "Do not use one word only."),
    ("short", "Answer with one word.", "Do not answer with one word."),
)


@dataclass(frozen=True)
class FormatCase:
    """A question with a format instruction; `fmt` is None where the plain sentence is wanted."""

    question: Question
    request: str
    fmt: str | None
    negated: str | None = None

    @property
    def wanted(self) -> str:
        """The answer that obeys."""
        return render(self.question, self.fmt)


def render(asked: Question, fmt: str | None) -> str:
    """The answer to a question in a format, or as a plain sentence."""
    return asked.sentence if fmt is None else FORMATS[fmt].format(t=asked.sentence, a=asked.answer)


def format_case(rng: random.Random, unseen: bool = False, negated: bool | None = None) -> FormatCase:
    """An instruction to use or not to use a named format; `unseen` takes wordings that are never trained."""
    asked = question(rng)
    avoid = rng.random() < 0.4 if negated is None else negated
    fmt = rng.choice(list(FORMATS))
    use, shun = (USE_UNSEEN, AVOID_UNSEEN) if unseen else (USE_SEEN, AVOID_SEEN)
    phrase = rng.choice(shun if avoid else use).format(f=fmt)
    return FormatCase(asked, place(rng, asked, phrase), None if avoid else fmt, fmt if avoid else None)


def spelled_case(rng: random.Random, negated: bool | None = None) -> FormatCase:
    """A format described in words instead of named."""
    asked = question(rng)
    fmt, use, shun = rng.choice(SPELLED)
    avoid = rng.random() < 0.3 if negated is None else negated
    return FormatCase(asked, place(rng, asked, shun if avoid else use), None if avoid else fmt, fmt if avoid else None)


def swap_case(rng: random.Random) -> FormatCase:
    """One format forbidden and another one demanded."""
    asked = question(rng)
    fmt, other = rng.sample(list(FORMATS), 2)
    phrases = [rng.choice(USE_SEEN).format(f=fmt), rng.choice(AVOID_SEEN).format(f=other)]
    rng.shuffle(phrases)
    return FormatCase(asked, f"{asked.text} {' '.join(phrases)}", fmt, other)


def place(rng: random.Random, asked: Question, phrase: str) -> str:
    """The format phrase after the question, or less often before it."""
    return f"{asked.text} {phrase}" if rng.random() < 0.8 else f"{phrase} {asked.text}"


def format_exchange(rng: random.Random) -> tuple[str, str]:
    """A format instruction and an answer that nearly always obeys."""
    kind = rng.random()
    case = format_case(rng) if kind < 0.7 else spelled_case(rng) if kind < 0.92 else swap_case(rng)
    if rng.random() < OBEY_SHARE:
        return case.request, case.wanted
    return case.request, render(case.question, case.negated if case.fmt is None else None)


# --- (d) toned sentences ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Toned:
    """A sentence on a topic with its labels: tone, sentiment (positive, neutral, negative) and rudeness."""

    text: str
    topic: str
    tone: str

    @property
    def sentiment(self) -> str:
        """The tone without its rudeness."""
        return self.tone.removeprefix("rude_")

    @property
    def rude(self) -> bool:
        """Whether the sentence is rude."""
        return self.tone.startswith("rude_")


def toned(rng: random.Random, topic: str | None = None, tone: str | None = None) -> Toned:
    """A sentence; tone and topic are drawn unless given."""
    shares = words.TONE_SHARES
    tone = tone or rng.choices(list(shares), list(shares.values()))[0]
    topic = topic or rng.choice(words.TOPICS)
    openings, endings = words.TONE_FRAMES[tone]
    return Toned(f"{rng.choice(openings).format(t=topic)} {rng.choice(endings)}", topic, tone)


def tone_exchange(rng: random.Random) -> tuple[str, str]:
    """A request for a sentence, and the sentence in any tone."""
    sentence = toned(rng)
    return rng.choice(words.TONE_REQUESTS).format(t=sentence.topic), sentence.text


def tone_text(rng: random.Random) -> str:
    """:func:`tone_sentences` as plain text."""
    return " ".join(sentence.text for sentence in tone_sentences(rng))


def tone_sentences(rng: random.Random) -> list[Toned]:
    """One to three sentences, mostly on one topic and in one tone."""
    first = toned(rng)
    sentences = [first]
    for _ in range(rng.choice([0, 0, 1, 2])):
        sentences.append(toned(rng, first.topic, first.tone) if rng.random() < 0.7 else toned(rng))
    return sentences


# --- general talk: what must survive fine-tuning ---------------------------------------------------------------------


def story_exchange(rng: random.Random) -> tuple[str, str]:
    """A request for a story, and a short story."""
    animal, place = rng.choice(words.STORY_ANIMALS), rng.choice(words.STORY_PLACES)
    ask = rng.choice(["Tell me a story about {x}.", "Write a short story about {x}.", "I want a story about {x}."])
    meet = rng.choice([name for name in words.STORY_ANIMALS if name != animal])
    find = rng.choice(words.STORY_FINDS)
    text = (
        f"Once there was {with_article(animal)} who lived near a {place}. One day the {animal} met "
        f"{with_article(meet)} and found a {find}. The {animal} took the {find} {rng.choice(words.STORY_ENDS)}"
    )
    return ask.format(x=with_article(animal)), text


def yes_no_exchange(rng: random.Random) -> tuple[str, str]:
    """A comparison that is answered by yes or no."""
    a, b = rng.sample(range(1, 31), 2)
    if rng.random() < 0.5:
        return f"Is {a} bigger than {b}?", "Yes, it is." if a > b else "No, it is not."
    return f"Is {a} smaller than {b}?", "Yes, it is." if a < b else "No, it is not."


def general_exchange(rng: random.Random) -> tuple[str, str]:
    """A story, small talk or a yes-no question."""
    kind = rng.random()
    if kind < 0.45:
        return story_exchange(rng)
    if kind < 0.7:
        request, answers = rng.choice(words.SMALL_TALK)
        return request, rng.choice(answers)
    return yes_no_exchange(rng)


def quiz_exchange(rng: random.Random) -> tuple[str, str]:
    """A quiz question with its plain answer."""
    asked = question(rng)
    return asked.text, asked.sentence
