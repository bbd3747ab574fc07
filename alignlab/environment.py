"""What a run ran on: versions, hardware, commit, data, command. No secrets."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from alignlab.pipeline import Run
from alignlab.records import write_json

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


def write_environment(run: Run, choices: Mapping[str, str], overrides: Sequence[str], arguments: Sequence[str]) -> None:
    """Write ``environment.json``."""
    import torch

    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    content: dict[str, Any] = {
        "command": ["python", "-m", "alignlab", *(_without_secrets(a) for a in arguments)],
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


def _without_secrets(text: str) -> str:
    return re.sub(r"((?:key|token|secret|password)\w*=).*", r"\1***", text) if not text.startswith("hardware.") else text


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
