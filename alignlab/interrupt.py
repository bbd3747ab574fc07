"""Killing a run at random instants, letting it continue, and comparing what it leaves with what another run left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

from alignlab.errors import OK
from alignlab.journal import SUFFIX
from alignlab.records import read_jsonl
from alignlab.seeds import generator

START = "start"
"""the time before the first stage"""

TIMED = frozenset({"metrics.jsonl", "report.md", "report.html", "plots"})
"""files of stages that hold times"""


class Process(Protocol):
    """What is killed; :class:`subprocess.Popen` is one."""

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status; raises TimeoutExpired where it runs longer."""

    def kill(self) -> None:
        """Send SIGKILL."""

    def words(self) -> str:
        """What it wrote to stderr."""


class Group(subprocess.Popen[bytes]):
    """A run in a process of its own, whose ranks are killed with it.

    Args:
        arguments: of the command.
        shown: whether a person sees what it says; else it is kept.
    """

    def __init__(self, arguments: Sequence[str], *, shown: bool = False) -> None:
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 # closed with the process
        command = [sys.executable, "-m", "alignlab", *arguments]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": None if shown else self._words}
        super().__init__(command, start_new_session=True, **streams)  # type: ignore[call-overload]

    def kill(self) -> None:
        """Kill the process and all that it started."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:  # all of them have ended
            return

    def words(self) -> str:
        """What it said, if it was not shown."""
        self._words.seek(0)
        return self._words.read().decode(errors="replace")

    def __exit__(self, *_: Any) -> None:
        self.kill()
        self.wait()
        self._words.close()


def begun(run: Path, since: int = 0) -> list[str]:
    """Stages that began in a run folder, from ``log.txt`` after so many bytes."""
    log = run / "log.txt"
    if not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(since)
        return re.findall(r" alignlab\.pipeline: (\w+) begins$", file.read().decode(errors="replace"), re.MULTILINE)


def durations(process: Process, run: Path) -> dict[str, float]:
    """Seconds that a process spends on each stage of its run, in their order; those before the first one as :data:`START`."""
    began = {START: time.monotonic()}
    while process.poll() is None:
        for stage in begun(run):
            began.setdefault(stage, time.monotonic())
        time.sleep(0.05)
    ends = [*list(began.values())[1:], time.monotonic()]
    return {stage: end - start for (stage, start), end in zip(began.items(), ends, strict=True)}


Instant = tuple[tuple[str, ...], float]
"""stages, and seconds since the first of them began; of no stage, since the start of the process"""


def instants(seconds: Mapping[str, float], kills: int, seed: int) -> list[Instant]:
    """When to kill: each stage as likely as another, however short it is, and each moment of it as likely as another.

    They are in the order in which a run that loses nothing comes to them, each counted from the one before.
    """
    random, stages = generator(seed, "verify"), tuple(seconds)
    drawn = sorted((int(random.integers(len(stages))), float(random.random())) for _ in range(kills))
    found, before = list[Instant](), (-1, 0.0)
    for place, share in drawn:
        since = before[1] if before[0] == place else 0.0
        found.append((stages[place:] if place else (), (share - since) * seconds[stages[place]]))
        before = place, share
    return found


def kill_at(process: Process, run: Path, instant: Instant, since: int) -> bool:
    """Kill a process at an instant; False where it ended before.

    Args:
        process: that writes to the run folder.
        run: the folder.
        instant: when.
        since: bytes of its ``log.txt`` that are older than the process.
    """
    stages, seconds = instant
    while stages and not set(stages) & set(begun(run, since)):
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False


@dataclass
class Interrupted:
    """What became of a run that was killed and continued."""

    kills: list[str] = field(default_factory=list)
    """when it was killed, in words"""
    problems: list[str] = field(default_factory=list)
    """how it failed to continue"""


def interrupted(start: Callable[[], Any], run: Path, when: Sequence[Instant], say: Callable[[str], None]) -> Interrupted:
    """Kill a run at each instant, and let it go to the end then.

    Args:
        start: starts a process of the run, a context that ends with it.
        run: its folder.
        when: the instants.
        say: told of each kill.
    """
    found = Interrupted()
    for instant in [*when, None]:
        log = run / "log.txt"
        since = log.stat().st_size if log.exists() else 0
        with start() as process:
            if instant is not None and kill_at(process, run, instant, since):
                stage = next(iter(begun(run, since)[-1:]), START)
                found.kills.append(f"in {stage}, {instant[1]:.2f} s after {next(iter(instant[0]), START)} began")
                say(f"kill {len(found.kills)} of {len(when)}: {found.kills[-1]}")
                continue
            if (status := process.wait()) != OK:
                last = " | ".join(process.words().strip().splitlines()[-3:])
                found.problems.append(f"after {len(found.kills)} kills it cannot continue (exit status {status}): {last}")
            break
    return found


def differences(whole: Path, other: Path) -> tuple[int, list[str]]:
    """How many files the stages of a run left, times apart, and how those of another run differ.

    Left behind by the other: files under a temporary name, and work in progress.
    """
    there, here = _files(whole), _files(other)
    problems = []
    for name in sorted(there | here):
        one, two = whole / name, other / name
        if not (one.is_file() and two.is_file()):
            problems.append(f"{name}: {'only the run that was not killed has it' if one.is_file() else 'should not be there'}")
        elif (at := _first_difference(one, two)) is not None:
            problems.append(f"{name}: differs from byte {at} on")
    losses = [[(row["step"], row["loss"]) for row in _rows(run / "metrics.jsonl")] for run in (whole, other)]
    for expected, step in zip_longest(*losses):
        if expected != step:
            problems.append(f"metrics.jsonl: step and loss are {expected} in the one and {step} in the other")
            break
    return len(there), problems + [f"{path.relative_to(other)}: was left behind" for path in rubbish(other)]


def rubbish(folder: Path) -> list[Path]:
    """Files and folders that only work under way has."""
    return sorted(path for path in folder.rglob("*") if path.name.endswith((".tmp", ".old", SUFFIX)))


def _files(run: Path) -> set[str]:
    """Names of the files that the markers of a run's stages name, and of those in folders that they name."""
    named = [name for marker in (run / "done").glob("*.json") for name in json.loads(marker.read_text())["files"]]
    files = {path for name in named if name not in TIMED for path in (run / name, *(run / name).rglob("*")) if not path.is_dir()}
    return {path.relative_to(run).as_posix() for path in files}


def _first_difference(one: Path, two: Path) -> int | None:
    at = 0
    with one.open("rb") as first, two.open("rb") as second:
        while True:
            here, there = first.read(1 << 20), second.read(1 << 20)
            if here != there:
                both = enumerate(zip(here, there, strict=False))
                return at + next((i for i, (a, b) in both if a != b), min(len(here), len(there)))
            if not here:
                return None
            at += len(here)


def _rows(path: Path) -> list[dict[str, Any]]:
    return list(read_jsonl(path)) if path.exists() else []
