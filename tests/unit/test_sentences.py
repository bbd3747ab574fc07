"""Sentences of a text."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import spacy

from alignlab.data import sentences
from alignlab.data.sentences import splitter, splitter_version
from alignlab.errors import MissingError, UserError

TEXTS = {
    "One. Two!  Three? Four": ["One.", "Two!", "Three?", "Four"],
    'He said "Stop." Then he left.': ['He said "Stop."', "Then he left."],
    "Mr. Smith has $3.50... in the U.S. now.": ["Mr. Smith has $3.50... in the U.S. now."],
    "A line\nof two. \n\n\nNext.": ["A line\nof two.", "Next."],
    "Heading\n\nIts text. More": ["Heading\n\nIts text.", "More"],
    "\n\n  Start. \t": ["Start."],
    "": [],
    " \n ": [],
}


@pytest.fixture(autouse=True)
def _fresh():
    sentences._pipeline.cache_clear()
    yield
    sentences._pipeline.cache_clear()


def test_rules():
    assert list(splitter("en")(TEXTS)) == list(TEXTS.values())


def test_a_text_is_one_sentence():
    assert list(splitter(None)([" One. Two.\n", "", " \n"])) == [["One. Two."], [], []]


def test_it_reads_a_stream_as_it_goes():
    read = []

    def texts() -> Iterator[str]:
        for i in range(5000):
            read.append(i)
            yield f"Text {i}. End."

    found = splitter("en")(texts())
    assert next(found) == ["Text 0.", "End."]
    assert len(read) <= sentences._BATCH + 1
    assert sum(len(s) for s in found) == 2 * 4999


def test_two_streams_at_once():
    split = splitter("en")
    both = zip(split(["An owl. Two."] * 3000), split(["Six. An elk."] * 3000), strict=True)
    assert all(one == ["An owl.", "Two."] and other == ["Six.", "An elk."] for one, other in both)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Five words are in here.\n" * 20_000, ["Five words are in here."] * 20_000),
        ("x" * 250_000, ["x" * 100_000, "x" * 100_000, "x" * 50_000]),
        ("seven c " * 15_000, [("seven c " * 12_500).strip(), ("seven c " * 2_500).strip()]),
        ("no stop\n \n" * 12_000, ["no stop\n \n" * 10_000, "no stop\n \n" * 2_000]),
    ],
    ids=["sentences", "letters", "words", "paragraphs"],
)
def test_long_text_is_cut_where_it_hurts_least(text: str, found: list[str]):
    before, long, after = splitter("en")(["An owl. Two.", text, "Six. An elk."])
    assert before == ["An owl.", "Two."]
    assert after == ["Six.", "An elk."]
    assert long == [sentence.strip() for sentence in found]


def test_vocabulary_stops_growing(monkeypatch):
    monkeypatch.setattr(sentences, "KNOWN", 1000)
    made, blank = [], spacy.blank
    monkeypatch.setattr(spacy, "blank", lambda name: made.append(blank(name)) or made[-1])
    texts = [" ".join(f"word{i}x{j}" for j in range(5)) + "." for i in range(4000)]
    assert list(splitter("en")(texts)) == [[text] for text in texts]
    assert "word0x0" in made[0].vocab.strings
    assert "word3999x0" not in made[0].vocab.strings


def test_a_pipeline_in_a_folder(tmp_path: Path):
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer", config={"punct_chars": [";"]})
    nlp.to_disk(tmp_path / "own")
    assert list(splitter(str(tmp_path / "own"))(["One. Still one; two"])) == [["One. Still one;", "two"]]
    spacy.blank("en").to_disk(tmp_path / "none")
    with pytest.raises(UserError, match="has no component that finds sentences"):
        splitter(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("en_core_web_none", MissingError, "python -m spacy download en_core_web_none; or take a language code such as en"),
        ("qq", UserError, "spaCy knows no language 'qq'"),
        ("ja", MissingError, "the language 'ja' needs a package"),
    ],
)
def test_names_that_are_not_there(name: str, kind: type[UserError], words: str, monkeypatch):
    monkeypatch.setitem(sys.modules, "sudachipy", None)
    with pytest.raises(UserError) as caught:
        splitter(name)
    assert type(caught.value) is kind
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(MissingError, match=r"pip install 'alignlab\[sentences\]'; or do without: splitter=null"):
        splitter("en")


def test_the_version_is_spacys_and_the_pipelines(tmp_path: Path):
    assert splitter_version(None) == ""
    found = []
    for version in ("1.2.3", "1.2.4"):
        nlp = spacy.blank("en")
        nlp.meta["version"] = version
        nlp.add_pipe("sentencizer")
        nlp.to_disk(tmp_path / version)
        found.append(splitter_version(str(tmp_path / version)))
    assert found == [f"spacy {spacy.__version__} 1.2.3", f"spacy {spacy.__version__} 1.2.4"]
    assert splitter_version("en").startswith(f"spacy {spacy.__version__} ")
