"""Paths of a user, and paths inside the installed package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

PACKAGE = "alignlab:"
"""a path with this prefix lies inside the installed package"""


def resolve(path: str) -> str:
    """A path with ``alignlab:`` in front as a path in the file system; ``~`` as the home folder; any other as it is."""
    if path.startswith(PACKAGE):
        return str(resources.files("alignlab") / path.removeprefix(PACKAGE))
    return str(Path(path).expanduser()) if path.startswith("~") else path
