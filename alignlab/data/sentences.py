"""Splitting texts into sentences."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import cache
from typing import Any

from alignlab.errors import MissingError, UserError

LONGEST = 100_000
"""characters that are split in one go; a longer text is cut first"""
KNOWN = 200_000
"""words that the vocabulary keeps, for speed (about 0.1 GB); further ones are forgotten after a batch"""
_CUTS = tuple(re.compile(cut) for cut in (r"\n\s*\n", r"[.!?]\s", r"\s"))
_BATCH = 1000
_SETTERS = ("parser", "senter", "sentencizer")
"""spaCy's components that find sentences"""

Splitter = Callable[[Iterable[str]], Iterator[list[str]]]


def splitter(name: str | None) -> Splitter:
    """What yields the sentences of each text of a stream, in order; without white space around them, and no empty ones.

    Args:
        name: null, a text is one sentence; a language code such as ``en``, spaCy's rules for its punctuation, which need no
            download; anything else, an installed spaCy pipeline such as ``en_core_web_sm``, or a folder that holds one.

    spaCy tells a sentence's end by its last word or mark, not by line ends: white space inside a sentence stays as it is, and a
    heading without a full stop is one sentence with what follows it, even across a blank line. A text of more than ``LONGEST``
    characters is cut before that, after a blank line, else a full stop, else a word. Memory does not grow with the stream.

    Raises:
        MissingError: spaCy, the pipeline or what the language needs is not installed.
        UserError: there is no such language, or the pipeline finds no sentences.
    """
    if name is None:
        return lambda texts: ([text.strip()] if text.strip() else [] for text in texts)
    nlp = _pipeline(name)

    def split(texts: Iterable[str]) -> Iterator[list[str]]:
        found: list[str] = []
        for sentences, last in _sentences(nlp, texts):
            found += sentences
            if last:
                yield found
                found = []

    return split


def splitter_version(name: str | None) -> str:
    """Versions of spaCy and of the pipeline that :func:`splitter` takes; empty where there is none."""
    if name is None:
        return ""
    import spacy

    return f"spacy {spacy.__version__} {_pipeline(name).meta['version']}"


@cache
def _pipeline(name: str) -> Any:
    try:
        import spacy
    except ImportError:
        raise MissingError(
            "sentences: a splitter needs the package spacy.\nInstall it: pip install 'alignlab[sentences]'; "
            "or do without: splitter=null takes each text as one sentence."
        ) from None
    if re.fullmatch("[a-z]{2,3}", name):
        try:
            nlp = spacy.blank(name)
        except ImportError as error:
            first = str(error).splitlines()[0]
            if "[E048]" not in first:  # the language is there, a package of its own is not
                raise MissingError(f"sentences: the language '{name}' needs a package: {first}") from None
            raise UserError(f"sentences: spaCy knows no language '{name}'; xx stands for any.") from None
        nlp.add_pipe("sentencizer")
        return nlp
    try:
        nlp = spacy.load(name, exclude=["tagger", "attribute_ruler", "lemmatizer", "ner"])
    except OSError:
        raise MissingError(
            f"sentences: there is no spaCy pipeline '{name}' here.\n"
            f"Install it: python -m spacy download {name}; or take a language code such as en, which needs none."
        ) from None
    if not any(setter in nlp.pipe_names for setter in _SETTERS):
        raise UserError(f"sentences: the pipeline '{name}' has no component that finds sentences ({', '.join(_SETTERS)}).")
    return nlp


def _sentences(nlp: Any, texts: Iterable[str]) -> Iterator[tuple[list[str], bool]]:
    """Sentences of each piece of each text, and whether it is the text's last."""
    for batch in _batches(piece for text in texts for piece in _pieces(text)):
        with nlp.memory_zone() if len(nlp.vocab) > KNOWN else nullcontext():
            found = [[sentence.text.strip() for sentence in doc.sents] for doc in nlp.pipe(piece for piece, _ in batch)]
        for sentences, (_, last) in zip(found, batch, strict=True):
            yield [sentence for sentence in sentences if sentence], last


def _pieces(text: str) -> Iterator[tuple[str, bool]]:
    start = 0
    while len(text) - start > LONGEST:
        window = text[start : start + LONGEST]
        ends = (max((cut.end() for cut in kind.finditer(window)), default=0) for kind in _CUTS)
        length = next((end for end in ends if end), LONGEST)
        yield window[:length], False
        start += length
    yield text[start:], True


def _batches(pieces: Iterable[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    """Pieces in lists of at most ``_BATCH``, and of not many more than ``LONGEST`` characters."""
    batch, size = list[tuple[str, bool]](), 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece[0])
        if len(batch) == _BATCH or size >= LONGEST:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
