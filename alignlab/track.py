"""Where figures go while a run is under way: metrics.jsonl for good, a line or a bar for a person."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from alignlab.records import write_jsonl

log = logging.getLogger(__name__)


class MetricsFile:
    """``metrics.jsonl``: one line per optimizer step.

    Args:
        path: the file.
        step: steps done; lines of later steps, left by a run that was cut off, are dropped, as is what is no line of a step.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = write_jsonl(path, self._whole(path, step))
        if kept < step:
            log.warning("%s lacks %d of %d steps; they are not made again, and change nothing else.", path, step - kept, step)
        self._file = path.open("a", encoding="utf-8")

    @staticmethod
    def _whole(path: Path, last: int) -> Iterator[dict[str, Any]]:
        """Lines of steps up to the last one, ascending."""
        before = 0
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else ():
            try:
                row = json.loads(line)
                step = row["step"] if isinstance(row, dict) else None
            except (ValueError, KeyError):
                continue
            if isinstance(step, int) and before < step <= last:
                before = step
                yield row

    def write(self, row: Mapping[str, float | str]) -> None:
        """Append a line; what is not finite (an overflow that fp16's scaler skips) is null, since JSON has no word for it."""
        finite = {name: value if isinstance(value, str) or math.isfinite(value) else None for name, value in row.items()}
        try:
            self._file.write(json.dumps(finite) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._file.name) from None

    def close(self) -> None:
        """Close the file; what could not be written has been said."""
        with suppress(OSError):
            self._file.close()


class Display:
    """Progress for a person: a bar on a terminal, a plain line now and then elsewhere.

    Args:
        what: title.
        total: units of work.
        done: units done before.
    """

    every_seconds = 10.0

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self._what, self._total, self._done = what, total, done
        self._first, self._start, self._last = done, time.monotonic(), time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Display:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=16),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.__enter__()
            self._task = self._bar.add_task(self._what, total=self._total, completed=self._done, note="")
        return self

    def update(self, done: int, note: str = "") -> None:
        """Show that ``done`` units are done."""
        self._done = done
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif now - self._last >= self.every_seconds or done == self._total:
            self._last = now
            rate = (done - self._first) / max(now - self._start, 1e-9)
            left = f", {(self._total - done) / rate:.0f} s left" if rate > 0 and done < self._total else ""
            print(f"{self._what} {done}/{self._total} {note}{left}", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
