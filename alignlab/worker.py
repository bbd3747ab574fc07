"""What a rank runs that alignlab started: the frozen configuration of a run folder, and one stage of it."""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from alignlab.errors import FAULT, MissingError, StoppedError, UserError, memory_error


@dataclass(frozen=True)
class Outcome:
    """How a rank ended that did not end well."""

    message: str
    status: int
    """exit status that this alone would mean"""
    cut_off: bool = False
    """whether it could not reach another rank, which is then the one to ask why"""
    lines: str = ""
    """the last of its traceback, where it met a fault"""


def main() -> None:
    """Entry point of a rank; what it comes to goes to the parent as a line of JSON on stdout, where nothing else is written.

    It ends at once when its parent is gone, however that ended: then its stdin ends.
    """
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.Thread(target=_end_without_parent, daemon=True).start()
    outcome = train(Path(sys.argv[1]))
    if outcome is not None:
        said.write(json.dumps(asdict(outcome)) + "\n")
    said.close()
    sys.stderr.flush()
    os._exit(outcome.status if outcome else 0)  # threads of a library that hangs, of a tracker say, keep no rank


def _end_without_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(FAULT)


def train(folder: Path) -> Outcome | None:
    """The train stage of a run folder, as the rank that the environment names. What it raises is told, not raised."""
    try:
        _train(folder)
    except (UserError, StoppedError) as error:
        return Outcome(str(error), error.status)
    except Exception as error:
        memory = memory_error(error)
        if memory is not None:
            return Outcome(str(memory), MissingError.status)
        from alignlab.launch import cut_off

        first = next(iter(str(error).splitlines()), "")
        return Outcome(f"{type(error).__name__}: {first}", FAULT, cut_off(error), traceback.format_exc())
    return None


def _train(folder: Path) -> None:
    from omegaconf import OmegaConf

    from alignlab.__main__ import _quiet_libraries
    from alignlab.config import check
    from alignlab.environment import log_file
    from alignlab.launch import World
    from alignlab.lock import FolderLock
    from alignlab.pipeline import Run
    from alignlab.signals import Stop
    from alignlab.stages import train as stage

    with Stop(several=True) as stop:
        _quiet_libraries()
        world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
        with FolderLock(folder, rank=True), log_file(folder) if world.main else nullcontext():
            run = Run(folder, check(OmegaConf.load(folder / "config.yaml")), stop, world)  # type: ignore[arg-type]
            failed = True
            try:
                stage.train(run)
                failed = False
            finally:
                run.close(failed=failed)
