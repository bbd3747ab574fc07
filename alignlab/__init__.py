"""Four published ways of aligning a causal language model, under one roof.

The command is ``python -m alignlab``; from Python, ``alignlab.run([...])`` gives the run folder, and the pure parts stand in
``alignlab.trees``, ``alignlab.engine`` and ``alignlab.methods``.
"""

from importlib import import_module
from typing import Any

from alignlab.errors import MissingError, StoppedError, UserError

__all__ = ["Batch", "MissingError", "Row", "RunFolder", "Scorer", "StoppedError", "UserError", "collate", "run", "trie"]

_LAZY = {
    "Batch": "alignlab.engine.batch",
    "Row": "alignlab.protocols",
    "RunFolder": "alignlab.api",
    "Scorer": "alignlab.engine.scorer",
    "collate": "alignlab.engine.batch",
    "run": "alignlab.api",
    "trie": "alignlab.trees",
}


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes seconds, and ``--help`` needs none of it."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'alignlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
