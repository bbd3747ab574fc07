"""Paths of a user, and paths inside the installed package."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alignlab.config import Model

PACKAGE = "alignlab:"
"""a path with this prefix lies inside the installed package"""


def resolve(path: str) -> str:
    """A path with ``alignlab:`` in front as a path in the file system; ``~`` as the home folder; any other as it is."""
    if path.startswith(PACKAGE):
        return str(resources.files("alignlab") / path.removeprefix(PACKAGE))
    return str(Path(path).expanduser()) if path.startswith("~") else path


def content(path: str | None) -> str:
    """Digest of a file; empty where there is none, as behind a template's name."""
    file = Path(resolve(path or ""))
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if path and file.is_file() else ""


def fingerprint(model: Model) -> list[str]:
    """Names, sizes and ends of the weight files of a model and its adapter: tells changed weights without reading them whole.

    A name on the hub stands for itself, with its revision.
    """
    found = [f"{model.path}@{model.revision}"]
    for folder in (model.path, model.adapter):
        found += ends(sorted(Path(resolve(folder)).glob("*.safetensors"))) if folder else []
    return found


def ends(files: Iterable[Path]) -> list[str]:
    """Name, size and digest of both ends of each file."""
    found = []
    for file in files:
        size = file.stat().st_size
        with file.open("rb") as content:
            head = content.read(1 << 16)
            content.seek(max(0, size - (1 << 16)))
            found.append(f"{file.name} {size} {hashlib.sha256(head + content.read()).hexdigest()[:16]}")
    return found


def cache_folder(value: str | None) -> Path:
    """Where what was fetched or converted is kept: ``value``, else ``$ALIGNLAB_CACHE``, else ``~/.cache/alignlab``."""
    return Path(resolve(value or os.environ.get("ALIGNLAB_CACHE") or "~/.cache/alignlab"))
