"""Control tokens: attributes of a text, their labels, and the tokens that stand for the labels."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, ClassVar

import numpy as np
from omegaconf import OmegaConf

from alignlab.build import build, build_target
from alignlab.config import finite
from alignlab.errors import UserError, did_you_mean
from alignlab.protocols import Labeller

LABELLER = ("ready", "classes", "scores", "digest")
"""what a labeller's class must have"""


@dataclass(frozen=True)
class Attribute:
    """A property of a text, such as toxicity, that has one of several labels.

    With a ``threshold`` there are two labels, and ``score`` names the labeller's score: at most the threshold, a text has the
    first, above it the second. Without, labels are classes of the labeller, and a text has the one with the largest score; where
    several are the largest, the label ``tie``.
    """

    title: str
    """as tables name it"""
    tokens: dict[str, str]
    """label -> control token, in order"""
    wanted: str
    """label that is aligned: any other is misaligned"""
    labeller: dict[str, Any]
    """``_target_`` and fields of a class with the methods of :class:`alignlab.protocols.Labeller`"""
    score: str | None
    threshold: float | None
    tie: str | None

    where: ClassVar[str] = "attributes"
    """path in the configuration; :func:`read_attributes` gives each its own"""

    def __post_init__(self) -> None:
        if len(self.tokens) < 2:
            raise ValueError(f"tokens: an attribute needs at least two labels, each with its token, not {dict(self.tokens)}")
        for label, token in self.tokens.items():
            if not isinstance(token, str) or not token.strip():
                raise ValueError(f"tokens: the token of label '{label}' must be a text that is not empty, not {token!r}")
        for key in ("wanted", "tie"):
            label = getattr(self, key)
            if label is not None and label not in self.tokens:
                raise ValueError(f"{key}: '{label}' is not one of the labels ({', '.join(self.tokens)})")
        if self.threshold is not None:
            finite("threshold", self.threshold)
            if len(self.tokens) != 2:
                raise ValueError(f"threshold: divides into two labels, and there are {len(self.tokens)}; null takes the likeliest")
            if self.score is None:
                raise ValueError("score: must name the labeller's score that the threshold divides")

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels in order."""
        return tuple(self.tokens)

    @property
    def classes(self) -> list[str]:
        """The labeller's scores that tell the label; a label for ties alone need not be one of its classes."""
        return [str(self.score)] if self.threshold is not None else list(self.labels)

    @property
    def scorer(self) -> Labeller:
        """The labeller, not loaded before it is used; one for all attributes of this process that configure it alike."""
        return _labeller(json.dumps(self.labeller))

    def check(self, classes: Collection[str] | None) -> None:
        """Refuse the classes of a labeller that do not tell the label; None, those that are not known yet, are not refused.

        Raises:
            UserError: one lacks.
        """
        kind, spare = ("score", None) if self.threshold is not None else ("label", self.tie)
        for name in self.classes:
            if classes is not None and name not in classes and name != spare:
                known = f"({', '.join(classes)}).{did_you_mean(name, classes)}"
                raise UserError(f"data.{self.where}.labeller: the {kind} '{name}' is none of its classes {known}")

    def number(self, scores: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """The label's number, and what was compared: the score that the threshold divides, or the largest one.

        Args:
            scores: of the labeller's classes: each one number, or an array [texts].

        Raises:
            UserError: a class lacks.
        """
        self.check(scores)
        if self.threshold is not None:
            strength = np.asarray(scores[str(self.score)], np.float64)
            return (strength > self.threshold).astype(np.int64), strength
        known = [i for i, label in enumerate(self.labels) if label in scores]
        matrix = np.stack([np.asarray(scores[self.labels[i]], np.float64) for i in known])
        strength = matrix.max(0)
        best = matrix == strength
        found = np.array(known)[best.argmax(0)]
        if self.tie is not None:
            found = np.where(best.sum(0) > 1, self.labels.index(self.tie), found)
        return found, strength

    def label(self, scores: Mapping[str, float]) -> str:
        """The label of one text."""
        return self.labels[int(self.number(scores)[0])]

    def strength(self, scores: Mapping[str, float]) -> float:
        """What was compared for one text."""
        return float(self.number(scores)[1])


@cache
def _labeller(config: str) -> Labeller:
    return build_target(OmegaConf.create(json.loads(config)), "labeller", LABELLER)


def make_ready(attributes: Iterable[Attribute]) -> None:
    """Ask the labellers for all that they need; those that may fetch something come last, so that nothing is fetched in vain.

    Raises:
        MissingError: a package or a file lacks.
        UserError: a labeller proves to have other classes.
    """
    for attribute in sorted(attributes, key=lambda attribute: getattr(attribute.scorer, "fetches", False)):
        attribute.scorer.ready()
        attribute.check(attribute.scorer.classes())


def read_attributes(node: Mapping[str, Any]) -> dict[str, Attribute]:
    """Attributes by name, from the ``attributes`` of a configuration.

    Raises:
        ValueError: one is not as :class:`Attribute` has it, or labels or tokens are not unique; it begins with ``attributes``.
    """
    found: dict[str, Attribute] = {}
    owner: dict[str, str] = {}
    for name, value in node.items():
        where = f"attributes.{name}"
        if not name.isidentifier() or name in ("none", "all"):
            raise ValueError(f"{where}: the name of an attribute must be a word, and not 'none' or 'all'")
        if value is None:  # taken away by a configuration that stands on another
            continue
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: must be a set of keys, not {value!r}")
        try:
            found[name] = attribute = build(OmegaConf.create(dict(value)), Attribute, where)
            vars(attribute)["where"] = where
            attribute.check(attribute.scorer.classes())
        except UserError as error:
            said = str(error).removeprefix("data.")
            raise ValueError(said if said.startswith(where) else f"{where}.{said}") from None
        for text in (*attribute.tokens, *attribute.tokens.values()):
            if text in owner:
                raise ValueError(f"{where}.tokens: '{text}' stands in attributes.{owner[text]} too; labels and tokens must differ")
        owner |= dict.fromkeys((*attribute.tokens, *attribute.tokens.values()), name)
    if not found:
        raise ValueError("attributes: there are none; give at least one, with its tokens and its labeller")
    return found


def variant(name: str, attributes: Iterable[str]) -> tuple[str, ...]:
    """The attributes of a variant, in its order: ``none``, ``all``, or names one after the other, with or without ``+`` between.

    ``toxsen`` and ``tox+sen`` are the attributes tox and sen.

    Raises:
        ValueError: the name is made of something else, or names one twice; it begins with ``variant``.
    """
    known = list(attributes)
    if name in ("none", "all"):
        return () if name == "none" else tuple(known)
    rest, found = name, list[str]()
    while rest:
        rest = rest.removeprefix("+")
        match = next((known_name for known_name in sorted(known, key=len, reverse=True) if rest.startswith(known_name)), None)
        if match is None or match in found:
            raise ValueError(
                f"variant: '{name}' must be none, all, or made of {', '.join(known)}, each at most once: {''.join(known)}, say."
                f"{did_you_mean(name, [*known, ''.join(known)])}"
            )
        found.append(match)
        rest = rest.removeprefix(match)
    if not found:
        raise ValueError("variant: must not be empty; none uses no control tokens")
    return tuple(found)


def head(labels: Mapping[str, str], attributes: Mapping[str, Attribute], chosen: Sequence[str]) -> list[str]:
    """The control tokens of a text with these labels (attribute -> label), for the chosen attributes."""
    return [attributes[name].tokens[labels[name]] for name in chosen]


def attribute_of(label: str, attributes: Mapping[str, Attribute]) -> str:
    """The name of the attribute that has a label.

    Raises:
        ValueError: none has.
    """
    found = next((name for name, attribute in attributes.items() if label in attribute.tokens), None)
    if found is None:
        labels = [label for attribute in attributes.values() for label in attribute.tokens]
        raise ValueError(f"'{label}' is not a label ({', '.join(labels)}).{did_you_mean(label, labels)}")
    return found


def grid(attributes: Mapping[str, Attribute], chosen: Sequence[str]) -> list[tuple[str, ...]]:
    """Every condition on the chosen attributes: for each, no label or one of its labels; no condition stands first."""
    choices = [("", *attributes[name].tokens) for name in chosen]
    return [tuple(label for label in labels if label) for labels in product(*choices)]


def all_tokens(attributes: Mapping[str, Attribute]) -> list[str]:
    """Every control token, in order."""
    return [token for attribute in attributes.values() for token in attribute.tokens.values()]


def finite_scores(scores: Mapping[str, float]) -> bool:
    """Whether every score is a finite number."""
    return all(math.isfinite(value) for value in scores.values())
