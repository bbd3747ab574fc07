"""Several machines that run the same command: they meet at an address, the first one leads, the others train with it.

Each machine publishes one small state and reads those of the others, twice a second, in a thread of its own: who is there, what the
first one is doing, who was told to stop, and why someone ended. So nobody ever waits for a machine that is gone.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from alignlab.config import Config
from alignlab.errors import FAULT, MISSING, OK, LostError, MissingError, StoppedError, UserError
from alignlab.launch import train_on_ranks
from alignlab.lock import FILE as LOCK
from alignlab.lock import FolderLock
from alignlab.provenance import leaves
from alignlab.ranks import CUT_OFF, Failure
from alignlab.signals import STATUS, Stop

PERIOD = 0.5
"""seconds between two looks at the others"""

SILENCE = 10.0
"""seconds after which a machine that is not heard of counts as gone"""

OWN = ("hardware.processes", "hardware.tokens_per_micro", "hardware.logits_mib")
"""keys that may differ from machine to machine"""


class Machines:
    """This machine among those that meet at an address; the one that has the address leads.

    Args:
        count: how many they are.
        address: HOST:PORT.
        minutes: how long to wait for them.

    Raises:
        UserError: there are more machines than that, or the address is none.
        MissingError: nobody answers there.
    """

    seen_within = 90.0
    """seconds that a file may need to show on every machine of a shared file system"""

    def __init__(self, count: int, address: str, minutes: float) -> None:
        from torch.distributed import TCPStore

        self.count, self.address, self._patience = count, address, 60 * minutes
        self.host, self.port = _address(self.address)
        self._store: TCPStore
        self.leads = _is_here(self.host) and self._lead()
        if not self.leads:
            self._connect(time.monotonic() + self._patience)
        self.index = 0 if self.leads else self._store.add("machines", 1)
        if self.index >= self.count:
            raise UserError(
                f"hardware.nodes: {self.count} machine(s) asked for, and more came to {self.address}. Start no more than that."
            )
        self.job = self.trained = 0
        self.mine: dict[str, Any] = {"host": socket.gethostname()}
        self.others: dict[int, dict[str, Any]] = {}
        self._heard: dict[int, float] = {}
        self._looked, self._beat, self.stop = time.monotonic(), 0, Stop()
        threading.Thread(target=self._work, name="machines", daemon=True).start()

    def _lead(self) -> bool:
        """Open the meeting place; False where another process of this machine has."""
        from torch.distributed import DistNetworkError, TCPStore

        try:
            self._store = TCPStore(self.host, self.port, is_master=True, multi_tenant=True, wait_for_workers=False)
        except DistNetworkError as error:
            if os.strerror(errno.EADDRINUSE).lower() not in str(error).lower():
                raise MissingError(f"hardware.rendezvous: {self.address} cannot be opened: {str(error).splitlines()[0]}") from None
            return False
        return True

    def _connect(self, until: float) -> None:
        from torch.distributed import DistError, TCPStore

        while True:
            with suppress(OSError, DistError), socket.create_connection((self.host, self.port), timeout=5):
                patience = timedelta(seconds=30)
                self._store = TCPStore(self.host, self.port, is_master=False, timeout=patience, wait_for_workers=False)
                return
            if time.monotonic() > until:
                raise MissingError(
                    f"hardware.rendezvous: nobody answered at {self.address} for {self._patience / 60:g} minutes.\n"
                    "Start the same command on the machine that has this address, and let others reach its port."
                )
            time.sleep(PERIOD)

    # ---- what each knows of the others

    def publish(self, **state: Any) -> None:
        """Let the others know."""
        self.mine = {**self.mine, **state}

    def _work(self) -> None:
        while True:
            try:
                self._exchange()
            except RuntimeError:  # the first machine is gone: nothing can be heard from anyone
                return
            time.sleep(PERIOD)

    def _exchange(self) -> None:
        self._beat += 1
        self._store.set(f"machine {self.index}", json.dumps({**self.mine, "beat": self._beat}))
        for other in range(self.count):
            if other == self.index or not self._store.check([f"machine {other}"]):
                continue
            state = json.loads(self._store.get(f"machine {other}"))
            if state["beat"] != self.others.get(other, {}).get("beat"):
                self._heard[other] = time.monotonic()
            self.others[other] = state
            if self.leads and state.get("signal") and not self.stop.signal:  # a second one would end this process at once
                os.kill(os.getpid(), state["signal"])
        self._looked = time.monotonic()

    def silent(self) -> str | None:
        """A machine that is no longer heard of, in words."""
        now = time.monotonic()
        if now - self._looked > SILENCE:
            self._heard[0] = min(self._heard.get(0, self._looked), self._looked)
        for other, heard in sorted(self._heard.items()):
            if now - heard > SILENCE and not self.others[other].get("bye"):
                return f"machine {other} of {self.count} ({self.others[other]['host']}) has not been heard of for {SILENCE:.0f} s"
        return None

    def blame(self) -> tuple[int, str, int] | None:
        """Why a machine ended its ranks, the one nearest to the cause: order, message, exit status."""
        told = [tuple(state["failure"]) for state in self.others.values() if state.get("failure") and state["job"] == self.job]
        return min(told) if told else None  # type: ignore[return-value]

    def begin(self) -> int:
        """Let all machines train; returns what tells this time from others at the same address.

        Raises:
            LostError: one of them is gone.
        """
        self.trained += 1
        gone = self.silent()
        if gone:
            raise LostError(f"{gone}. The same command continues.")
        if self.leads:
            self.publish(training=self.trained)
        return 1000 * self.job + self.trained

    def cause(self, failure: Failure) -> Failure:
        """What ended the ranks, of all machines; that of this one, should no other know better."""
        self.publish(failure=(failure.order, failure.message, failure.status))
        until = time.monotonic() + SILENCE + 5
        while failure.order == CUT_OFF and time.monotonic() < until:
            blamed, gone = self.blame(), self.silent()
            if blamed and blamed[0] < CUT_OFF:
                return Failure(*blamed)
            if gone:
                return Failure(0, f"train: {gone}.", LostError.status)
            time.sleep(PERIOD / 5)
        return failure

    def _until(self, ready: Callable[[], bool], seconds: float) -> bool:
        """Wait for something that the others do; False where it does not come."""
        until = time.monotonic() + seconds
        while not ready():
            blamed, gone, over = self.blame(), self.silent(), self._over()
            if over or blamed:
                raise _error(*(over or blamed[1:]))  # type: ignore[index, misc]
            if gone:
                raise LostError(f"{gone}. The same command continues.")
            if time.monotonic() > until:
                return False
            time.sleep(PERIOD / 5)
        return True

    # ---- a run

    def meet(self, config: Config) -> None:
        """Wait until all machines are there with the same command.

        Raises:
            MissingError: some do not come.
            UserError: they were given different commands.
        """
        self.job, self.trained = self.job + 1, 0
        given = {key: value for key, value in leaves(OmegaConf.to_container(config.node, resolve=True)) if key not in OWN}
        given |= {f"version of {name}": version(name) for name in ("alignlab", "torch")}
        new = {"ended": None, "failure": None, "seen": False, "folder": None, "bye": False, "training": 0, "signal": 0}
        self.publish(job=self.job, given=json.loads(json.dumps(given)), **new)

        def all_there() -> bool:
            return sum(state.get("job", 0) >= self.job for state in self.others.values()) == self.count - 1

        if not self._until(all_there, self._patience):
            there = ", ".join([self.mine["host"], *(state["host"] for state in self.others.values())])
            raise MissingError(
                f"hardware.nodes: {len(self.others) + 1} of {self.count} machines came to {self.address} in "
                f"{self._patience / 60:g} minutes ({there}).\n"
                "Start the same command on each; hardware.wait_minutes says how long to wait."
            )
        first, *more = [state for _, state in sorted({**self.others, self.index: self.mine}.items())]
        for state in more:
            one, other = first["given"], state["given"]
            for key in sorted(key for key in {*one, *other} if one.get(key) != other.get(key)):
                raise UserError(
                    f"{key}: {one.get(key)!r} on {first['host']}, which leads, and {other.get(key)!r} on {state['host']}.\n"
                    "Start the same command on every machine."
                )

    def opened(self, folder: Path, stop: Stop) -> None:
        """On the first machine, when it holds the run folder: wait until all others see it."""
        self.stop = stop
        self.publish(folder=(folder / LOCK).read_text())
        if not self._until(lambda: all(state.get("seen") for state in self.others.values()), 2 * self.seen_within):
            raise LostError("hardware.nodes: not every machine came to the run folder in time. The same command continues.")

    def follow(self, folder: Path, config: Config) -> None:
        """On any other machine: train when the first one does, and end when and as it ends.

        Raises:
            UserError: what ended the run, or the folder is not shared.
            StoppedError: a signal came, here or there.
        """
        import torch

        cpu = config.hardware.device == "cpu" or not torch.cuda.is_available()
        with Stop() as stop, stop.deferred():
            self._until(lambda: bool(self._first().get("folder")), self._patience)
            self._see(folder)
            with FolderLock(folder, rank=True):
                self.publish(seen=True)
                while self._over() is None:
                    self.publish(signal=stop.signal)
                    gone = self.silent()
                    if gone:
                        raise LostError(f"{gone}. The same command continues.")
                    if self._first()["training"] > self.trained:
                        with suppress(UserError, StoppedError):  # the first one is told, and says how the run ends
                            train_on_ranks(folder, config.hardware, cpu, stop, self)
                    time.sleep(PERIOD / 5)
        message, status = self._over() or ("", OK)
        if status != OK:
            raise _error(message, status)

    def _first(self) -> dict[str, Any]:
        return self.others.get(0, {})

    def _over(self) -> tuple[str, int] | None:
        """How the first machine says that this run ended; None while it goes on, and on the first machine."""
        first = self._first()
        return tuple(first["ended"]) if first.get("ended") and first["job"] == self.job else None  # type: ignore[return-value]

    def _see(self, folder: Path) -> None:
        """Wait until the lock of the run folder reads here as it does on the first machine."""

        def same() -> bool:
            with suppress(OSError):
                return (folder / LOCK).read_text() == self._first()["folder"]
            return False

        if not self._until(same, self.seen_within):
            message = (
                f"run_dir: {folder} is not the same folder on {self.mine['host']} and on {self._first()['host']}.\n"
                "Machines that train together need a file system that all of them see; give run_dir a folder there."
            )
            self.publish(failure=(0, message, UserError.status))
            raise UserError(message)

    def end(self, error: BaseException | None) -> None:
        """Part: the first machine tells the others how the run ended and waits until they know, another one says that it does."""
        if not self.leads:
            return self._leave()
        status = OK if error is None else getattr(error, "status", FAULT)
        if isinstance(error, KeyboardInterrupt) and status == FAULT:
            status = STATUS[signal.SIGINT]
        self.publish(ended=(str(error or ""), status))
        until = time.monotonic() + SILENCE
        while time.monotonic() < until and not all(state.get("bye") for state in self.others.values()):
            time.sleep(PERIOD / 5)

    def _leave(self) -> None:
        self.publish(bye=True)
        with suppress(RuntimeError):
            self._exchange()


def _error(message: str, status: int) -> BaseException:
    if status in STATUS.values():
        return StoppedError(message, status)
    return {MISSING: MissingError, FAULT: LostError}.get(status, UserError)(message)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"hardware.rendezvous: must be HOST:PORT, such as node01:29500, not '{text}'.")
    return host.strip("[]"), int(port)


def _is_here(host: str) -> bool:
    """Whether an address is one of this machine's.

    Raises:
        MissingError: the name is not known.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise MissingError(
            f"hardware.rendezvous: {host} is not known here ({error.strerror}). Give an address that all machines know."
        ) from None
    for family, kind, protocol, _, address in found:
        with suppress(OSError), socket.socket(family, kind, protocol) as probe:
            probe.bind((address[0], 0))
            return True
    return False


def interface(host: str) -> str | None:
    """Name of the network interface that reaches an address; None where it cannot be told."""
    import fcntl
    import struct

    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing
        own = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                request = struct.pack("256s", name.encode()[:15])
                found = fcntl.ioctl(probe.fileno(), 0x8915, request)  # SIOCGIFADDR
                if socket.inet_ntoa(found[20:24]) == own:
                    return name
    return None
