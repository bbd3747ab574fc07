"""Ranks: whether this process is one of several, and starting several of our own."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab import slurm
from alignlab.config import Hardware
from alignlab.errors import LostError, MissingError, StoppedError, UserError
from alignlab.signals import STATUS, Stop

if TYPE_CHECKING:
    from alignlab.machines import Machines

log = logging.getLogger(__name__)


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


def world(arguments: Sequence[str] = ()) -> World:
    """Read from the environment that a launcher sets; that of ``srun`` is put into torch's words first.

    Args:
        arguments: of the command. Where it is for several machines, each task of ``srun`` is one of them, and no rank.
    """
    several = any(re.match(r"\+*hardware(=nodes$|\.nodes=)", argument) for argument in arguments)
    if "RANK" not in os.environ and not several:
        os.environ.update(slurm.ranks(os.environ))
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


@cache
def _machines(hardware: tuple[int, str, float]) -> Machines:
    """One meeting for all runs of a process at the same address."""
    from alignlab.machines import Machines

    return Machines(*hardware)


def met(hardware: Hardware, outside: World) -> Machines | None:
    """The machines that train together; None where this one is alone.

    Raises:
        UserError: where they meet is not said, or a launcher has started ranks already.
        MissingError: nobody is there.
    """
    if hardware.nodes == 1:
        return None
    if outside.size > 1:
        raise UserError(
            "hardware.nodes: alignlab starts the ranks of each machine itself. "
            "Start the command once on each, without torchrun or accelerate launch; or leave hardware.nodes out."
        )
    if not hardware.rendezvous:
        raise UserError("hardware.rendezvous: several machines meet at an address; give HOST:PORT of one of them.")
    return _machines((hardware.nodes, hardware.rendezvous, hardware.wait_minutes))


@contextmanager
def leading(machines: Machines | None, folder: Path, stop: Stop) -> Iterator[None]:
    """While the first machine runs the stages; the others end as this ends."""
    if machines is None:
        yield
        return
    error: BaseException | None = None
    try:
        machines.opened(folder, stop)
        yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        machines.end(error)


def starts_ranks(hardware: Hardware, outside: World) -> bool:
    """Whether the train stage of this process only starts ranks and waits for them."""
    return outside.size == 1 and (processes(hardware, outside) > 1 or hardware.nodes > 1)


def train_on_ranks(folder: Path, hardware: Hardware, cpu: bool, stop: Stop, machines: Machines | None = None) -> None:
    """Run the train stage of a run folder in fresh processes of this machine, which are the ranks or, of several machines, some.

    Raises:
        UserError: what the ranks raised, or a LostError: a rank or a machine is gone.
        StoppedError: a signal came.
    """
    from torch.distributed import TCPStore
    from torch.distributed.elastic.agent.server.api import WorkerSpec
    from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

    from alignlab.machines import interface
    from alignlab.ranks import START, Agent
    from alignlab.train.checkpoint import Checkpoints

    count = processes(hardware, ALONE)
    more = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))}
    if cpu:
        more["ACCELERATE_USE_CPU"] = "true"
    if machines is None:
        store = TCPStore("127.0.0.1", 0, is_master=True, multi_tenant=True, wait_for_workers=False)
        place, attempt = ("127.0.0.1", store.port, 0, 1), 0
    else:
        place, attempt = (machines.host, machines.port, machines.index, machines.count), machines.begin()
        if wire := interface(machines.host):
            more["GLOO_SOCKET_IFNAME"] = wire
    meeting = StaticTCPRendezvous(*place, f"{folder.name}-{attempt}", 60)
    spec = WorkerSpec("rank", count, meeting, entrypoint=START, max_restarts=0, monitor_interval=0.1)
    agent = Agent(spec, folder, stop, more, attempt)
    with stop.deferred():
        result = agent.run()
        if not result.is_failed():
            return
        failure = agent.failure(list(result.failures))
        if machines is not None:
            failure = machines.cause(failure)
        if failure.status in STATUS.values() and not stop.signal:  # it came to a rank, or to another machine; not again
            stop.signal = next(number for number, status in STATUS.items() if status == failure.status)
    kept = Checkpoints(folder / "checkpoints", 1).steps()
    saved = f"step {kept[-1]} is saved in {folder / 'checkpoints'}" if kept else "no step was saved yet"
    if failure.status in STATUS.values():
        raise StoppedError(failure.message, failure.status)
    if failure.log:
        log.info("%s", failure.log)
    if failure.status != LostError.status:
        raise {MissingError.status: MissingError}.get(failure.status, UserError)(failure.message)
    raise LostError(f"{failure.message}\nAll ranks have ended; {saved}. The same command continues from there.")


_NETWORK = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket", re.IGNORECASE)


def cut_off(error: BaseException) -> bool:
    """Whether an error only says that another rank could not be reached."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and bool(_NETWORK.search(str(error))))


def missing_ranks(world: World, seconds: float = 3.0) -> list[int]:
    """Ranks that do not answer: each that still runs calls this. Empty where it cannot be told, or all of them do."""
    from torch.distributed.distributed_c10d import _get_default_store

    others, until = set(range(world.size)) - {world.rank}, time.monotonic() + seconds
    try:
        store = _get_default_store()
        store.set(f"alignlab/here/{world.rank}", "")
        while others and time.monotonic() < until:
            others = {rank for rank in others if not store.check([f"alignlab/here/{rank}"])}
            time.sleep(0.1)
    except (RuntimeError, ValueError):
        return [0] if world.rank else []  # which keeps the store, where no launcher does
    return sorted(others)


@contextmanager
def naming_lost_ranks(stage: str, world: World, stop: Stop) -> Iterator[None]:
    """Where ranks that a launcher started can no longer reach one of them: say which, once.

    Raises:
        LostError: this is so; without words on all ranks but the first of those that are left.
    """
    try:
        yield
    except Exception as error:
        if world.size > 1 and not isinstance(error, UserError) and cut_off(error):
            raise _lost(error, stage, world, stop) from error
        raise


def _lost(error: Exception, stage: str, world: World, stop: Stop) -> LostError:
    with stop.deferred():  # the launcher, too, notices, and ends us soon
        gone = missing_ranks(world)
    if world.rank != min({*range(world.size)} - {*gone}):
        return LostError("")
    who = f"rank {', '.join(map(str, gone))} of {world.size} is gone" if gone else "a rank could not be reached"
    log.info("%s", error)
    return LostError(
        f"{stage}: {who}. What it said last, and how it ended, stands above or in what the launcher says.\n"
        "If it was killed by signal 9, memory may have run out. The same command continues from the last checkpoint."
    )
