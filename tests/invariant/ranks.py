"""The train stage on ranks that are forks of this process: everything is imported there already, so that they begin at once.

A rank does what one does that ``hardware=cpu2`` starts: :func:`alignlab.worker.train` on a frozen configuration, in a process and
a gloo group of its own, under the environment of torch's launcher.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch.distributed.fsdp  # noqa: F401 - before the fork, not in each rank
from accelerate.state import AcceleratorState
from torch.distributed import TCPStore

from alignlab import worker

SECONDS = 180
"""after which ranks that have not ended count as hanging"""


def train(folders: Sequence[Path], count: int) -> None:
    """Train in run folders with a frozen configuration, one after another, on so many ranks.

    Raises:
        RuntimeError: a rank fails, with what all of them said, or does not end.
    """

    def rank() -> None:
        for folder in folders:
            failure = worker.train(folder)
            if failure is not None:
                raise RuntimeError(f"{failure.message}\n{failure.lines}")

    # the parent keeps the store where ranks meet, as the launcher does: its port is free for sure
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "ACCELERATE_USE_CPU": "true",
    }
    said = [folders[0].with_name(f"{folders[0].name}-rank{number}.txt") for number in range(count)]
    pids = [_fork(rank, environment | {"RANK": str(i), "LOCAL_RANK": str(i)}, said[i]) for i in range(count)]
    if not _all_end_well(pids):
        raise RuntimeError("\n".join(f"rank {i}: {file.read_text(errors='replace')}" for i, file in enumerate(said)))


def _fork(job: Callable[[], None], environment: dict[str, str], said: Path) -> int:
    """The id of a process that does the job and ends with status 0, or 1 if it raises."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(descriptor, number)
        sys.stdout = sys.stderr = os.fdopen(descriptor, "w", buffering=1)
        os.environ.update(environment)
        AcceleratorState._reset_state(reset_partial_state=True)  # what this process knew of itself
        job()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _all_end_well(pids: list[int]) -> bool:
    """Whether all end with status 0. Once one fails, or the time is over, the others are killed."""
    running, well, end = set(pids), True, time.monotonic() + SECONDS
    while running:
        for pid in sorted(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                running.discard(pid)
                well = well and status == 0
        if not well or time.monotonic() > end:
            for pid in running:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            return False
        time.sleep(0.01)
    return True
