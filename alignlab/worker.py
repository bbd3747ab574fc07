"""What a rank runs that alignlab started: the frozen configuration of a run folder, and one stage of it."""

from __future__ import annotations

import os
from pathlib import Path

from omegaconf import OmegaConf


def train(folder: str) -> tuple[str, str, int] | None:
    """The train stage. A refusal comes back as (class, message, status), so that the parent says it once."""
    from alignlab.config import check
    from alignlab.errors import UserError
    from alignlab.launch import World
    from alignlab.pipeline import Run
    from alignlab.signals import Stop
    from alignlab.stages import train as stage

    world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    with Stop() as stop:
        run = Run(Path(folder), check(OmegaConf.load(Path(folder) / "config.yaml")), stop, world)  # type: ignore[arg-type]
        try:
            stage.train(run)
        except UserError as error:
            run.close(failed=True)
            return type(error).__name__, str(error), error.status
        run.close(failed=False)
    return None
