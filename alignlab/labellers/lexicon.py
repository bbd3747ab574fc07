"""A labeller that counts words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

_WORD = re.compile(r"\w+(?:['’]\w+)*")


@dataclass
class Lexicon:
    """The share of a text's words that stand in a list: for demonstrations without a network, and for tests.

    It shows what a run does with labels, and is no measure of toxicity or sentiment: it knows neither context nor negation.
    Words are compared whole and case folded; an entry of several words counts where they follow one another, punctuation aside.
    A class scores between 0 and 1; every class scores 0 on a text without words.
    """

    words: dict[str, list[str]]
    """class -> words and phrases"""

    def __post_init__(self) -> None:
        if not self.words:
            raise ValueError("words: there is no class; give at least one, with its words")
        for name, entries in self.words.items():
            if not entries:
                raise ValueError(f"words.{name}: has no words; give at least one")
            for entry in entries:
                if not _split(entry):
                    raise ValueError(f"words.{name}: '{entry}' holds no word")

    def ready(self) -> None:
        """Needs nothing."""

    def classes(self) -> Sequence[str]:
        """The lists' names."""
        return tuple(self.words)

    def scores(self, texts: Sequence[str]) -> Sequence[Mapping[str, float]]:
        """For each text, the share of its words that belong to an entry of each list."""
        return [{name: self._share(_split(text), entries) for name, entries in self._entries.items()} for text in texts]

    def digest(self) -> str:
        """Empty: everything is in the configuration."""
        return ""

    @cached_property
    def _entries(self) -> dict[str, dict[str, list[list[str]]]]:
        """For each class, its entries by their first word."""
        found: dict[str, dict[str, list[list[str]]]] = {name: {} for name in self.words}
        for name, entries in self.words.items():
            for entry in map(_split, entries):
                found[name].setdefault(entry[0], []).append(entry)
        return found

    @staticmethod
    def _share(words: list[str], entries: Mapping[str, list[list[str]]]) -> float:
        covered: set[int] = set()
        for i, word in enumerate(words):
            for entry in entries.get(word, ()):
                if words[i : i + len(entry)] == entry:
                    covered.update(range(i, i + len(entry)))
        return len(covered) / max(len(words), 1)


def _split(text: str) -> list[str]:
    return _WORD.findall(text.casefold())
