"""Ranks of our own: torch's elastic agent gives them their places, and this module starts, watches and ends them."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, SimpleElasticAgent, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from alignlab.errors import FAULT, MISSING, WRONG
from alignlab.signals import STATUS, Stop
from alignlab.worker import Outcome

START = "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); from alignlab.worker import main; main()"
"""what a rank runs: with our own path to modules, since the run may need some that only this process can find"""

LINES = 8
"""of what a rank said last, that are shown where it is lost"""

GRACE, FAREWELL = 8.0, 25.0
"""seconds that the others have to end, once a rank is lost; and once one has ended as it should, after a signal or a mistake"""


class Rank:
    """The process of one rank.

    Args:
        number: of the rank, over all machines.
        folder: of the run.
        environment: that tells torch where the rank is.
    """

    def __init__(self, number: int, folder: Path, environment: Mapping[str, str]) -> None:
        self.number = number
        shown = number == 0 and sys.stderr.isatty()  # a bar needs the terminal itself
        command = [sys.executable, "-c", START, str(folder), json.dumps(sys.path)]
        self.process = Popen(
            command,
            stdin=PIPE,
            stdout=PIPE,
            stderr=None if shown else PIPE,
            env=dict(environment),
            text=True,
            errors="replace",
        )
        self.lines: deque[str] = deque(maxlen=LINES)
        self._told: list[str] = []
        self._threads = [threading.Thread(target=self._read, args=(stream,), daemon=True) for stream in ("stdout", "stderr")]
        for thread in self._threads:
            thread.start()

    def _read(self, name: str) -> None:
        stream = getattr(self.process, name)
        for line in stream or ():
            if name == "stdout":
                self._told.append(line)
                continue
            self.lines.append(line.rstrip("\n"))
            if self.number == 0:
                with suppress(OSError, ValueError):
                    sys.stderr.write(line)
                    sys.stderr.flush()

    def outcome(self) -> Outcome | None:
        """How it ended; None where it ended well. It has ended."""
        for thread in self._threads:
            thread.join(5.0)
        status = self.process.returncode
        if status == 0:
            return None
        with suppress(ValueError, TypeError, IndexError):
            return Outcome(**json.loads(self._told[-1]))
        if status < 0 and -status in STATUS:  # before it could listen to signals
            return Outcome(f"stopped by {signal.Signals(-status).name}: what was finished is kept", STATUS[-status])
        return Outcome(f"ended with exit status {status}" if status > 0 else killed(-status), FAULT)


def killed(number: int) -> str:
    """A death by signal in words, with its likely cause where there is one."""
    named = f"was killed by signal {number} ({signal.Signals(number).name})"
    if number != signal.SIGKILL:
        return named
    return (
        f"{named}, as the system does when memory runs out.\n"
        "If so, lower hardware.tokens_per_micro, set hardware.gradient_checkpointing=true, or ask for more memory"
    )


@dataclass(frozen=True)
class Failure:
    """What ended the ranks of a machine."""

    order: int
    """the lower, the nearer to the cause"""
    message: str
    status: int
    log: str = ""
    """the traceback"""


STOPPED, FAULTY, CUT_OFF = 3, 2, 4
"""orders of a failure: by a signal, at a fault, and only since another rank could not be reached"""


class Agent(SimpleElasticAgent):
    """Torch's elastic agent of this machine, with processes that are watched more closely than its own.

    A rank that is lost ends the others within :data:`GRACE`, whatever they hang in. A signal is passed on to each rank, which
    saves and ends by itself.

    Args:
        spec: how many ranks, and where the machines meet.
        folder: of the run.
        stop: told of signals.
        more: of the environment of each rank, where it has nothing of that name.
        attempt: tells the meeting of these ranks from others at the same store.
    """

    def __init__(self, spec: WorkerSpec, folder: Path, stop: Stop, more: Mapping[str, str], attempt: int) -> None:
        super().__init__(spec, exit_barrier_timeout=FAREWELL)
        self._folder, self._stop, self._more, self._attempt = folder, stop, more, attempt
        self.ranks: list[Rank] = []
        self._passed_on = False
        self._until: float | None = None

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        for worker in worker_group.workers:
            environment = {
                "RANK": worker.global_rank,
                "WORLD_SIZE": worker.world_size,
                "LOCAL_RANK": worker.local_rank,
                "LOCAL_WORLD_SIZE": worker_group.spec.local_world_size,
                "GROUP_RANK": worker_group.group_rank,
                "MASTER_ADDR": worker_group.master_addr,
                "MASTER_PORT": worker_group.master_port,
                "TORCHELASTIC_USE_AGENT_STORE": True,
                "TORCHELASTIC_RESTART_COUNT": self._attempt,
                "TORCHELASTIC_RUN_ID": worker_group.spec.rdzv_handler.get_run_id(),
            }
            texts = {name: str(value) for name, value in environment.items()}
            self.ranks.append(Rank(worker.global_rank, self._folder, {**self._more, **os.environ, **texts}))
        return {local: rank.process.pid for local, rank in enumerate(self.ranks)}

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if self._stop.signal and not self._passed_on:
            self._passed_on = True
            self._tell(self._stop.signal)
        statuses = [rank.process.poll() for rank in self.ranks]
        if all(status == 0 for status in statuses):
            return RunResult(WorkerState.SUCCEEDED, return_values={rank.number: None for rank in self.ranks})
        ended = [rank for rank, status in zip(self.ranks, statuses, strict=True) if status]
        if ended and self._until is None:
            expected = all(status in (WRONG, MISSING, *STATUS.values()) for status in statuses if status)
            self._until = time.monotonic() + (FAREWELL if expected else GRACE)
        if ended and (None not in statuses or time.monotonic() > (self._until or 0)):
            failures = {
                rank.number: ProcessFailure(local, rank.process.pid, int(status), os.devnull)
                for local, (rank, status) in enumerate(zip(self.ranks, statuses, strict=True))
                if status
            }
            return RunResult(WorkerState.FAILED, failures=failures)
        return RunResult(WorkerState.HEALTHY)

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        self._tell(signal.SIGKILL)
        for rank in self.ranks:
            rank.process.wait()

    def _shutdown(self, *_: Any, **__: Any) -> None:
        self._stop_workers(self._worker_group)

    def _tell(self, number: int) -> None:
        for rank in self.ranks:
            if rank.process.poll() is None:
                rank.process.send_signal(number)

    def failure(self, failed: Sequence[int]) -> Failure:
        """What ended the ranks, of which these failed by themselves."""
        found = [(rank, outcome) for rank in self.ranks if rank.number in failed and (outcome := rank.outcome()) is not None]
        return min((self._weighed(rank, outcome) for rank, outcome in found), key=lambda failure: failure.order)

    def _weighed(self, rank: Rank, outcome: Outcome) -> Failure:
        if outcome.status in STATUS.values():
            return Failure(STOPPED, outcome.message, outcome.status)
        if outcome.status != FAULT:
            return Failure(1, outcome.message, outcome.status)
        lines = outcome.lines.strip().splitlines() if outcome.lines else rank.lines
        last = "\n".join(["Its last lines:", *(f"  {line}" for line in list(lines)[-LINES:])]) if lines else "It said nothing."
        order = 0 if rank.process.returncode < 0 else CUT_OFF if outcome.cut_off else FAULTY
        size = self._worker_group.workers[0].world_size
        what = f"train: rank {rank.number} of {size} on {socket.gethostname()}{'' if order == 0 else ' failed:'} {outcome.message}."
        return Failure(order, f"{what}\n{last}", FAULT, outcome.lines)
