"""Errors that end a run with a sentence instead of a traceback, and the exit status each one means."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

OK, FAULT, WRONG, MISSING = 0, 1, 2, 3


class UserError(Exception):
    """The command, the configuration or the data is wrong (exit status 2).

    The message says what is wrong, where (``file:line:field`` or a config path) and what to do, in one to three lines.
    """

    status = WRONG


class MissingError(UserError):
    """Something the run needs is not there: weights, network, package, memory, disk (exit status 3)."""

    status = MISSING


class StoppedError(UserError):
    """A signal ended the run after everything was saved (exit status 128 + signal; 143 for SIGUSR1)."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the nearest other word that is known, or an empty string when none is near."""
    candidates = [other for other in known if other != word]
    near = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    if not near:  # a misspelt last part of a dotted key is nearer than the whole key says
        near = [key for key in candidates if difflib.SequenceMatcher(None, key.split(".")[-1], word.split(".")[-1]).ratio() > 0.75]
    return f" Did you mean '{near[0]}'?" if near else ""
