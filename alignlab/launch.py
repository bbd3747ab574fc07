"""Ranks: whether this process is one of several, and starting several of our own."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.config import Hardware
from alignlab.errors import MissingError, StoppedError, UserError


@dataclass(frozen=True)
class World:
    """The processes of this run that somebody else started (torchrun, accelerate launch)."""

    rank: int
    size: int

    @property
    def main(self) -> bool:
        """Whether this process writes files and talks to the person."""
        return self.rank == 0

    def share(self, value: Any = None) -> Any:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        from accelerate import PartialState
        from accelerate.utils import broadcast_object_list

        PartialState(**state_options())
        box = [value if self.main else None]
        broadcast_object_list(box)
        return box[0]

    def agree(self, failure: Exception | None) -> None:
        """Raise on every rank what a rank failed with, the first one's of several; all ranks call it, most of them with None."""
        if self.size > 1:
            from accelerate import PartialState
            from accelerate.utils import gather_object

            PartialState(**state_options())
            failure = next((found for found in gather_object([failure]) if found is not None), None)
        if failure is not None:
            raise failure


ALONE = World(0, 1)
"""one process that nobody else started"""


def world() -> World:
    """Read from the environment that a launcher sets."""
    return World(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def state_options() -> dict[str, Any]:
    """How process groups are opened: without a GPU over gloo, and patient, since a stage of rank 0 may take hours."""
    from datetime import timedelta

    import torch

    return {"cpu": not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU") == "true", "timeout": timedelta(days=1)}


def processes(hardware: Hardware, outside: World) -> int:
    """How many ranks train.

    Raises:
        UserError: a launcher started another number than was asked for.
        MissingError: there are fewer GPUs than asked for.
    """
    gpus = 0
    if hardware.device != "cpu":
        import torch

        gpus = torch.cuda.device_count()
    if hardware.device == "cuda" and gpus < (hardware.processes or 1):
        raise MissingError(
            f"hardware: asks for {hardware.processes or 1} GPU(s) and there are {gpus}. "
            "Choose another: hardware=auto takes what is there."
        )
    if outside.size > 1:
        if hardware.processes not in (None, outside.size):
            raise UserError(
                f"hardware.processes: {hardware.processes} asked for, and the launcher started {outside.size}. "
                "Make the two agree, or choose hardware=auto."
            )
        return outside.size
    return hardware.processes or max(1, gpus)


def train_on_ranks(folder: Path, count: int, cpu: bool) -> None:
    """Run the train stage of a run folder in ``count`` fresh processes on this machine.

    Raises:
        UserError: what the ranks raised.
        StoppedError: a signal came.
        RuntimeError: a rank died.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from alignlab import worker
    from alignlab.train.checkpoint import Checkpoints

    environment = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    if cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
        monitor_interval=0.2,
        start_method="spawn",
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),  # else a folder of its own stays in the system's temporary one
    )
    try:
        results = elastic_launch(config, worker.train)(str(folder), os.getpid())
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise RuntimeError(
            f"training: rank {rank} of {count} ended with exit code {failure.exitcode} ({failure.signal_name()}). "
            "Its last lines are above."
        ) from None
    except SignalException as error:
        kept = Checkpoints(folder / "checkpoints", 1).steps()
        saved = f"step {kept[-1]} is saved in {folder / 'checkpoints'}" if kept else "no step was saved yet"
        status = 130 if error.sigval == signal.SIGINT else 143
        words = f"stopped by {signal.Signals(error.sigval).name}: {saved}. The same command continues from there."
        raise StoppedError(words, status) from None
    finally:  # the launcher leaves its own handlers behind, and the next job of a sweep has an environment of its own
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.environ.clear()
        os.environ.update(environment)
    for outcome in results.values():
        if outcome is not None:
            kind, message, status = outcome
            failure_class = {"MissingError": MissingError}.get(kind, UserError)
            raise StoppedError(message, status) if kind == "StoppedError" else failure_class(message)
