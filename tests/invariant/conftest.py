"""Runs that the tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from trained import METHODS, Hardware, place, prepare, train

Runs = Callable[[str, Hardware], Path]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``prepared(method)``: a run folder with all that its training reads."""
    folder = tmp_path_factory.mktemp("prepared")

    def get(method: str) -> Path:
        return folder / method if (folder / method).exists() else prepare(folder / method, METHODS[method])

    return get


@pytest.fixture(scope="session")
def runs(prepared: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """``runs(method, hardware)``: the folder of a trained run; each is trained once."""
    folder = tmp_path_factory.mktemp("runs")
    done: dict[tuple[str, Hardware], Path] = {}

    def get(method: str, hardware: Hardware) -> Path:
        if (method, hardware) not in done:
            run = place(prepared(method), folder / f"{method}-{len(done)}", hardware.words)
            train([run], hardware.processes)
            done[method, hardware] = run
        return done[method, hardware]

    return get
