"""Records that are made with a model before training: what their source is given, and what answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from alignlab.generate.hf import Decoding
    from alignlab.protocols import Request
    from alignlab.signals import Stop
    from alignlab.text import TextCodec


@dataclass(frozen=True)
class Workshop:
    """What a source is given to make records with."""

    folder: Path
    """of the run"""
    identity: Sequence[str]
    """what tells the run's untrained model from others"""
    text: Callable[[], TextCodec]
    """its tokenizer, without tokens that the method adds, unless an adapter has them"""
    model: Callable[[], Any]
    """itself, without rows for them; loaded at each call"""
    stop: Stop
    say: Callable[[str], None]


@dataclass(frozen=True)
class Answer:
    """What a model answered to a request."""

    text: str
    finish: str
    """``stop``, ``length`` where it was cut off, or ``prompt`` where the prompt leaves no room for an answer"""


class Answerer(Protocol):
    """Answers requests: with the run's untrained model, or with one that a server runs. A dataclass."""

    def ready(self) -> None:
        """Raise MissingError where something that it needs is not there; asked before anything is done."""

    def identity(self, workshop: Workshop) -> Sequence[str]:
        """What the answers depend on besides requests, decoding and seeds."""

    def answers(
        self, requests: Sequence[Request], decoding: Decoding, seeds: Sequence[int], done: Collection[int], workshop: Workshop
    ) -> Iterator[Sequence[tuple[int, Answer]]]:
        """Batches of answers with the places of their requests, as they are completed.

        How requests are put into batches does not depend on ``done``, the places whose answers are known: a batch of which all
        are known is passed over, any other is answered as a whole. So what is answered does not depend on interruptions.
        """
