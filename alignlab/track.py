"""Where figures go while a run is under way: metrics.jsonl always, a tracker beside it, a line or a bar for a person."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.errors import MissingError
from alignlab.records import write_jsonl

log = logging.getLogger(__name__)


class MetricsFile:
    """``metrics.jsonl``: one line per optimizer step.

    Args:
        path: the file.
        step: steps done; lines of later steps, left by a run that was cut off, are dropped.
    """

    def __init__(self, path: Path, step: int) -> None:
        write_jsonl(path, (row for row in self._whole(path) if row["step"] <= step))
        self._file = path.open("a", encoding="utf-8")

    @staticmethod
    def _whole(path: Path) -> Iterator[dict[str, Any]]:
        """Lines up to the one that a crash cut off."""
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return

    def write(self, row: Mapping[str, float]) -> None:
        """Append a line; what is not finite (an overflow that fp16's scaler skips) is null, since JSON has no word for it."""
        finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@dataclass(frozen=True)
class NoTracker:
    """Only the run's own files."""

    def start(self, folder: Path, name: str, run_id: str, config: Mapping[str, Any]) -> None:
        """Nothing to open."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing to mirror to."""

    def summary(self, figures: Mapping[str, float], files: Sequence[str]) -> None:
        """Nothing to mirror to."""

    def finish(self, failed: bool) -> None:
        """Nothing to close."""


@dataclass
class Wandb:
    """Weights & Biases. A failure of it is logged once and never stops a run."""

    mode: str
    """online or offline; offline runs are uploaded later with ``wandb sync``"""
    project: str
    entity: str | None

    def __post_init__(self) -> None:
        self._run: Any = None
        if self.mode not in ("online", "offline"):
            raise ValueError(f"mode: must be online or offline, not {self.mode!r}")

    def start(self, folder: Path, name: str, run_id: str, config: Mapping[str, Any]) -> None:
        """Open the run ``run_id``, the same one after a resume."""
        os.environ.setdefault("WANDB_SILENT", "true")
        try:
            import wandb
        except ImportError:
            raise MissingError("tracker: the package wandb is not installed. Install it, or choose tracker=none.") from None
        if self.mode == "online" and not (os.environ.get("WANDB_API_KEY") or _has_login()):
            raise MissingError("tracker: no wandb API key. Set WANDB_API_KEY or run 'wandb login', or choose tracker=offline.")
        try:
            self._run = wandb.init(
                project=self.project,
                entity=self.entity,
                name=name,
                id=run_id,
                resume="allow" if self.mode == "online" else None,
                dir=str(folder),
                mode=self.mode,  # type: ignore[arg-type]
                config=dict(config),
                settings=wandb.Settings(init_timeout=30, console="off"),
            )
        except Exception as error:
            log.warning("wandb does not start (%s); the run goes on without it.", error)

    def _safely(self, act: str, *args: Any, **kwargs: Any) -> None:
        try:
            if self._run is not None:
                getattr(self._run, act)(*args, **kwargs)
        except Exception as error:
            log.warning("wandb fails (%s); the run goes on without it.", error)
            self._run = None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Mirror one step."""
        self._safely("log", dict(values), step=step)

    def summary(self, figures: Mapping[str, float], files: Sequence[str]) -> None:
        """Mirror the results and the plots."""
        try:
            if self._run is not None:
                import wandb

                self._run.summary.update(dict(figures))
                self._run.log({Path(path).stem: wandb.Image(path) for path in files})
        except Exception as error:
            log.warning("wandb fails (%s); the run goes on without it.", error)

    def finish(self, failed: bool) -> None:
        """Close."""
        self._safely("finish", exit_code=int(failed))
        self._run = None


def _has_login() -> bool:
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return netrc.exists() and "wandb" in netrc.read_text(errors="replace")


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
