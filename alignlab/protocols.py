"""The seams: what a method, a data source, a suite and a tracker are, and what passes between them.

Shape suffixes: N nodes of a tree, E edges, R rows. Token ids and indices are int64 on tensors, int32 on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from alignlab.errors import UserError
from alignlab.records import Prompt, Record

if TYPE_CHECKING:
    import torch

    from alignlab.api import RunFolder
    from alignlab.engine.batch import Batch
    from alignlab.engine.scorer import Scorer
    from alignlab.report.document import Block
    from alignlab.text import TextCodec
    from alignlab.workshop import Workshop

Array = np.ndarray


@dataclass(frozen=True)
class Row:
    """One training example: a forest of tokens and the edges scored in it.

    Nodes stand in depth-first order (a parent before its children, each subtree contiguous); plain text is a chain.
    """

    group: int
    """rows of one group always share an optimizer step"""
    mass: float
    """what the row adds to the step's denominator: tokens, examples or target weight"""
    tokens: Array
    """[N] token of each node"""
    parent: Array
    """[N] index of the node before it, -1 at a root"""
    source: Array
    """[E] node whose next-token distribution scores the edge"""
    target: Array
    """[E] token scored there"""
    columns: Mapping[str, Array] = field(default_factory=dict)
    """[E] each, read by the method alone"""
    splittable: bool = False
    """whether the row may be cut by subtree when it exceeds the capacity of a micro-batch"""
    truncated: bool = False
    """whether the record has more than the row, which was too long"""


@dataclass
class Loss:
    """A loss as a SUM in units of mass; the loop divides once, by the mass of the whole step."""

    total: torch.Tensor
    """scalar"""
    logs: dict[str, tuple[torch.Tensor | float, float]] = field(default_factory=dict)
    """name -> (sum, count); the loop makes exact means over micro-batches, ranks and epochs"""


@dataclass(frozen=True)
class Request:
    """How a prompt is put to the model: as a conversation in its chat template, or as a text of its own."""

    messages: Sequence[Mapping[str, str]] = ()
    """chat messages"""
    text: str | None = None
    """the whole text, special tokens apart; the messages are not read then"""
    twice: bool = False
    """whether the chat template is rendered to a text that is then tokenized like any other, so that a BOS token stands twice"""
    alone: bool = False
    """whether the text is tokenized by itself, and no special token that it spells out is taken for one"""
    before: Sequence[str] = ()
    """tokens of the vocabulary in front of a text that is tokenized alone"""
    after: Sequence[str] = ()
    """tokens behind it"""


@dataclass(frozen=True)
class Probe:
    """What is measured on the model every ``train.probe_every_steps`` steps while training, by every rank alike."""

    name: str
    measure: Callable[[Scorer, int], Mapping[str, float | str]]
    """the scorer in evaluation mode, and how many nodes may be computed at a time -> figures, or words, by name; no gradient may be
    left behind, and nothing is recomputed to save memory"""


@dataclass(frozen=True)
class NewToken:
    """A token that is added to a model's vocabulary."""

    text: str
    init: str = "mean"
    """of its rows in input and output embedding: ``mean``, that of the old rows; ``random``, the architecture's own way;
    ``description``, the mean of the rows of the tokens of ``description``"""
    noise: float = 0.0
    """standard deviation of the Gaussian noise that is added to a mean"""
    reuse: bool = False
    """whether it may be in the vocabulary already; its rows are then as they are"""
    trained: bool = True
    """whether its rows are trained where the rest of the embedding is frozen"""
    by: str = "rows"
    """how, beside LoRA on other layers: ``rows``, themselves, of input and output embedding; ``embedding``, by LoRA on the whole
    input embedding, its output row staying as it is; ``auto``, ``embedding`` where the two matrices are apart, else ``rows``"""
    description: str = ""
    """what it stands for"""


@dataclass(frozen=True)
class Meaning:
    """A new token and the instruction that it stands for."""

    token: str
    meaning: str

    def __post_init__(self) -> None:
        if not self.token.strip():
            raise ValueError("token: a new token must have a text")


class Method(Protocol):
    """A method is one dataclass: its fields are its hyper-parameters, its methods what follows."""

    accepts: ClassVar[tuple[type[Record], ...]]
    """kinds of record it trains on"""
    reference: ClassVar[bool]
    """whether its loss reads a column ``reference``: the log-probability of each edge under the untrained model"""

    def new_tokens(self) -> Sequence[NewToken]:
        """Tokens that tokenizer and model are given, before and after training alike."""

    def rows(self, records: Iterable[Record], text: TextCodec, seed: int) -> Iterator[Row]:
        """Training rows of all records, as a stream."""

    def parts(self, record: Record, text: TextCodec) -> Iterator[Row]:
        """The rows of one record that the ``score`` stage writes a line for, one per part."""

    def vary(self, row: Row, random: np.random.Generator) -> Row:
        """The variant of a row that one pass sees; ``random`` depends on (seed, epoch, group) alone."""

    def loss(self, logp: torch.Tensor, batch: Batch) -> Loss:
        """The loss of a micro-batch from the log-probability of each of its edges, ``logp`` [E]."""

    def finished(self, epoch: Mapping[str, float]) -> bool:
        """Whether to stop early, from the exact means of one epoch."""

    def probes(self, text: TextCodec, rows: Sequence[Row], validation: Sequence[Row] | None) -> Sequence[Probe]:
        """What to measure while training, from all training and validation rows, which lie on disk."""

    def conditions(self) -> Sequence[str]:
        """Labels that the trained model can be asked for in ``Prompt.conditions``; none where prompts are all there is to say."""

    def request(self, prompt: Prompt) -> Request:
        """How the trained model is prompted."""

    def scored(self, run: RunFolder, records: Iterable[tuple[int, Record]], plots: Path) -> Sequence[str]:
        """Draw what ``scores.jsonl`` shows token by token; names of the files written, relative to the run folder.

        Asked where the tokens were written; ``records`` are the records by ``index``.
        """

    def sections(self, run: RunFolder, plots: Path) -> Sequence[Block]:
        """Blocks for the report, under headings of their own; ``run`` reads metrics, results, details, samples and configuration.

        Plots are written into ``plots``, a folder of the run.
        """


class MethodDefaults:
    """What most methods answer to the optional questions of :class:`Method`."""

    reference: ClassVar[bool] = False

    def new_tokens(self) -> Sequence[NewToken]:
        """None."""
        return ()

    def parts(self, record: Record, text: TextCodec) -> Iterator[Row]:
        """The record's training rows."""
        yield from self.rows([record], text, 0)  # type: ignore[attr-defined]

    def vary(self, row: Row, random: np.random.Generator) -> Row:
        """Every pass sees the same row."""
        return row

    def finished(self, epoch: Mapping[str, float]) -> bool:
        """No early stop."""
        return False

    def probes(self, text: TextCodec, rows: Sequence[Row], validation: Sequence[Row] | None) -> Sequence[Probe]:
        """No probes."""
        return ()

    def conditions(self) -> Sequence[str]:
        """None."""
        return ()

    def request(self, prompt: Prompt) -> Request:
        """The prompt as a user turn after its history."""
        return Request([*prompt.history, {"role": "user", "content": prompt.request}])

    def scored(self, run: RunFolder, records: Iterable[tuple[int, Record]], plots: Path) -> Sequence[str]:
        """Nothing to draw."""
        return ()

    def sections(self, run: RunFolder, plots: Path) -> Sequence[Block]:
        """No sections of its own."""
        return ()


class Source(Protocol):
    """Where records come from. ``yields`` is checked against what the method accepts before anything is loaded."""

    yields: ClassVar[type[Record]]

    def make(self, workshop: Workshop) -> Sequence[str]:
        """Make what must be made before all training records can be read; names of files written into the run folder.

        Asked by ``prepare`` before anything else. What was made before is not made again.
        """

    def training(self) -> Iterator[Record]:
        """Records to train on, in a fixed order."""

    def validation_records(self) -> Sequence[Record]:
        """Records whose loss is measured while training; may be empty."""

    def testing(self) -> Iterator[Record]:
        """Records to sample from and to evaluate on."""

    def scoring(self) -> Iterator[tuple[int, Record]]:
        """Every record of the source with its number, counted from 0 over the rows of its files in sorted order."""

    lenient: bool
    """whether some records may be wrong; then each is tried before any is used"""
    rejected: Mapping[str, str]
    """what is wrong with each record that was passed over, by its place"""

    def reject(self, record: Record, error: UserError) -> None:
        """Note that a record cannot be used and go on, or raise ``error`` where the source lets none (more) through."""

    def unmade(self) -> Sequence[str]:
        """Go on without what :meth:`make` would make, as a plan does; lines that say what lacks."""

    def prompts(self) -> Sequence[Prompt]:
        """A prompt for each test record."""

    def digest(self) -> str:
        """Digest of the content of all the files it reads."""

    def notes(self) -> Sequence[str]:
        """Lines for the person about what was read, asked once it was."""


@dataclass(frozen=True)
class Value:
    """One measured figure with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


class QuietSource:
    """For a source that makes nothing, and without notes."""

    def make(self, workshop: Workshop) -> Sequence[str]:
        """Nothing is made."""
        return ()

    def unmade(self) -> Sequence[str]:
        """Nothing lacks."""
        return ()

    def notes(self) -> Sequence[str]:
        """Nothing to say."""
        return ()


class SourceDefaults(QuietSource):
    """For a source of which no record may be wrong."""

    lenient: ClassVar[bool] = False
    rejected: ClassVar[Mapping[str, str]] = {}

    def reject(self, record: Record, error: UserError) -> None:
        """Raise the error."""
        raise error


class Suite(Protocol):
    """What is sampled from a model and what is measured on it."""

    accepts: ClassVar[tuple[type, ...]]
    """kinds of record it evaluates"""

    def ready(self) -> None:
        """Raise MissingError where something that it needs is not there; asked before anything is done."""

    def digest(self) -> str:
        """Digest of the files that it reads; empty where there are none."""

    def prompts(self, source: Source, which: str) -> Sequence[Prompt]:
        """What the model ``before`` or ``after`` training is asked; names are unique, and alike where both are asked the same."""

    def decoding(self) -> Any:
        """How to sample (:class:`alignlab.generate.hf.Decoding`)."""

    def evaluate(
        self, source: Source, samples: Mapping[str, Sequence[str]], scorer: Scorer, text: TextCodec, seed: int, capacity: int
    ) -> tuple[dict[str, Value], dict[str, Any]]:
        """Metrics by name, and details for plots by prompt name, of one model; ``capacity`` tree nodes at a time."""

    def summary(self, results: Mapping[str, Any], details: Mapping[str, Any]) -> Any:
        """The headline table (:class:`alignlab.report.document.Table`) of ``results.json``."""

    def charts(self, details: Mapping[str, Any], results: Mapping[str, Any], folder: Path) -> list[Any]:
        """Blocks of the report about single prompts; plots are written into ``folder``."""


class SuiteDefaults:
    """For a suite that asks what the source gives, and reads nothing besides."""

    def ready(self) -> None:
        """Nothing is needed."""

    def digest(self) -> str:
        """Nothing is read."""
        return ""

    def prompts(self, source: Source, which: str) -> Sequence[Prompt]:
        """The source's prompts."""
        return source.prompts()


class Labeller(Protocol):
    """Scores texts: to label what is trained on, and what a model wrote. A dataclass, loaded at its first use.

    One whose class says ``fetches = True`` is made ready after the others, so that what they lack is said before a download.
    """

    def ready(self) -> None:
        """Raise MissingError where a package or a file that it needs is not there; asked before anything is done."""

    def classes(self) -> Sequence[str] | None:
        """Names of its scores; None where only its files tell."""

    def scores(self, texts: Sequence[str]) -> Sequence[Mapping[str, float]]:
        """For each text, its scores by name."""

    def digest(self) -> str:
        """Digest of the files that the scores depend on; empty where there are none."""


class Tracker(Protocol):
    """Where metrics are mirrored to. The run's own files are written whatever the tracker does."""

    def ready(self) -> None:
        """Raise MissingError where something it needs is not there; asked before anything is done."""

    def start(self, folder: Path, name: str, run_id: str, config: Mapping[str, Any]) -> None:
        """Open the run ``run_id``, or continue it; from here on, nothing it raises and no delay of it reaches the run."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics of one optimizer step."""

    def summary(self, figures: Mapping[str, float], files: Sequence[str]) -> None:
        """Results and plots; what else it mirrors it reads in the run folder."""

    def finish(self, failed: bool) -> None:
        """End of the process's part of the run."""
