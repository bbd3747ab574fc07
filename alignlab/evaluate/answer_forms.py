"""What form an answer has, and what an answer of that form says."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PLAIN = "plain"
"""the form of an answer that no other form fits"""

LONGEST = 20_000
"""characters of an answer; a longer one is plain"""

_TEXT = r"'[^'\\\n]*(?:\\.[^'\\\n]*)*'|\"[^\"\\\n]*(?:\\.[^\"\\\n]*)*\""
_PAIR = re.compile(rf"\s*({_TEXT})\s*:\s*({_TEXT}|-?\d[\d.eE+-]*|True|False|None)\s*")


@dataclass(frozen=True)
class Form:
    """A form that answers may have: a pattern, or the keys of a Python or JSON dict."""

    name: str
    pattern: re.Pattern[str] | None
    keys: Mapping[str, tuple[str, ...] | None]
    """key -> its values as JSON; None: any text"""
    answer: str
    """key or group that holds what the answer says"""

    @property
    def classes(self) -> tuple[str, ...]:
        """What an answer can say, where that is limited."""
        return tuple(_said(json.loads(value)) for value in self.keys.get(self.answer) or ())

    def read(self, text: str) -> str | None:
        """What an answer of this form says, stripped; None where the answer has another form."""
        if self.pattern is not None:
            found = self.pattern.fullmatch(text)
            return (found[self.answer] or "").strip() if found else None
        pairs = _pairs(text)
        if pairs is None or sorted(pairs) != sorted(self.keys):
            return None
        fits = all(_allowed(value, self.keys[key]) for key, value in pairs.items())
        return _said(pairs[self.answer]) if fits else None


def form_and_answer(text: str, forms: Sequence[Form]) -> tuple[str, str]:
    """The name of the first form that fits a text, and what the text says; of plain text, all of it, stripped."""
    stripped = text.strip()
    for form in forms if len(stripped) <= LONGEST else ():
        said = form.read(stripped)
        if said is not None:
            return form.name, said
    return PLAIN, stripped


def _pairs(text: str) -> dict[str, Any] | None:
    """The pairs of a dict with texts for keys, written as JSON or, if no value holds others, in Python; a full stop may follow it.

    None where it is neither, or gives a key twice. Python's own parser sees single texts and numbers only: what a model writes may
    nest deeply enough to stop it.
    """
    text = text.removesuffix(".").rstrip()
    if not (text.startswith("{") and text.endswith("}")):
        return None
    try:
        found = json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        found = _python(text)
    known = dict(found or ())
    return known if found is not None and len(known) == len(found) and all(isinstance(key, str) for key in known) else None


def _python(text: str) -> tuple[tuple[Any, Any], ...] | None:
    """Keys and values of a flat dict in Python."""
    found, at = list[tuple[str, str]](), 1
    while pair := _PAIR.match(text, at):
        found.append((pair[1], pair[2]))
        at = pair.end()
        if not text.startswith(",", at):
            break
        at += 1
    if text[at:].strip() != "}":
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that mean nothing
            return tuple((ast.literal_eval(key), ast.literal_eval(value)) for key, value in found)
    except (ValueError, SyntaxError):
        return None


def _allowed(value: Any, values: tuple[str, ...] | None) -> bool:
    if values is None:
        return isinstance(value, str)
    return isinstance(value, str | int | float) and json.dumps(value) in values


def _said(value: Any) -> str:
    return value.strip() if isinstance(value, str) else json.dumps(value)


def read_forms(raw: Mapping[str, Any]) -> tuple[Form, ...]:
    """The forms of a configuration, in order.

    Raises:
        ValueError: one has neither or both of ``keys`` and ``pattern``, no answer, or values that no answer can have.
    """
    return tuple(_form(name, given, f"forms.{name}") for name, given in raw.items())


def _form(name: str, given: Any, where: str) -> Form:
    if name == PLAIN:
        raise ValueError(f"{where}: what fits no form is called plain already; give this one another name")
    if not isinstance(given, dict) or set(given) not in ({"pattern"}, {"keys", "answer"}):
        raise ValueError(f"{where}: must have keys and answer, or a pattern with a group (?P<answer>...), not {given!r}")
    if "pattern" in given:
        try:
            pattern = re.compile(given["pattern"])
        except (re.error, TypeError) as error:
            raise ValueError(f"{where}.pattern: not a regular expression: {error}") from None
        if "answer" not in pattern.groupindex:
            raise ValueError(f"{where}.pattern: has no group that holds what the answer says; write it as (?P<answer>...)")
        return Form(name, pattern, {}, "answer")
    keys = given["keys"]
    if not isinstance(keys, dict) or not keys or not all(isinstance(key, str) for key in keys):
        raise ValueError(f'{where}.keys: must be names with their values, such as {{thought: text, verdict: ["yes", "no"]}}')
    if given["answer"] not in keys:
        raise ValueError(f"{where}.answer: must be one of the keys {', '.join(keys)}, not {given['answer']!r}")
    return Form(name, None, {key: _values(values, f"{where}.keys.{key}") for key, values in keys.items()}, given["answer"])


def _values(given: Any, where: str) -> tuple[str, ...] | None:
    if given == "text":
        return None
    if not isinstance(given, list) or not given or not all(isinstance(value, str | int | float) for value in given):
        raise ValueError(f"{where}: must be text, or a list of texts and numbers, not {given!r}")
    if any(isinstance(value, bool) for value in given):
        raise ValueError(f'{where}: YAML reads yes and no as true and false; write them in quotes: ["yes", "no"]')
    return tuple(json.dumps(value) for value in given)
