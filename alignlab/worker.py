"""What a rank runs that alignlab started: the frozen configuration of a run folder, and one stage of it."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

from omegaconf import OmegaConf

from alignlab.errors import FAULT

Outcome = tuple[str, str, int]
"""class of what was raised, its message, exit status"""


def train(folder: str, parent: int) -> Outcome | None:
    """The train stage. What it raises for the person comes back, so that the parent says it once.

    A killed parent sends SIGINT; nobody reads then what comes back, and the process ends here.
    """
    _end_without(parent)
    from alignlab.__main__ import _quiet_libraries
    from alignlab.config import check
    from alignlab.environment import log_file
    from alignlab.errors import StoppedError, UserError
    from alignlab.launch import World
    from alignlab.lock import FolderLock
    from alignlab.pipeline import Run
    from alignlab.signals import Stop
    from alignlab.stages import train as stage

    _quiet_libraries()
    world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    failed: Outcome | None = None
    writes = log_file(Path(folder)) if world.main else nullcontext()
    with FolderLock(Path(folder), rank=True), writes, Stop(several=True) as stop:
        run = Run(Path(folder), check(OmegaConf.load(Path(folder) / "config.yaml")), stop, world)  # type: ignore[arg-type]
        try:
            stage.train(run)
        except (UserError, StoppedError) as error:
            failed = type(error).__name__, str(error), error.status
        finally:
            run.close(failed=failed is not None)
    _end_without(parent)
    return failed


def _end_without(parent: int) -> None:
    if os.getppid() != parent:
        os._exit(FAULT)
