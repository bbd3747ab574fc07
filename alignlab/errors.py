"""Errors that end a run with a sentence instead of a traceback, and the exit status each one means."""

from __future__ import annotations

import errno
import os
import re
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


class LostError(UserError):
    """A rank or a machine of the run is gone (exit status 1). What was saved is kept."""

    status = FAULT


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


_FULL = "Free some space; the same command goes on from there."
_ADVICE = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "Let files grow larger there (ulimit -f says how large they may be); the same command goes on from there.",
    errno.EROFS: "Make it writable, or choose another folder: run_dir=FOLDER.",
    errno.EACCES: "See to its permissions, or choose another folder: run_dir=FOLDER.",
}


_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|Cannot allocate memory", re.IGNORECASE)


def memory_error(error: BaseException) -> MissingError | None:
    """What to tell the person where the memory of the machine or of the GPU has run out; None where another thing happened."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not named and not (isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error))):
        return None
    where = "Lower hardware.tokens_per_micro or sampler.rows, or set hardware.gradient_checkpointing=true."
    return MissingError(f"out of memory: {next(iter(str(error).splitlines()), '')}\n{where}")


def system_error(error: BaseException) -> OSError | None:
    """The system's refusal that an error tells of; None where it tells of none.

    Libraries written in Rust (safetensors, tokenizers) raise an exception of their own, with the system's number in its text.
    """
    if isinstance(error, OSError):
        return error
    found = None if isinstance(error, UserError) else re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def refused(what: str, error: OSError, where: object) -> MissingError:
    """The system's refusal in words.

    Args:
        what: could not go on, such as a stage.
        error: the refusal.
        where: the folder that is concerned, should the error name no file.
    """
    advice = _ADVICE.get(error.errno or 0)
    return MissingError(f"{what}: {error.strerror or error} ({error.filename or where})." + (f"\n{advice}" if advice else ""))


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
