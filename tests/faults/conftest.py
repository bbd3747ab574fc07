"""A run that nothing disturbed, and the same one after a kill."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from disturbed import COMMON
from forked import Forked

import alignlab
from alignlab.train.checkpoint import Checkpoints


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    return alignlab.run([*COMMON, f"run_dir={tmp_path_factory.mktemp('whole') / 'run'}"]).path


@pytest.fixture(scope="session")
def standing(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forked]:
    """The same command in the folder ``run`` of its ``where``, in a process that stands still at step 16."""
    where = tmp_path_factory.mktemp("standing")
    save = Checkpoints.save

    def stopping(self, progress, *others):
        save(self, progress, *others)
        if progress.step == 16:
            os.kill(os.getpid(), signal.SIGSTOP)

    def first():
        os.chdir(where)
        Checkpoints.save = stopping

    with Forked([*COMMON, "run_dir=run"], where / "said", first) as process:
        process.where = where
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), "the run ended before step 16: " + process.words()
        yield process


@pytest.fixture(scope="session")
def killed(standing: Forked, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is left of its folder when it is killed there: a copy of it as it stands."""
    return shutil.copytree(standing.where / "run", tmp_path_factory.mktemp("killed") / "run")
