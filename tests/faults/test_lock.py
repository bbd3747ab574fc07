"""One run at a time in a folder; the lock goes with its process, however that ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alignlab import lock
from alignlab.errors import UserError
from alignlab.lock import FILE, FolderLock

Holder = subprocess.Popen[str]

HOLDER = """
import os, sys
from pathlib import Path
from alignlab.lock import FolderLock
held = FolderLock(Path(sys.argv[1]))
if "orphan" in sys.argv and os.fork():
    os.wait()
elif "orphan" in sys.argv:
    held.close()
    held = FolderLock(Path(sys.argv[1]), rank=True)
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Callable[..., tuple[Holder, int]]]:
    """``hold(*how)``: another process that holds ``tmp_path``, and the process that waits in there."""
    processes = []

    def start(*how: str) -> tuple[Holder, int]:
        command = [sys.executable, "-c", HOLDER, str(tmp_path), *how]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return processes[-1], int(processes[-1].stdout.readline())  # type: ignore[union-attr]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_another_process_is_refused_and_told_who_works_there(hold, tmp_path, monkeypatch):
    process, _ = hold()
    with pytest.raises(UserError, match=rf"in use: process {process.pid} on {os.uname().nodename} works there since 20\d\d-"):
        FolderLock(tmp_path)
    with FolderLock(tmp_path, rank=True), FolderLock(tmp_path, rank=True):  # those of the same run are not
        process.kill()
        process.wait()
        monkeypatch.setattr(lock, "ORPHANS", 0.0)
        with pytest.raises(UserError, match=f"processes that process {process.pid} started work there still; it was killed"):
            FolderLock(tmp_path)
    with FolderLock(tmp_path):  # and with the last of them it is free
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()


def test_a_run_waits_for_what_a_killed_one_left_behind(hold, tmp_path, monkeypatch):
    process, orphan = hold("orphan")
    process.kill()
    process.wait()
    said = []

    def told(text: str, **_: object) -> None:
        said.append(text)
        os.kill(orphan, signal.SIGKILL)

    monkeypatch.setattr(lock, "print", told, raising=False)  # the orphan ends once somebody is told to wait for it
    FolderLock(tmp_path).close()
    assert said == [f"run_dir: waiting for processes that a killed run left in {tmp_path}"]


def test_a_copy_is_free_and_a_moved_folder_is_not(hold, tmp_path):
    inside = tmp_path / "run"
    inside.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(inside)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()  # type: ignore[union-attr]
    shutil.copytree(inside, tmp_path / "copy")
    FolderLock(tmp_path / "copy").close()
    inside.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=str(process.pid)):
        FolderLock(tmp_path / "moved")
    process.communicate("")
    FolderLock(tmp_path / "moved").close()


def test_children_do_not_inherit_it(tmp_path):
    held = FolderLock(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    held.close()
    FolderLock(tmp_path).close()
    child.communicate(b"\n")


def test_where_the_file_system_has_no_locks_that_is_said(tmp_path, monkeypatch, capsys):
    def none(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", none)  # no such file system is at hand
    with FolderLock(tmp_path), FolderLock(tmp_path, rank=True):
        pass
    said = capsys.readouterr().err
    assert said.count("without locks (Operation not supported)") == 1
    assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"[]", b'{"pid": 1}', b'{"pid": "x", "host": "' + os.uname().nodename.encode() + b'", "since": ""}'],
)
def test_whatever_stands_in_the_file(hold, tmp_path, content):
    hold()
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UserError, match="is in use"):
        FolderLock(tmp_path)
