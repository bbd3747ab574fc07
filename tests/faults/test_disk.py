"""A disk that is full or that cannot be written: one message, exit status 3, and nothing lost."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from disturbed import COMMON, losses, outcome, rubbish

from alignlab.__main__ import command


@contextmanager
def room(size: int) -> Iterator[None]:
    """Inside, no file may grow beyond so many bytes; what goes beyond is refused as by a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_disk_is_full_at_one_file_after_the_other(whole, tmp_path, capsys):
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
        assert not rubbish(folder)

    refused(10_000, "rows/train.arrow", "prepare")
    assert not list((folder / "done").glob("*.json"))
    assert command([*everything, "stages=[prepare]"]) == 0
    refused(5_000, "metrics.jsonl", "train")
    refused(300_000, "checkpoints/.step-20.tmp/optimizer.safetensors", "train")
    assert command([*everything, "stages=[prepare,train]"]) == 0
    capsys.readouterr()
    (folder / "done/train.json").unlink()
    shutil.rmtree(folder / "adapter")
    with room(100_000):
        assert command(everything) == 3
    assert "alignlab: train: File too large" in capsys.readouterr().err
    assert not rubbish(folder)
    assert command([*everything, "stages=[prepare,train]"]) == 0
    capsys.readouterr()
    refused(30_000, "samples.jsonl", "sample")
    assert command(everything) == 0
    assert outcome(folder) == outcome(whole)
    assert losses(folder) == losses(whole)


MAIN = "from alignlab.__main__ import main; main()"


def test_a_full_disk_ends_both_of_two_processes(tmp_path):
    """Rank 0 alone writes; the other one shall not wait for it."""
    assert command([*COMMON, "stages=[prepare]", f"run_dir={tmp_path / 'run'}"]) == 0
    everything = [*COMMON, "hardware=cpu2", "run_dir=run", "stages=[prepare,train]"]
    limited = [sys.executable, "-c", f"import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (5000, r.RLIM_INFINITY))\n{MAIN}"]
    done = subprocess.run([*limited, *everything], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 3, done.stderr
    assert "alignlab: train: File too large (run/metrics.jsonl)" in done.stderr
    assert done.stderr.count("alignlab:") == 1
    assert "Traceback" not in done.stderr


SMALL_DISK = """
import subprocess, sys
from alignlab.__main__ import command
def mount(*options):
    subprocess.run(["mount", *options, "disk"], check=True)
everything = [*sys.argv[1:], "run_dir=disk/run"]
mount("-t", "tmpfs", "-o", "size=300k", "none")
def step(name, arguments):
    print(name, file=sys.stderr, flush=True)
    print(name, command(arguments), file=sys.stderr, flush=True)
step("full", everything)
mount("-o", "remount,size=20m")
step("room", everything)
mount("-o", "remount,ro")
step("read-only", everything)
step("chat", ["chat=disk/run"])
subprocess.run(["cp", "-r", "disk/run", "kept"], check=True)
"""


def test_a_small_disk_that_fills_up_and_one_that_is_read_only(whole, tmp_path):
    space = ["unshare", "--user", "--map-root-user", "--mount"] if os.getuid() else ["unshare", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*space, "mount", "-t", "tmpfs", "none", tmp_path], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    (tmp_path / "disk").mkdir()
    script = [sys.executable, "-c", SMALL_DISK, *COMMON]
    done = subprocess.run(
        [*space, *script], cwd=tmp_path, input="Name a fruit.\n", capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    said = dict(
        zip(("full", "room", "read-only", "chat"), re.split(r"^(?:full|room|read-only|chat)\n", done.stderr, flags=re.M)[1:])
    )
    assert "full 3" in said["full"]
    assert "alignlab: train: No space left on device (disk/run/checkpoints/.step-20.tmp/" in said["full"]
    assert "Free some space; the same command goes on from there." in said["full"]
    assert said["full"].count("alignlab:") == 1
    assert not re.search("Traceback|Logging error|Exception ignored", said["full"])
    assert "room 0" in said["room"]
    assert (
        "alignlab: run_dir: disk/run cannot be written: Read-only file system. Choose another: run_dir=FOLDER." in said["read-only"]
    )
    assert "read-only 3" in said["read-only"]
    assert "chat 0" in said["chat"]
    assert outcome(tmp_path / "kept") == outcome(whole)
    assert losses(tmp_path / "kept") == losses(whole)


def _modes_count() -> None:
    """Take from root, in a child, what makes it pass over modes."""
    if not os.getuid():
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in (1, 2, 3):  # DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER
            libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def test_a_folder_without_permission_to_write(killed, whole, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "run")
    paths = [folder, *folder.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.read_bytes() for path in paths if path.is_file()}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "alignlab", *COMMON, "run_dir=run"],
            cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False, preexec_fn=_modes_count,
        )  # fmt: skip
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert done.returncode == 3, done.stderr
    assert done.stderr == "alignlab: run_dir: run cannot be written: Permission denied. Choose another: run_dir=FOLDER.\n"
    assert {path: path.read_bytes() for path in paths if path.is_file()} == before
    assert command([*COMMON, f"run_dir={folder}"]) == 0
    assert outcome(folder) == outcome(whole)
