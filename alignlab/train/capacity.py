"""How many nodes a micro-batch may have, as far as memory goes."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from alignlab.errors import MissingError
from alignlab.records import write_json

log = logging.getLogger(__name__)

FILE = "capacity.json"
"""in the folder of the checkpoints: what was asked for, and what fits"""

T = TypeVar("T")


class Capacity:
    """Nodes of a micro-batch at most: as many as were asked for, halved as often as memory did not hold them.

    What was found stays in a file, so that a run that is continued computes as before.

    Args:
        folder: of the file.
        asked: ``hardware.tokens_per_micro``.
        shortest: nodes of the shortest row; below that there is nothing to halve.
        ranks: how many compute together. One of several cannot halve alone: the others wait for what it was to send. It
            leaves word in the file and fails, and the ranks start again from the last checkpoint.

    Attributes:
        nodes: the capacity.
        size: nodes of the micro-batch that is computed.
    """

    def __init__(self, folder: Path, asked: int, shortest: int, ranks: int) -> None:
        self._file, self._asked, self._shortest, self._ranks = folder / FILE, asked, shortest, ranks
        self.nodes = remembered(folder, asked)
        self.size = self.nodes
        if self.nodes < asked:
            log.warning(
                "micro-batches of %d tokens at most, as before: hardware.tokens_per_micro=%d did not fit.", self.nodes, asked
            )

    def attempt(self, work: Callable[[int], T]) -> T:
        """What ``work`` gives for the capacity, or the half of it, and so on, with which it does not run out of memory.

        Raises:
            MissingError: no half is left.
        """
        while True:
            try:
                return work(self.nodes)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.nodes <= self._shortest:
                    raise MissingError(
                        f"out of memory, with one row at a time: {str(error).splitlines()[0][:200]}\n"
                        "Set hardware.gradient_checkpointing=true, lower hardware.logits_mib, or take more memory."
                    ) from None
                half = min(self.nodes, self.size) // 2
                write_json(self._file, {"asked": self._asked, "fits": half})
                if self._ranks > 1:
                    raise
            log.warning("micro-batches of %d tokens do not fit in memory; %d are tried.", min(self.nodes, self.size), half)
            self.nodes = half
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def remembered(folder: Path, asked: int) -> int:
    """The capacity that a run found to fit where so many nodes were asked for; without one, these."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return int(found["fits"]) if found["asked"] == asked else asked
    except (OSError, ValueError, KeyError, TypeError):
        return asked


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
