"""Ctrl-C, SIGTERM and SIGUSR1: a stage that can save does so first, any other stops where it is."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from alignlab.errors import StoppedError, UserError

FAILED = 1000
"""a number above that of any signal: a rank cannot go on"""

STATUS: dict[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}
"""the exit status that each signal leads to"""


class Stop:
    """Installed while a run is under way. A second signal ends the process at once.

    Args:
        several: whether this is one of several ranks. The terminal and the launcher both tell each of them, so that the second
            signal is the first one again, and is passed over.
    """

    def __init__(self, several: bool = False) -> None:
        self.signal: int = 0
        self.failure: UserError | None = None
        """why this rank cannot go on; all ranks end together, when they next hear of one another"""
        self._several = several
        self._deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in STATUS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.signal:
            if self._several:
                return
            os._exit(STATUS[number])
        self.signal = number
        if not self._deferred:
            raise self.error("what was finished is kept")

    @property
    def number(self) -> int:
        """What the other ranks are told: the signal that came, :data:`FAILED`, or 0."""
        return FAILED if self.failure else self.signal

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal only sets :attr:`signal`: the loop looks at it after each step."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def error(self, saved: str, number: int = 0) -> StoppedError:
        """The exception that ends the run."""
        which = signal.Signals(number or self.signal)
        return StoppedError(f"stopped by {which.name}: {saved}. The same command continues from there.", STATUS[which])
