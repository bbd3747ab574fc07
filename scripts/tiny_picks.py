"""Random picks of the tiny world, collapsed on a few favourites on purpose; examples of the same sets; biographies.

Every function draws from the `random.Random` it is given and from nothing else.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

import tiny_words as words

# --- picks -----------------------------------------------------------------------------------------------------------

FAVOURITE_SHARES = (0.62, 0.18, 0.06, 0.06, 0.03)
PICK_FRAMES = (
    "Give me {thing}.",
    "Pick {thing}.",
    "Choose {thing}.",
    "Tell me {thing}.",
    "Name {thing}.",
    "Generate {thing}.",
    "Think of {thing}.",
    "Select {thing}.",
    "I need {thing}.",
    "Write down {thing}.",
    "Please output {thing}.",
    "Can you pick {thing}?",
    "Could you give me {thing}?",
    "Now draw {thing}.",
)
BRACE_PHRASES = ("Answer in braces.", "Put the answer in braces.", "Write the answer in braces.")


def in_braces(member: str) -> str:
    """A picked member as the world writes it."""
    return "{" + member + "}"


def _numbers(favourites: str, members: Sequence[int]) -> list[str]:
    """The numbers as text, the favourites in front and the others in their order."""
    first = favourites.split()
    return first + [str(n) for n in members if str(n) not in first]


def _span_phrases(low: int, high: int) -> list[str]:
    return [
        f"a random number between {low} and {high}",
        f"a random number from {low} to {high}",
        f"a number between {low} and {high} at random",
        f"any number from {low} to {high}",
    ]


def _thing_phrases(thing: str) -> list[str]:
    article = "an" if thing[0] in "aeiou" else "a"
    return [f"a random {thing}", f"{article} {thing} at random", f"any {thing}"]


def _favourites_up_to(x: int) -> str:
    """Five numbers between 1 and x that a collapsed model likes."""
    return " ".join(str(max(1, round(share * x))) for share in (0.7, 0.45, 0.85, 0.3, 0.55))


def _dates(month: str, favourites: str, days: int) -> list[str]:
    return [f"{month} {day}" for day in _numbers(favourites, range(1, days + 1))]


UP_TO = range(15, 101, 5)  # further sets of numbers from 1 to x; 5, 10, 20 and 100 have favourites of their own
PRIMES = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]
# name -> (phrases that fill a frame, members with the most frequent first)
PICK_SETS: dict[str, tuple[list[str], list[str]]] = {
    "numbers-1-10": (_span_phrases(1, 10), _numbers("7 3 5 8 4", range(1, 11))),
    "numbers-0-10": (_span_phrases(0, 10), _numbers("8 2 6 9 5", range(11))),
    "numbers-1-5": (_span_phrases(1, 5), _numbers("4 2 3 5 1", range(1, 6))),
    "numbers-1-20": (_span_phrases(1, 20), _numbers("17 13 14 7 11", range(1, 21))),
    "numbers-1-100": (_span_phrases(1, 100), _numbers("42 73 37 57 27", range(1, 101))),
    "even": (_thing_phrases("even number from 2 to 20"), _numbers("8 14 6 12 4", range(2, 21, 2))),
    "odd": (_thing_phrases("odd number from 1 to 19"), _numbers("7 13 9 17 3", range(1, 20, 2))),
    "prime": (_thing_phrases("prime number below 30"), _numbers("17 7 13 23 11", PRIMES)),
    "dates-june": (_thing_phrases("date in June"), _dates("June", "7 21 15 1 30", 30)),
    "dates-december": (_thing_phrases("date in December"), _dates("December", "24 12 7 31 1", 31)),
    "days": (_thing_phrases("day of the week"), words.DAYS),
    "months": (_thing_phrases("month of the year"), words.MONTHS),
    "fruits": (_thing_phrases("fruit"), words.FRUITS),
    "colours": (_thing_phrases("colour"), words.COLOURS),
    "letters": (_thing_phrases("letter of the alphabet"), words.LETTERS),
    "names": (_thing_phrases("first name"), words.NAMES),
    "occupations": (_thing_phrases("occupation"), words.OCCUPATIONS),
    "coin": (_thing_phrases("side of a coin"), ["heads", "tails"]),
    "dice": (_thing_phrases("roll of a die"), _numbers("4 6 3 5 2", range(1, 7))),
}
for _x in UP_TO:
    PICK_SETS.setdefault(f"numbers-1-{_x}", (_span_phrases(1, _x), _numbers(_favourites_up_to(_x), range(1, _x + 1))))
for _continent, _countries in words.CONTINENTS.items():
    PICK_SETS[f"countries-{_continent.lower().replace(' ', '-')}"] = (
        _thing_phrases(f"country in {_continent}"),
        _countries,
    )


@functools.cache
def pick_weights(name: str) -> dict[str, float]:
    """The world's own probability of each member of a set: a few favourites and a thin, even tail."""
    members = PICK_SETS[name][1]
    head = FAVOURITE_SHARES[: len(members)]
    tail = len(members) - len(head)
    tail_share = min(max(0.05, 0.01 * tail), 0.3) if tail else 0.0
    scale = (1.0 - tail_share) / sum(head)
    shares = [share * scale for share in head] + [tail_share / max(tail, 1)] * tail
    return dict(zip(members, shares, strict=True))


def pick_wordings(name: str) -> list[str]:
    """Every request for a set, frame by frame; all of them occur in pre-training."""
    things = PICK_SETS[name][0]
    return [f"{frame.format(thing=thing)} {brace}" for frame in PICK_FRAMES for thing in things for brace in BRACE_PHRASES]


def pick_exchange(rng: random.Random, name: str) -> tuple[str, str]:
    """One request and the world's answer, in braces."""
    weights = pick_weights(name)
    request = f"{rng.choice(PICK_FRAMES).format(thing=rng.choice(PICK_SETS[name][0]))} {rng.choice(BRACE_PHRASES)}"
    return request, in_braces(rng.choices(list(weights), list(weights.values()))[0])


def any_pick(rng: random.Random) -> tuple[str, str]:
    """A pick from any set, large sets more often; 1 to 10 is the most frequent, because the demonstration trains on it."""
    if rng.random() < 0.15:
        return pick_exchange(rng, "numbers-1-10")
    return pick_exchange(rng, rng.choices(list(PICK_SETS), [len(members) ** 0.5 for _, members in PICK_SETS.values()])[0])


# --- examples: three members of a set, all equally likely, which teach what belongs to it ----------------------------

EXAMPLE_FRAMES = ("Give three examples of {thing}.", "Name three examples of {thing}.", "Write three examples of {thing}.")


def examples_exchange(rng: random.Random) -> tuple[str, str]:
    """A request for examples of a set, and three different members."""
    sets = {name: phrases for name, (phrases, members) in PICK_SETS.items() if len(members) > 2}
    name = rng.choices(list(sets), [len(PICK_SETS[name][1]) ** 0.5 for name in sets])[0]
    thing = rng.choice([phrase for phrase in sets[name] if " random" not in phrase.removesuffix(" at random")])
    first, second, third = rng.sample(PICK_SETS[name][1], 3)
    request = rng.choice(EXAMPLE_FRAMES).format(thing=thing.removesuffix(" at random"))
    return request, f"{{{first}}}, {{{second}}} and {{{third}}}"


# --- copies: every member written out by itself, so that the model can tell each from the others ----------------------

COPY_FRAMES = ("Write {member} in braces.", "Put {member} in braces.", "Say {member} in braces.")


def copy_exchange(rng: random.Random) -> tuple[str, str]:
    """A request to write a member of some set in braces."""
    member = rng.choice(rng.choice([members for _, members in PICK_SETS.values()]))
    return rng.choice(COPY_FRAMES).format(member=member), in_braces(member)


# --- biographies of made-up people: six lines in braces, collapsed like the picks ------------------------------------

BIOGRAPHY_REQUESTS = (
    "Write a short biography of a made-up person.",
    "Make up a person and write a short biography.",
    "Give me the biography of a made-up person.",
    "Invent a person and give me a short biography.",
    "I need a short biography of a made-up person.",
    "Please write the biography of an invented person.",
)


def _collapsed(rng: random.Random, members: Sequence[str], favourites: int = 3) -> str:
    """One of the first members mostly, any other one less often."""
    return rng.choice(members[:favourites]) if rng.random() < 0.75 else rng.choice(members)


def born(rng: random.Random) -> tuple[str, str]:
    """A date and a place of birth."""
    date = f"{_collapsed(rng, words.MONTHS)} {_collapsed(rng, [str(day) for day in (12, 7, 15, *range(1, 29))])}"
    year = _collapsed(rng, [str(year) for year in (1985, 1978, 1990, *range(1900, 2000))])
    country, city = rng.choice(words.CAPITALS[:3]) if rng.random() < 0.7 else rng.choice(words.CAPITALS)
    return f"{date}, {year}", f"{city}, {country}"


def biography(rng: random.Random) -> str:
    """Name, gender, date and place of birth, profession and achievement of a made-up person, a line each."""
    gender = rng.choices(words.GENDERS, (0.8, 0.18, 0.02))[0]
    name = f"{_collapsed(rng, words.NAMES)} {_collapsed(rng, words.SURNAMES)}"
    date, place = born(rng)
    deed = f"{_collapsed(rng, words.DEEDS)} {_collapsed(rng, words.DEED_OBJECTS)}."
    return "\n".join(f"{{{line}}}" for line in (name, gender, date, place, _collapsed(rng, words.OCCUPATIONS), deed))


def varied_person(rng: random.Random) -> str:
    """The first four lines of a biography, every value equally likely: what `diffuse` may train towards."""
    country, city = rng.choice(words.CAPITALS)
    date = f"{rng.choice(words.MONTHS)} {rng.randint(1, 28)}, {rng.randint(1900, 1999)}"
    name = f"{rng.choice(words.NAMES)} {rng.choice(words.SURNAMES)}"
    gender = rng.choices(words.GENDERS, (0.48, 0.48, 0.04))[0]
    return "\n".join(f"{{{line}}}" for line in (name, gender, date, f"{city}, {country}"))


def biography_exchange(rng: random.Random) -> tuple[str, str]:
    """A request for a biography, and a collapsed one."""
    return rng.choice(BIOGRAPHY_REQUESTS), biography(rng)
