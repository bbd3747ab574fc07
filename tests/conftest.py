"""Shared by all tests: the real command, and small models."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # as the command does; read once, when transformers is imported

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session", autouse=True)
def _offline(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["ALIGNLAB_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")


@pytest.fixture
def cli(tmp_path: Path) -> Command:
    """``cli("key=value", ...)`` runs ``python -m alignlab`` in a fresh folder."""

    def call(*arguments: str, launcher: Sequence[str] = (), timeout: float = 240, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", *launcher, "alignlab", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=os.environ | env, capture_output=True, text=True, timeout=timeout, check=False
        )

    return call


@pytest.fixture(scope="session")
def _tiny_config():
    from alignlab.compose import compose
    from alignlab.config import check

    return check(compose([])[0]).model


@pytest.fixture
def tiny(_tiny_config):
    """The embedded model, in evaluation mode."""
    from alignlab.models.load import load_model

    return load_model(_tiny_config, "cpu", 0)


@pytest.fixture(scope="session")
def text(_tiny_config):
    """Its tokenizer and chat template."""
    from alignlab.models.load import load_text

    return load_text(_tiny_config)
