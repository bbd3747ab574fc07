"""From files of text to scored sentences on disk: the rows are surveyed, then cut, cleaned and scored block by block.

Each step leaves its files in a folder that is named by all they depend on. A run that was cut off goes on at the first block that
is not there, and two at once use each other's. Labels are made of the scores when these are read, so that another threshold scores
nothing again; so are all draws but that of documents.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from alignlab.config import digest
from alignlab.control import Attribute, make_ready
from alignlab.data.documents import Document, Documents
from alignlab.data.files import TEXT_KINDS, find, on_hub
from alignlab.data.sentences import splitter, splitter_version
from alignlab.errors import MissingError, UserError
from alignlab.paths import cache_folder
from alignlab.records import read_json
from alignlab.track import Display

if TYPE_CHECKING:
    from alignlab.data.labelled import LabelledText

FORMAT = 2
"""of the files; those of another are made anew"""

DOCUMENTS, LETTERS = 1000, 1 << 19
"""a block ends with so many documents, or with the one that brings it to so many characters"""

KINDS = {"number": pa.int64(), "file": pa.int32(), "row": pa.int64(), "at": pa.string(), "origin": pa.string()}
"""columns of a block that are those of the document"""

BY_SCORE = -1
"""in place of a label that the scores tell"""


class Labelling:
    """The steps of a source, whose fields are checked. Nothing is read before it is asked for."""

    def __init__(self, source: LabelledText) -> None:
        self._source = source
        self._scored = {name: attribute for name, attribute in source.control.items() if name not in source.ready}

    @cached_property
    def files(self) -> list[Path]:
        """Files of rows, in order.

        Raises:
            MissingError: a labeller or the splitter lacks a package or a file.
            UserError: there is no file.
        """
        source = self._source
        found: dict[str, list[Path]] = {}
        for fetched in (False, True):  # a path that is wrong is said first, and nothing large is fetched in vain
            for root in source.path:
                if on_hub(root, TEXT_KINDS) == fetched:
                    found[root] = find(root, "data.path", source.files, source.revision, TEXT_KINDS)
            if not fetched:
                if source.splitter is not None:
                    _ = self._split
                make_ready(self._scored.values())
        return list(dict.fromkeys(file for root in source.path for file in found[root]))

    @cached_property
    def digest(self) -> str:
        """Of all that the scored sentences depend on."""
        source, contents = self._source, [[file.name, _content(file)] for file in self.files]
        fields = {name: getattr(source, name) for name in ("leave_out", "share", "clean", "splitter", "label_suffix", "min_words")}
        fields["seed"] = source.seed if source.share is not None else None
        ready = {name: [column, *source.control[name].labels] for name, column in source.ready.items()}
        columns = [source.columns.text, source.columns.origin, ready]
        scores = {name: attribute.classes for name, attribute in source.control.items()}
        labellers = {name: [_choices(attribute), attribute.scorer.digest()] for name, attribute in self._scored.items()}
        return digest(FORMAT, contents, fields, splitter_version(source.splitter), columns, scores, labellers)

    @cached_property
    def folder(self) -> Path:
        """Where the steps leave their files.

        Raises:
            MissingError: it cannot be made.
        """
        folder = cache_folder(self._source.cache) / "labelled" / self.digest
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"{folder} cannot be made: {error.strerror}. Choose another: data.cache=FOLDER"
            raise MissingError(f"data.cache: {problem}.") from None
        return folder

    @cached_property
    def _documents(self) -> Documents:
        return Documents(self._source, self.files)

    @cached_property
    def _split(self) -> Callable[[Iterable[str]], Iterator[list[str]]]:
        return splitter(self._source.splitter)

    @cached_property
    def survey(self) -> dict[str, Any]:
        """All rows looked at once, so that what is wrong is said before anything is scored.

        ``rows``; of them ``not_drawn``, ``left_out`` by origin, ``documents`` and, by place, ``rejected``; some ``origins`` that
        stay.

        Raises:
            UserError: more rows are wrong than ``max_bad_rows``.
        """
        path, most = self.folder / "survey.json", self._source.max_bad_rows
        if path.exists():
            known = read_json(path)
            if len(known["rejected"]) > most:
                raise too_many(most, list(known["rejected"].values())[most])
            return known
        rows = not_drawn = documents = 0
        left_out, origins, rejected = Counter[str](), dict[str, None](), dict[str, str]()
        with Display("read", len(self.files)) as display:
            for place, found in self._documents.read():
                rows += 1
                if found is None:
                    not_drawn += 1
                elif isinstance(found, str):
                    left_out[found] += 1
                elif isinstance(found, UserError):
                    if len(rejected) == most:
                        raise too_many(most, str(found))
                    rejected[place] = str(found)
                else:
                    documents += 1
                    if found.origin and len(origins) < 20:
                        origins[found.origin] = None
                    if documents % 1000 == 0:
                        display.update(found.file, f"files, {rows} rows")
        counts = {"rows": rows, "not_drawn": not_drawn, "left_out": dict(left_out), "documents": documents}
        known = {**counts, "rejected": rejected, "origins": list(origins)}
        _replace(path, lambda file: file.write_text(json.dumps(known), encoding="utf-8"))
        return known

    @cached_property
    def blocks(self) -> list[tuple[Path, dict[str, int]]]:
        """Files of scored sentences, in order, each with its counts; those that are not there are made.

        The counts: ``documents``; ``sentences``; ``short``, those that have too few words; ``unlabelled``, those without a score or
        a label; ``next``, the number of the document after.

        Raises:
            UserError: see :attr:`survey`; or what a labeller gives is not what the attributes ask of it.
        """
        found: list[tuple[Path, dict[str, int]]] = []
        documents, sentences, start, total = 0, 0, 0, self.survey["documents"]
        stream: Iterator[Document] | None = None
        display: Display | None = None
        with ExitStack() as stack:
            while documents < total:
                path = self.folder / f"{len(found):06}.parquet"
                counts = _counts(path)
                if counts is None:
                    stream = stream or (d for _, d in self._documents.read(start) if isinstance(d, Document))
                    display = display or stack.enter_context(Display("label", total, documents))
                    counts = self._write(path, _next_block(stream, start))
                found.append((path, counts))
                documents, sentences, start = documents + counts["documents"], sentences + counts["sentences"], counts["next"]
                if display is not None:
                    display.update(documents, f"documents, {sentences} sentences")
        return found

    def _write(self, path: Path, documents: Sequence[Document]) -> dict[str, int]:
        """Cut, clean and score documents, and write their sentences; their counts."""
        if not documents:
            raise UserError("data.path: its files have changed while they were read. Start again.")
        table, counts = self._sentences(documents)
        usable = np.ones(table.num_rows, bool)
        texts = [text + self._source.label_suffix for text in table["text"].to_pylist()]
        for name, attribute in self._scored.items() if texts else ():
            for column, scores in _scores(attribute, texts).items():
                table = table.append_column(f"score.{name}.{column}", pa.array(scores))
                usable &= np.isfinite(scores)
        counts["unlabelled"] += int((~usable).sum())
        table = table.filter(pa.array(usable))
        counts |= {"documents": len(documents), "sentences": table.num_rows, "next": documents[-1].number + 1}
        table = table.replace_schema_metadata({"counts": json.dumps(counts)})
        _replace(path, lambda file: pq.write_table(table, file, compression="zstd"))
        return counts

    def _sentences(self, documents: Sequence[Document]) -> tuple[pa.Table, dict[str, int]]:
        """Sentences that are long enough and have what a column says of them; how many are not, or have not."""
        source = self._source
        clean = re.compile(source.clean).sub if source.clean is not None else None
        whole = [document.texts[0] for document in documents if document.whole]
        cuts = iter(self._split(whole)) if whole else iter(())
        texts: list[str] = []
        rows: list[tuple[int, int, int]] = []  # document, sentence, words
        ready: list[list[Any]] = []
        counts = {"short": 0, "unlabelled": 0}
        for position, document in enumerate(documents):
            for index, text in enumerate(next(cuts) if document.whole else document.texts):
                text = text if clean is None else clean("", text)
                words = len((text + source.label_suffix).split())
                values = [given[index] for given in document.ready]
                if words < source.min_words or not text.strip():
                    counts["short"] += 1
                elif None in values:
                    counts["unlabelled"] += 1
                else:
                    texts.append(text)
                    rows.append((position, index, words))
                    ready.append(values)
        of, sentence, words_of = (np.array(rows, np.int32).reshape(-1, 3)[:, i] for i in range(3))
        columns = {"text": pa.array(texts, pa.large_string()), "sentence": pa.array(sentence), "words": pa.array(words_of)}
        for name, kind in KINDS.items():
            columns[name] = pa.array([getattr(document, name) for document in documents], kind).take(pa.array(of))
        known = zip(*ready, strict=True) if ready else [()] * len(source.ready)
        for name, given in zip(source.ready, known, strict=True):
            labels = source.control[name].labels
            found = [labels.index(value) if isinstance(value, str) else BY_SCORE for value in given]
            columns[f"label.{name}"] = pa.array(found, pa.int16())
            scores = [None if isinstance(value, str) else float(value) for value in given]
            columns[f"score.{name}.ready"] = pa.array(scores, pa.float64())
        return pa.table(columns), counts


def labels_of(name: str, attribute: Attribute, table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Of each sentence the number of its label, and what was compared, NaN if nothing; see :meth:`Attribute.number`."""
    prefix = f"score.{name}."
    scores = {c.removeprefix(prefix): table[c].to_numpy() for c in table.column_names if c.startswith(prefix)}
    if f"label.{name}" not in table.column_names:
        return attribute.number(scores)
    given, strength = table[f"label.{name}"].to_numpy().astype(np.int64), scores["ready"]
    if attribute.threshold is not None:
        given = np.where(given == BY_SCORE, attribute.number({str(attribute.score): strength})[0], given)
    return given, strength


def too_many(most: int, problem: str) -> UserError:
    """What to say of the first row that is wrong beyond ``max_bad_rows``."""
    return UserError(f"data.max_bad_rows is {most}, and more rows are wrong. The next one:\n{problem}" if most else problem)


def _content(file: Path) -> str:
    """Digest of a file; its name in the hub's cache, which is the digest of what it holds."""
    target = file.resolve()
    if target.parent.name == "blobs":
        return target.name
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}.") from None


def _choices(attribute: Attribute) -> dict[str, Any]:
    """The fields of the labeller that may change its scores."""
    return {key: value for key, value in attribute.labeller.items() if key not in ("batch", "cache", "device")}


def _scores(attribute: Attribute, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """The labeller's scores that tell the label, each of all texts.

    Raises:
        UserError: it does not give one of them.
    """
    found = attribute.scorer.scores(texts)
    attribute.check(found[0])
    return {name: np.array([scores[name] for scores in found], np.float64) for name in attribute.classes if name in found[0]}


def _next_block(stream: Iterator[Document], start: int) -> list[Document]:
    """The documents from number ``start`` on that make a block."""
    block, letters = list[Document](), 0
    for document in stream:
        if document.number >= start:  # another process may have done those before
            block.append(document)
            letters += sum(map(len, document.texts))
            if len(block) == DOCUMENTS or letters >= LETTERS:
                break
    return block


def _counts(path: Path) -> dict[str, int] | None:
    """The counts of a block; None where it is not there, or no whole file."""
    try:
        return json.loads(pq.read_schema(path).metadata[b"counts"])
    except (OSError, pa.ArrowException):
        return None


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a name of its own, then rename it: two processes may do so at once.

    The first that is done deletes what others, one of which may have been killed, were writing of the same.
    """
    temporary = path.with_name(f"{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        write(temporary)
        with suppress(FileNotFoundError):  # another process was first
            temporary.replace(path)
        for other in path.parent.glob(f"{path.name}.*.tmp"):
            other.unlink(missing_ok=True)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
