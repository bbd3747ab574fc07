"""One run at a time in a run folder: a lock that the system takes back when its process ends, however it ends."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from alignlab.errors import UserError

FILE = "run.lock"
"""in a run folder; it stays there, and says who works or last worked in the folder"""

ENDING, ORPHANS = 1.0, 60.0
"""seconds that a new run waits: for a process that is just ending, and for ranks whose parent was killed"""


class FolderLock:
    """Holds a run folder until it is closed. Every process of a run holds it, and none of another run can.

    A run takes the lock for itself, which no other can do while a single process holds it, and shares it with its ranks at once.
    Whoever only reads the folder takes no lock.

    Args:
        folder: of the run; it exists.
        rank: whether this is one more process of the run that holds the folder.

    Raises:
        UserError: another run is at work there.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, *, rank: bool = False) -> None:
        self._folder = folder
        self._file = (folder / FILE).open("a+", encoding="utf-8")
        try:
            if not rank:
                self._wait()
                self._sign()
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self._holder()
            self._file.close()
            raise UserError(_refusal(folder, holder)) from None
        except OSError as error:
            if not rank:
                self._sign()
                print(
                    f"run_dir: {folder} is on a file system without locks ({error.strerror}): start no second run there.",
                    file=sys.stderr,
                )
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others work there."""
        self._file.close()

    def _wait(self) -> None:
        """Take the lock for this process alone. What is just ending, or lost its parent, is given time to end."""
        started, told = time.monotonic(), False
        while True:
            try:
                return fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                gone, waited = _is_gone(self._holder()), time.monotonic() - started
                if waited > (ORPHANS if gone else ENDING):
                    raise
                if gone and waited > ENDING and not told:
                    told = True
                    print(f"run_dir: waiting for processes that a killed run left in {self._folder}", file=sys.stderr)
            time.sleep(0.05)

    def _sign(self) -> None:
        self._file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        self._file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}) + "\n")
        self._file.flush()

    def _holder(self) -> dict[str, Any]:
        """Who signed last; empty where that is just being written."""
        self._file.seek(0)
        try:
            found = json.loads(self._file.read())
        except ValueError:
            return {}
        return found if isinstance(found, dict) and {"pid", "host", "since"} <= found.keys() else {}


def _is_gone(holder: dict[str, Any]) -> bool:
    if holder.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, OverflowError):
        return False
    return False


def _refusal(folder: Path, holder: dict[str, Any]) -> str:
    if _is_gone(holder):
        who = f"processes that process {holder['pid']} started work there still; it was killed itself. End them"
    elif holder:
        who = f"process {holder['pid']} on {holder['host']} works there since {holder['since']}. Wait for it or stop it"
    else:
        who = "another process works there. Wait for it or stop it"
    return f"run_dir: {folder} is in use: {who},\nor choose another folder: run_dir=FOLDER."
