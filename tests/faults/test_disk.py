"""A disk that is full or that cannot be written: one message, exit status 3, and nothing lost."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from disturbed import COMMON, losses, outcome
from forked import Forked, ranks
from refusing import full_disk, read_only_disk

from alignlab import pipeline
from alignlab.__main__ import command
from alignlab.interrupt import rubbish
from alignlab.journal import SUFFIX
from alignlab.stages import evaluate, prepare, sample, train
from alignlab.train.checkpoint import Checkpoints


def ended(process: Forked, status: int) -> str:
    """What a command said that ended with this status."""
    with process:
        assert process.wait() == status, process.words()
    assert not re.search("Traceback|Logging error|Exception ignored", process.words())
    return process.words()


def unfinished(folder: Path) -> list[Path]:
    """What is left of work in progress, beside what is kept of it on purpose."""
    return [path for path in rubbish(folder) if path.suffix != SUFFIX]


@contextmanager
def room(size: int) -> Iterator[None]:
    """Inside, no file may grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_there_is_no_room_for_one_file_after_the_other(whole, tmp_path, capsys):
    folder = tmp_path / "run"
    everything = [*COMMON, f"run_dir={folder}"]

    def refused(size: int, file: str, stage: str) -> None:
        with room(size):
            assert command(everything) == 3
        said = capsys.readouterr().err
        assert f"alignlab: {stage}: File too large ({folder}/{file})" in said
        assert "the same command goes on from there" in said
        assert said.count("alignlab:") == 1
        assert "Traceback" not in said
        assert not unfinished(folder)

    refused(6_000, "rows/train.arrow", "prepare")
    assert not list((folder / "done").glob("*.json"))
    assert command([*everything, "stages=[prepare]"]) == 0
    refused(300_000, "checkpoints/.step-8.tmp/optimizer.safetensors", "train")
    assert command([*everything, "stages=[prepare,train]"]) == 0
    capsys.readouterr()
    refused(9_000, "samples.jsonl", "sample")
    assert command(everything) == 0
    assert outcome(folder) == outcome(whole)
    assert losses(folder) == losses(whole)


def before(owner: Any, name: str, refuse: Callable[[], None]) -> Callable[[], None]:
    """To be called first in a fork: the system refuses as soon as a function is called."""

    def first() -> None:
        function = getattr(owner, name)
        setattr(owner, name, lambda *arguments: (refuse(), function(*arguments))[1])

    return first


def test_the_disk_is_full_for_everything_from_an_instant_on(whole, tmp_path):
    folder = tmp_path / "run"
    instants = [
        (prepare, "prepare", "records.jsonl"),
        (train, "train", "done/tracker-id"),
        (train._Reporter, "log", "metrics.jsonl"),
        (Checkpoints, "save", "checkpoints/.step-8.tmp"),
        (sample, "sample", "samples.jsonl" + SUFFIX),
        (evaluate, "evaluate", "results.json" + SUFFIX),
    ]
    for owner, name, file in instants:
        stage = name if name in pipeline.NEEDS else "train"
        said = ended(Forked([*COMMON, f"run_dir={folder}"], tmp_path / "said", before(owner, name, full_disk)), 3)
        assert f"alignlab: {stage}: No space left on device ({folder}/{file}).\nFree some space; the same command goes on" in said
        assert said.count("alignlab:") == 1
        assert not unfinished(folder)
    ended(Forked([*COMMON, f"run_dir={folder}"], tmp_path / "said"), 0)
    assert outcome(folder) == outcome(whole)
    assert losses(folder) == losses(whole)


def test_a_disk_that_is_full_before_anything_is_done(tmp_path):
    said = ended(Forked([*COMMON, f"run_dir={tmp_path / 'run'}"], tmp_path / "said", full_disk), 3)
    assert f"alignlab: run_dir: {tmp_path / 'run'} cannot be written: No space left on device." in said


def test_a_disk_that_can_only_be_read(killed, whole, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "run")
    content = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    said = ended(Forked([*COMMON, f"run_dir={folder}"], tmp_path / "said", read_only_disk), 3)
    assert said == f"alignlab: run_dir: {folder} cannot be written: Read-only file system. Choose another: run_dir=FOLDER.\n"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == content
    said = ended(Forked([*COMMON, f"run_dir={folder}"], tmp_path / "said", before(train, "train", read_only_disk)), 3)
    assert f"alignlab: train: Read-only file system ({folder}/" in said
    assert "Make it writable, or choose another folder: run_dir=FOLDER." in said
    ended(Forked([*COMMON, f"run_dir={folder}"], tmp_path / "said"), 0)
    assert outcome(folder) == outcome(whole)


def chatting() -> None:
    """Ask for one answer, then have everything refused that would be written."""
    read, write = os.pipe()
    os.write(write, b"Name a fruit.\n")
    os.close(write)
    sys.stdin = open(read)  # noqa: SIM115
    read_only_disk()


def test_a_run_on_a_disk_that_can_only_be_read_can_be_talked_to(whole, tmp_path):
    ended(Forked([f"chat={whole}"], tmp_path / "said", chatting), 0)


def test_a_full_disk_ends_both_of_two_processes(killed, tmp_path):
    """Rank 0 alone writes; the other one shall not wait for it."""
    folder = shutil.copytree(killed, tmp_path / "run")
    arguments = [*COMMON, "hardware=cpu2", "stages=[prepare,train]", f"run_dir={folder}"]
    first, second = (ended(process, 3) for process in ranks(arguments, tmp_path / "said", before(train._Reporter, "log", limited)))
    assert f"alignlab: train: File too large ({folder}/metrics.jsonl)" in first
    assert first.count("alignlab:") == 1
    assert "alignlab:" not in second


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))


def without_rights() -> None:
    """Take from root what makes it pass over modes."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, nothing = struct.pack("II", 0x20080522, 0), bytes(24)  # LINUX_CAPABILITY_VERSION_3, this process
    if libc.capset(header, nothing):
        raise OSError(ctypes.get_errno(), "capset")


def test_a_folder_without_permission_to_write(killed, whole, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "run")
    paths = [folder, *folder.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.read_bytes() for path in paths if path.is_file()}
    try:
        said = ended(Forked([*COMMON, f"run_dir={folder}"], tmp_path / "said", without_rights), 3)
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert said == f"alignlab: run_dir: {folder} cannot be written: Permission denied. Choose another: run_dir=FOLDER.\n"
    assert {path: path.read_bytes() for path in paths if path.is_file()} == before
    ended(Forked([*COMMON, f"run_dir={folder}"], tmp_path / "said"), 0)
    assert outcome(folder) == outcome(whole)
