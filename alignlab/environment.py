"""What a run ran on: versions, hardware, commit, data, command. No secrets."""

from __future__ import annotations

import logging
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.records import write_json

if TYPE_CHECKING:
    from alignlab.pipeline import Run

PACKAGES = (
    "alignlab",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "hydra-core",
    "safetensors",
    "tokenizers",
    "numpy",
    "pyarrow",
)

BLOCK = 2**20
"""bytes from which on memory is had from the system for each block; see :func:`return_blocks`"""


def write_environment(run: Run, choices: Mapping[str, str], overrides: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Write ``environment.json``; once a model is trained, what it was trained on stays written there.

    Every command is a line of ``log.txt``.

    Returns:
        The command, without secrets.
    """
    command = ["python", "-m", "alignlab", *(_without_secrets(a) for a in arguments)]
    logging.getLogger("alignlab").info("command: %s", shlex.join(command))
    if run.trained and run.path("environment.json").exists():
        return command
    import torch

    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    content: dict[str, Any] = {
        "command": command,
        "choices": dict(sorted(choices.items())),
        "overrides": [_without_secrets(o) for o in overrides],
        "python": platform.python_version(),
        "packages": versions,
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "gpus": gpus,
        "commit": _commit(),
        "data": run.config.data.digest(),
    }
    write_json(run.path("environment.json"), content)
    return command


def peak_memory() -> dict[str, int]:
    """Peak memory so far in MiB: ``resident``, of this process or the largest that it started; ``gpu``, of this process."""
    try:
        import resource
    except ImportError:  # not on Windows
        return {}
    unit = 2**20 if sys.platform == "darwin" else 2**10
    largest = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    found = {"resident": largest // unit}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        found["gpu"] = max(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())) // 2**20
    return found


def return_blocks() -> None:
    """Have the C library give memory blocks of 1 MiB and more back to the system as they are freed, where it is glibc.

    Else it comes to keep blocks of up to 32 MiB, in which holes are left between what lives longer: training a GPT-2 of 4 layers
    took a fifth more memory. It costs time, since the system makes the pages of each block anew: a tenth of that training.
    """
    import ctypes

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(-3, BLOCK)  # M_MMAP_THRESHOLD


def _without_secrets(text: str) -> str:
    return re.sub(r"((?:^|[._+~-])(?:api_?key|token|secret|password)=).*", r"\1***", text, flags=re.IGNORECASE)


def _commit() -> str | None:
    """Commit of the checkout that the package runs from, with + when it has changes."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5, check=True)
        state = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if state.stdout.strip() else "")


class log_file:
    """Everything that is logged, in ``log.txt`` of the run folder, while a run is under way; warnings for the person, too."""

    def __init__(self, folder: Path) -> None:
        path = folder / "log.txt"
        if path.exists() and path.read_bytes()[-1:] not in (b"", b"\n"):  # a kill cut a line off
            with path.open("ab") as file:
                file.write(b"\n")
        self._handler = _LogFile(path, encoding="utf-8")
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._person = logging.StreamHandler(sys.stderr)
        self._person.setLevel(logging.WARNING)

    def __enter__(self) -> None:
        logger = logging.getLogger("alignlab")
        logger.setLevel(logging.INFO)
        logger.addHandler(self._handler)
        logger.addHandler(self._person)

    def __exit__(self, kind: Any, error: Any, _: Any) -> None:
        logger = logging.getLogger("alignlab")
        logger.removeHandler(self._person)  # the caller says what ended the run
        if error is not None:
            logger.error("%s", error)
        logger.removeHandler(self._handler)
        with suppress(OSError):
            self._handler.close()


class _LogFile(logging.FileHandler):
    """A log that never stands in the way: on a full disk, whoever writes what matters ends the run, with a sentence."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing."""
