"""Errors that end a run with a sentence instead of a traceback, and the exit status each one means."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

OK, FAULT, WRONG, MISSING = 0, 1, 2, 3


class UserError(Exception):
    """The command, the configuration or the data is wrong (exit status 2).

    The message says what is wrong, where (``file:line:field`` or a config path) and what to do, in one to three lines.
    """

    status = WRONG


class MissingError(UserError):
    """Something the run needs is not there: weights, network, package, memory, disk (exit status 3)."""

    status = MISSING


class StoppedError(KeyboardInterrupt):
    """A signal ended the run after everything was saved (exit status 128 + signal; 143 for SIGUSR1).

    No ``Exception``, so that code which tries one thing after another does not take it for a failed try.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[type, tuple[str, int]]:
        """Ranks tell one another of it."""
        return StoppedError, (str(self), self.status)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the nearest other word that is known, or an empty string when none is near.

    Of two dotted keys the last part counts as much as the whole: ``train.rnk`` is near ``train.lora.rank``.
    """

    def nearness(other: str) -> tuple[float, float]:
        whole = SequenceMatcher(None, word, other).ratio()
        last = SequenceMatcher(None, word.split(".")[-1], other.split(".")[-1]).ratio()
        return max(whole, last if last > 0.75 and "." in other else 0.0), whole

    nearest = max((other for other in known if other != word), key=nearness, default=None)
    return f" Did you mean '{nearest}'?" if nearest is not None and nearness(nearest)[0] >= 0.6 else ""
