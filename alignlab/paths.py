"""Paths inside the installed package."""

from __future__ import annotations

from importlib import resources

PACKAGE = "alignlab:"
"""a path with this prefix lies inside the installed package"""


def resolve(path: str) -> str:
    """A path with ``alignlab:`` in front as a path in the file system; any other as it is."""
    return str(resources.files("alignlab") / path.removeprefix(PACKAGE)) if path.startswith(PACKAGE) else path
