"""A run that nothing disturbed, and the same one after a kill."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from disturbed import COMMON

import alignlab

STOPPING = """
import os, signal
from alignlab.train.checkpoint import Checkpoints
save = Checkpoints.save
def stopping(self, progress, *others):
    save(self, progress, *others)
    if progress.step == 40:
        os.kill(os.getpid(), signal.SIGSTOP)
Checkpoints.save = stopping
from alignlab.__main__ import main
main()
"""


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    return alignlab.run([*COMMON, f"run_dir={tmp_path_factory.mktemp('whole') / 'run'}"]).path


@pytest.fixture(scope="session")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[bytes]]:
    """The same command, in a process that stands still at step 40, in the folder ``run`` of its ``cwd``."""
    where = tmp_path_factory.mktemp("standing")
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPING, *COMMON, "run_dir=run"], cwd=where, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    process.where = where  # type: ignore[attr-defined]
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), "the run ended before step 40"
    yield process
    process.kill()
    process.wait()


@pytest.fixture(scope="session")
def killed(standing: subprocess.Popen[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is left of its folder when it is killed there: a copy of it as it stands."""
    return shutil.copytree(standing.where / "run", tmp_path_factory.mktemp("killed") / "run")  # type: ignore[attr-defined]
