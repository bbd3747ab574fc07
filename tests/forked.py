"""The command in a fork of this process: everything is imported there already, so that a run takes a second."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class Forked:
    """A run that can be killed; see :class:`alignlab.interrupt.Process`.

    Args:
        arguments: of the command.
        said: file for what it writes to stdout and stderr.
        first: called in the fork before the command.
    """

    def __init__(self, arguments: Sequence[str], said: Path, first: Callable[[], object] | None = None) -> None:
        self._said, self._status = said, None
        self.pid = os.fork()
        if self.pid:
            return
        status = 99
        try:
            descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number in (1, 2):
                os.dup2(descriptor, number)
            sys.stdout = sys.stderr = open(2, "w", buffering=1)  # noqa: SIM115
            from accelerate.state import AcceleratorState, GradientState
            from tqdm import tqdm

            from alignlab.__main__ import command

            AcceleratorState._reset_state(reset_partial_state=True)  # of what the parent ran
            GradientState._reset_state()
            tqdm.set_lock(threading.RLock())  # its own is shared by all forks: whoever is killed with it stops the others
            if first:
                first()
            status = command(arguments)
        finally:
            os._exit(status)

    def poll(self) -> int | None:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def wait(self, timeout: float = 120) -> int:
        end = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("alignlab", timeout)
            time.sleep(0.002)
        return status

    def send(self, name: str) -> None:
        os.kill(self.pid, getattr(signal, name))

    def kill(self) -> None:
        if self.poll() is None:
            self.send("SIGKILL")

    def words(self) -> str:
        return self._said.read_text(errors="replace")

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: Any) -> None:
        self.kill()
        self.wait()


def ranks(arguments: Sequence[str], said: Path, first: Callable[[], object]) -> list[Forked]:
    """Two processes of one run, as a launcher starts them; their words are in files that end with the rank."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    def started(rank: int) -> Callable[[], object]:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        environment = {"MASTER_ADDR": "127.0.0.1"} | {key: str(value) for key, value in places.items()}
        return lambda: (os.environ.update(environment), first())

    return [Forked(arguments, said.with_name(f"{said.name}-{rank}"), started(rank)) for rank in range(2)]


class ForkedRank(subprocess.Popen[str]):
    """Stands for ``subprocess.Popen`` where ranks are started: a fork that runs the same, and need not import it first."""

    def _execute_child(self, args: Any, *others: Any) -> None:
        env, (reads, write, read, writes, hear, says) = others[5], others[9:15]  # as Popen itself passes them
        self.pid = os.fork()
        self._child_created = True
        if self.pid:
            for descriptor in (reads, writes, says):
                if descriptor >= 0:
                    os.close(descriptor)
            return
        try:
            for number, descriptor in enumerate((reads, writes, says)):
                os.dup2(descriptor, number)
            for descriptor in (write, read, hear):  # the parent's; no others, since objects that are copied here still close theirs
                if descriptor >= 0:
                    os.close(descriptor)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, signal.SIG_DFL)
            os.environ.clear()
            os.environ.update(env)
            sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1)
            sys.argv = ["-c", args[3]]
            from accelerate import PartialState

            from alignlab.worker import main

            PartialState._reset_state()
            main()
        finally:
            os._exit(99)
