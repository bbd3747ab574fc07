"""Steps from text to scored sentences: what a row becomes, what is wrong with it, what is kept and where a run goes on."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignlab.control import Attribute, read_attributes
from alignlab.data import labelling
from alignlab.data.labelled import Columns, LabelledText, Picked
from alignlab.data.labelling import labels_of
from alignlab.errors import MissingError, UserError
from alignlab.seeds import uniform


@dataclass
class Letters:
    """Shares of the letters a, b and c in a text."""

    flaw: str | None

    def ready(self) -> None:
        if self.flaw == "unready":
            raise MissingError("labeller: needs a package")
        if self.fetches:
            for act in ACTS:
                act()

    @property
    def fetches(self) -> bool:
        return self.flaw == "fetches"

    def classes(self) -> Sequence[str] | None:
        return None if self.flaw == "unknown" else ("a", "b", "c")

    def scores(self, texts: Sequence[str]) -> Sequence[Mapping[str, float]]:
        SCORED.extend(texts)
        for act in list(ACTS):
            act()
        classes = "abz" if self.flaw == "unknown" else "abc"
        nan = float("nan")
        return [{c: nan if self.flaw == "nan" and "?" in t else t.count(c) / max(len(t), 1) for c in classes} for t in texts]

    def digest(self) -> str:
        return "letters"


SCORED: list[str] = []
"""every text that was scored in this process"""
ACTS: list[Callable[[], object]] = []
"""done whenever texts are scored"""

TOX = {"title": "toxicity", "tokens": {"clean": "<c>", "foul": "<f>"}, "wanted": "clean", "score": "c", "tie": None}
SEN = {"title": "letter", "tokens": {"a": "<a>", "b": "<b>"}, "wanted": "a", "score": None, "threshold": None, "tie": "b"}


def attributes(flaw: str | None = None, threshold: float = 0.1) -> dict[str, Any]:
    """tox: at most ``threshold`` of a text is the letter c, or more; sen: more a or more b."""
    labeller = {"_target_": f"{__name__}.Letters", "flaw": flaw}
    return {"tox": {**TOX, "labeller": labeller, "threshold": threshold}, "sen": {**SEN, "labeller": labeller}}


def write(path: Path, *rows: Any) -> Path:
    """Rows as the file's name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def source(path: Path, **fields: Any) -> LabelledText:
    """Everything is used, nothing held out, every sentence of a word kept; the cache lies beside the files."""
    columns = Columns(**({"text": "text", "origin": None, "labels": {}} | fields.pop("columns", {})))
    values: dict[str, Any] = dict.fromkeys(("files", "revision", "share", "clean", "splitter", "sentences", "validation"))
    values |= {"leave_out": [], "label_suffix": "", "bare_share": 0.0, "min_words": 1, "held_out": 0.0, "max_bad_rows": 0}
    values |= {"attributes": attributes(), "test": Picked(0, False, None), "cache": str(path.parent / "cache"), "seed": 0}
    return LabelledText(**({"path": str(path), "columns": columns} | values | fields))


def texts(source: LabelledText) -> list[str]:
    return [record.text for record in source.training()]


@pytest.fixture(autouse=True)
def _fresh():
    SCORED.clear()
    ACTS.clear()
    yield
    ACTS.clear()


# ---- what a row becomes


def test_a_list_is_sentences_and_a_text_is_one(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", {"text": ["a b", "b"]}, {"text": "c. a. "}, {"text": []})
    first, second, third = source(path).training()
    assert (first.name, first.text, first.labels, first.scores) == (
        "0-0",
        "a b",
        {"tox": "clean", "sen": "b"},
        {"tox": 0.0, "sen": 1 / 3},
    )
    assert (second.name, second.where) == ("0-1", f"{path}:1:text[1]")
    assert (third.name, third.text, third.labels["tox"], third.where) == ("1-0", "c. a. ", "foul", f"{path}:2:text[0]")


def test_a_splitter_cuts_texts_and_leaves_lists(tmp_path: Path):
    pytest.importorskip("spacy")
    path = write(
        tmp_path / "rows.jsonl",
        {"text": "One bee. Two is b! Three"},
        {"text": ["Four. Five."]},
        {"text": ""},
        {"text": "Six. Seven."},
    )
    found = list(source(path, splitter="en").training())
    assert [r.text for r in found] == ["One bee.", "Two is b!", "Three", "Four. Five.", "Six.", "Seven."]
    assert [r.name for r in found] == ["0-0", "0-1", "0-2", "1-0", "3-0", "3-1"]


def test_kinds_of_files_and_their_order(tmp_path: Path):
    write(tmp_path / "in/b.parquet", {"text": ["a"]}, {"text": ["b"]})
    write(tmp_path / "in/a.json", {"text": "c"})
    (tmp_path / "in/c.txt").write_text("One\nline.\n\n\n  Two. \n", encoding="utf-8-sig")
    found = source(tmp_path / "in", cache=str(tmp_path / "cache"))
    assert [(r.name, r.text) for r in found.training()] == [
        ("a-0-0", "c"),
        ("b-0-0", "a"),
        ("b-1-0", "b"),
        ("c-0-0", "One line."),
        ("c-1-0", "Two."),
    ]
    assert [r.where.rpartition("/")[2] for r in found.training()][2:] == [
        "b.parquet:2:text[0]",
        "c.txt:1:text[0]",
        "c.txt:5:text[0]",
    ]


def test_a_paragraph_ends_where_it_is_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("alignlab.data.files.LONG", 6)
    (tmp_path / "a.txt").write_text("aa\nbb\n cc \nd\n\ne e e e\nf\ng\n", encoding="utf-8")
    found = list(source(tmp_path / "a.txt").training())
    assert [r.text for r in found] == ["aa bb cc", "d", "e e e e", "f g"]
    assert [r.where.rpartition("/")[2] for r in found] == [f"a.txt:{line}:text[0]" for line in (1, 4, 6, 7)]


def test_cleaning_comes_before_words_are_counted_and_the_suffix_counts_behind_a_space(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", {"text": ["a, - b", "a, - b c", "a b ", "xyz"]})
    assert texts(source(path, clean="[,-]", min_words=3)) == ["a  b c"]
    assert texts(source(path, clean="[,-]", min_words=3, label_suffix="<end>")) == ["a  b c", "a b "]  # as in the authors' program
    assert texts(source(path, clean="[xyz]", min_words=1, label_suffix="<end>"))[-1] == "a b "  # nothing is left of the last


def test_the_suffix_is_scored_and_not_kept(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", {"text": ["a"]})
    (record,) = source(path, label_suffix="ccc").training()
    assert SCORED[-1] == "accc"
    assert (record.text, record.labels["tox"], record.scores["tox"]) == ("a", "foul", 0.75)


def test_origins_lie_in_columns_and_some_are_left_out(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", *({"text": "a", "meta": {"set": name}} for name in ("web", "code", "web", None)))
    found = source(path, columns={"origin": "meta.set"}, leave_out=["code", "cod"])
    assert [(r.name, r.dataset) for r in found.training()] == [("0-0", "web"), ("2-0", "web"), ("3-0", "")]
    notes = found.notes()
    assert notes[0] == "3 of 4 documents (left out: 1 of code)"
    assert any("no document is of cod (there are web)." in note for note in notes)


def test_ready_scores_and_labels_are_taken_and_nothing_is_scored(tmp_path: Path):
    rows = {"text": ["x", "y", "z", "w"], "tox": [0.1, 0.11, None, "foul"], "sen": ["a", "b", "a", "a"]}
    path = write(tmp_path / "rows.jsonl", rows, {"text": "v", "tox": 1, "sen": "b"})
    found = source(path, columns={"labels": {"tox": "tox", "sen": "sen"}}, attributes=attributes("unready"))
    assert [(r.text, *r.labels.values(), r.scores) for r in found.training()] == [
        ("x", "clean", "a", {"tox": 0.1}),
        ("y", "foul", "b", {"tox": 0.11}),
        ("w", "foul", "a", {}),
        ("v", "foul", "b", {"tox": 1.0}),
    ]
    assert not SCORED
    assert "1 without a label" in found.notes()[1]


def test_a_text_without_a_finite_score_has_no_label(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", {"text": ["a", "b?", "c"]})
    found = source(path, attributes=attributes("nan"))
    assert texts(found) == ["a", "c"]
    assert "1 without a label" in found.notes()[1]


SCORES = st.lists(st.tuples(*[st.sampled_from([0.0, 0.25, 0.5])] * 3), min_size=1, max_size=20)


@given(SCORES, st.sampled_from([None, "b", "c", "neither"]), st.sampled_from([None, 0.0, 0.25, 0.3]))
def test_a_label_is_the_largest_or_over_the_threshold(rows: list[tuple[float, ...]], tie: str | None, threshold: float | None):
    tokens = {"clean": "1", "foul": "2"} if threshold is not None else {"c": "1", "a": "2", "b": "3"}
    if threshold is None and tie == "neither":
        tokens = {"c": "1", "neither": "4", "a": "2", "b": "3"}
    one = Attribute(
        "t", tokens, next(iter(tokens)), {}, None if threshold is None else "b", threshold, tie if threshold is None else None
    )
    classes = ["b"] if threshold is not None else ["c", "a", "b"]
    scored = [dict(zip("abc", row, strict=True)) for row in rows]
    table = pa.table({f"score.x.{c}": [s[c] for s in scored] for c in classes})
    found, strength = labels_of("x", one, table)
    for number, compared, scores in zip(found, strength, scored, strict=True):
        label = one.labels[number]
        assert (label, compared) == (one.label(scores), one.strength(scores))
        if threshold is not None:
            assert (compared, label) == (scores["b"], "foul" if scores["b"] > threshold else "clean")
        else:
            best = [c for c in "cab" if scores[c] == max(scores.values())]
            assert compared == max(scores.values())
            assert label == (tie if tie is not None and len(best) > 1 else best[0])


def test_a_label_that_is_no_class_is_given_to_ties_alone(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", {"text": ["a", "b", "x", "ab"]})
    sen = attributes()["sen"] | {"tokens": {"a": "<a>", "b": "<b>", "neutral": "<0>"}, "tie": "neutral"}
    found = source(path, attributes={"sen": sen}, held_out=0.5, test=Picked(9, False, None))
    every = [record for _, record in found.scoring()]
    assert [(record.labels["sen"], record.scores["sen"]) for record in every] == [
        ("a", 1.0), ("b", 1.0), ("neutral", 0.0), ("neutral", 0.5),
    ]  # fmt: skip
    assert "letter: a 25.0 %, b 25.0 %, neutral 50.0 %" in found.notes()
    known = write(tmp_path / "known.jsonl", {"text": ["x", "a"], "sen": ["neutral", "b"]})
    taken = source(known, attributes={"sen": sen}, columns={"labels": {"sen": "sen"}})
    assert [record.labels["sen"] for record in taken.training()] == ["neutral", "b"]


def test_attributes_that_are_configured_alike_share_a_labeller():
    one, other = (read_attributes(attributes()) for _ in range(2))
    assert one["tox"].scorer is one["sen"].scorer is other["tox"].scorer
    assert one["tox"].scorer is not read_attributes(attributes("nan"))["tox"].scorer
    again = pickle.loads(pickle.dumps(one["tox"]))
    assert again == one["tox"]
    assert (again.where, again.label({"c": 0.2})) == ("attributes.tox", "foul")


def test_a_labeller_that_proves_to_have_other_classes_is_refused_with_its_key():
    tox = read_attributes(attributes("unknown"))["tox"]
    for ask in (tox.label, tox.strength):
        with pytest.raises(UserError, match=r"^data\.attributes\.tox\.labeller: the score 'c' is none of its classes \(a, z\)\."):
            ask({"a": 0.5, "z": 0.5})
    with pytest.raises(
        ValueError, match=r"^attributes\.sen\.labeller: the label 'bb' is none of its classes \(a, b, c\)\. Did you"
    ):
        read_attributes({"sen": attributes()["sen"] | {"tokens": {"a": "<a>", "bb": "<b>"}, "tie": "a"}})


# ---- what is wrong with a row


@pytest.mark.parametrize(
    ("row", "columns", "said"),
    [
        ({"texts": ["a"], "meta": {"n": 1}}, {}, ":1: there is no column 'text' (meta.n, texts). Did you mean 'texts'?\n"),
        (
            {"text": "a", "meta": {"name": "x"}},
            {"origin": "meta.nam"},
            "there is no column 'meta.nam' (meta.name, text). Did you mean 'meta.name'?",
        ),
        ({"text": 3}, {}, ":1:text: must be a text or a list of texts, a sentence each, not 3."),
        ({"text": ["a", None]}, {}, ":1:text: must be a text or a list of texts"),
        ({"text": "a", "o": 3}, {"origin": "o"}, ":1:o: must be a text or null, not 3."),
        ({"text": ["\ud800"]}, {}, ":1:text: holds half of a surrogate pair"),
        ({"text": "a", "o": "\udfff"}, {"origin": "o"}, ":1:o: holds half of a surrogate pair"),
        (
            {"text": ["a", "b"], "s": [0.1]},
            {"labels": {"tox": "s"}},
            ":1:s: a list of 1, and 'text' has 2 sentences. Give one for each",
        ),
        ({"text": ["a"], "s": 0.1}, {"labels": {"tox": "s"}}, ":1:s: one value, and 'text' has 1 sentences."),
        ({"text": "a", "s": [0.1]}, {"labels": {"tox": "s"}}, ":1:s: a list of 1, and 'text' has one text."),
        (
            {"text": ["a", "b"], "s": [0, float("nan")]},
            {"labels": {"tox": "s"}},
            ":1:s[1]: a score must be a number from 0 to 1, not nan.",
        ),
        ({"text": "a", "s": 1.01}, {"labels": {"tox": "s"}}, ":1:s: a score must be a number from 0 to 1, not 1.01."),
        ({"text": "a", "s": True}, {"labels": {"tox": "s"}}, ":1:s: must be a score, a label or null, not True."),
        ({"text": "a", "s": {}}, {"labels": {"tox": "s"}}, ":1:s: must be a score, a label or null, not {}."),
        (
            {"text": "a", "s": "fou"},
            {"labels": {"tox": "s"}},
            ":1:s: 'fou' is not a label of tox (clean, foul). Did you mean 'foul'?",
        ),
        (
            {"text": "a", "s": 0.5},
            {"labels": {"sen": "s"}},
            ":1:s: is a score, and nothing divides scores. Give data.attributes.sen.threshold.",
        ),
        (
            {"text": "a"},
            {"labels": {"tox": "score"}},
            "there is no column 'score' (text).\nName the one that holds it: data.columns.labels.tox=NAME.",
        ),
    ],
)
def test_a_wrong_row_is_named_before_anything_is_scored(tmp_path: Path, row: Any, columns: Any, said: str):
    path = write(tmp_path / "rows.jsonl", row)
    with pytest.raises(UserError) as error:
        source(path, columns=columns).training()
    assert str(error.value).startswith(f"{path}{said.partition('there')[0]}" if said.startswith(":") else f"{path}:1: ")
    assert said in str(error.value)
    assert not SCORED


def test_a_label_of_a_whole_text_is_none_of_its_sentences(tmp_path: Path):
    pytest.importorskip("spacy")
    path = write(tmp_path / "rows.jsonl", {"text": "a. b.", "s": 0.5})
    with pytest.raises(
        UserError, match=r":1:s: is of the whole text, which data.splitter=en cuts.*\n.*data.columns.labels.tox=null"
    ):
        source(path, splitter="en", columns={"labels": {"tox": "s"}}).training()


def test_some_rows_may_be_wrong(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", {"text": "a"}, {"text": 1}, {"text": "b"}, {"txt": "c"}, {"text": "c"})
    some = source(path, max_bad_rows=2)
    assert texts(some) == ["a", "b", "c"]
    assert list(some.rejected) == [f"{path}:2", f"{path}:4"]
    assert some.notes()[0] == "3 of 5 documents (left out: 2 wrong)"
    again = source(path, max_bad_rows=2)  # from what the first left behind
    assert texts(again) == ["a", "b", "c"]
    assert again.rejected == some.rejected
    with pytest.raises(
        UserError, match=r"data.max_bad_rows is 1, and more rows are wrong. The next one:\n.*:4: there is no column 'text'"
    ):
        source(path, max_bad_rows=1).training()
    with pytest.raises(UserError, match=r"^\S+:2:text: must be"):
        source(path).training()


def test_rows_that_are_not_drawn_are_not_looked_at(tmp_path: Path):
    drawn = uniform(3, "share", np.arange(200)) < 0.25
    path = write(tmp_path / "rows.jsonl", *({"text": f"a{i}" if ok else 3} for i, ok in enumerate(drawn)))
    path.write_text(path.read_text().replace(": 3}", ": 3"), encoding="utf-8")  # no JSON
    assert texts(source(path, share=0.25, seed=3)) == [f"a{i}" for i, ok in enumerate(drawn) if ok]


def test_another_seed_draws_other_documents(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", *({"text": f"a{i}"} for i in range(50)))
    assert texts(source(path, share=0.5, seed=0)) != texts(source(path, share=0.5, seed=1))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"min_words": 5}, r"no sentence is left: 1 of 1 documents; 0 sentences \(left out: 1 under 5 words\)"),
        ({"columns": {"origin": "text"}, "leave_out": ["a"]}, r"no sentence is left: 0 of 1 documents \(left out: 1 of a\)"),
        (
            {"attributes": attributes("unknown")},
            "^data.attributes.tox.labeller: the score 'c' is none of its classes \\(a, b, z\\)",
        ),
    ],
)
def test_nothing_is_left_or_the_labeller_gives_something_else(tmp_path: Path, fields: Any, said: str):
    with pytest.raises(UserError, match=said):
        source(write(tmp_path / "rows.jsonl", {"text": "a"}), **fields).training()


def test_what_lacks_is_said_before_a_file_is_read(tmp_path: Path):
    with pytest.raises(UserError, match="there is no file or folder"):
        source(tmp_path / "absent.jsonl", attributes=attributes("unready")).digest()
    (tmp_path / "wrong.jsonl").write_text("nothing that can be read")
    for path in (str(tmp_path / "wrong.jsonl"), "nobody/has-this-set"):
        with pytest.raises(MissingError, match="needs a package"):
            source(Path(path), attributes=attributes("unready")).digest()


def test_what_fetches_is_asked_last_and_nothing_is_fetched_where_something_else_lacks(tmp_path: Path):
    path, asked = write(tmp_path / "rows.jsonl", {"text": "a"}), []
    ACTS.append(lambda: asked.append("fetched"))
    fetching = attributes("fetches")["tox"]
    with pytest.raises(MissingError, match="needs a package"):
        source(path, attributes={"tox": fetching, "sen": attributes("unready")["sen"]}).digest()
    with pytest.raises(MissingError, match="there is no spaCy pipeline"):
        source(path, attributes={"tox": fetching}, splitter="en_core_web_none").digest()
    assert not asked
    source(path, attributes={"tox": fetching, "sen": attributes()["sen"]}).digest()
    assert asked == ["fetched"]
    path = write(tmp_path / "rows.jsonl", {"text": "a"})
    (tmp_path / "file").write_text("")
    with pytest.raises(
        MissingError, match=r"data.cache: .*file/labelled/\w+ cannot be made: Not a directory. Choose another: data.cache=FOLDER"
    ):
        source(path, cache=str(tmp_path / "file")).training()


# ---- what is kept


def blocks(cache: Path) -> list[Path]:
    return sorted(cache.glob("labelled/*/*.parquet"))


@pytest.fixture
def ten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten documents, two of them a block."""
    monkeypatch.setattr(labelling, "DOCUMENTS", 2)
    return write(tmp_path / "rows.jsonl", *({"text": [f"a{i}", f"b{i} c"]} for i in range(10)))


def test_a_second_source_scores_nothing_and_finds_the_same(ten: Path):
    first = list(source(ten).scoring())
    assert len(SCORED) == 2 * 20  # two attributes
    assert len(blocks(ten.parent / "cache")) == 5
    assert list(source(ten).scoring()) == first
    assert [number for number, _ in first] == list(range(20))
    assert len(SCORED) == 2 * 20


def test_blocks_end_with_characters_too(ten: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(labelling, "LETTERS", 6)
    expected = [r.name for _, r in source(ten).scoring()]
    assert len(blocks(ten.parent / "cache")) == 10
    assert expected == [f"{i}-{k}" for i in range(10) for k in range(2)]


def test_an_interrupted_run_goes_on_at_the_first_block_that_lacks(ten: Path, tmp_path: Path):
    whole = list(source(ten, cache=str(tmp_path / "other")).scoring())
    SCORED.clear()

    def interrupt() -> None:
        if len(SCORED) > 2 * 2 * 4:  # in the third block
            raise KeyboardInterrupt

    ACTS.append(interrupt)
    with pytest.raises(KeyboardInterrupt):
        source(ten).training()
    assert [path.name for path in blocks(tmp_path / "cache")] == ["000000.parquet", "000001.parquet"]
    SCORED.clear()
    ACTS.clear()
    assert list(source(ten).scoring()) == whole
    assert SCORED[0] == "a4"
    assert len(SCORED) == 2 * 12
    for mine, theirs in zip(blocks(tmp_path / "cache"), blocks(tmp_path / "other"), strict=True):
        assert mine.read_bytes() == theirs.read_bytes()


def test_a_killed_process_leaves_whole_blocks_alone(ten: Path, tmp_path: Path):
    program = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import {__name__} as t
t.labelling.DOCUMENTS = 2
t.ACTS.append(lambda: len(t.SCORED) > 16 and os.kill(os.getpid(), signal.SIGKILL))
t.source(Path({str(ten)!r})).training()
"""
    done = subprocess.run([sys.executable, "-c", program], env=os.environ, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(blocks(tmp_path / "cache")) == 2
    assert texts(source(ten)) == [text for i in range(10) for text in (f"a{i}", f"b{i} c")]
    assert len(SCORED) == 2 * 12


def test_a_damaged_or_missing_block_is_made_again(ten: Path, tmp_path: Path):
    whole = list(source(ten).scoring())
    files = blocks(tmp_path / "cache")
    files[1].write_bytes(files[1].read_bytes()[:-9])
    files[3].unlink()
    SCORED.clear()
    assert list(source(ten).scoring()) == whole
    assert SCORED == ["a2", "b2 c", "a3", "b3 c"] * 2 + ["a6", "b6 c", "a7", "b7 c"] * 2


def test_two_at_once_use_each_others_blocks(ten: Path, tmp_path: Path):
    def other() -> None:
        if SCORED[-1] == "b3 c":  # while the first is at its second block, another does everything but the last
            ACTS.clear()
            list(source(ten).training())
            blocks(tmp_path / "cache")[-1].unlink()
            SCORED.append("back")

    ACTS.append(other)
    assert texts(source(ten)) == [text for i in range(10) for text in (f"a{i}", f"b{i} c")]
    assert SCORED[SCORED.index("back") + 1 :] == ["a2", "b2 c", "a3", "b3 c"] + ["a8", "b8 c", "a9", "b9 c"] * 2
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"attributes": attributes(threshold=0.3)}, False),
        ({"held_out": 0.5, "bare_share": 0.5, "sentences": 3, "test": Picked(1, False, None), "seed": 5}, False),
        ({"max_bad_rows": 3, "validation": 0.5}, False),
        ({"min_words": 2}, True),
        ({"clean": "x"}, True),
        ({"label_suffix": "x"}, True),
        ({"share": 0.5}, True),
        ({"attributes": {"tox": attributes()["tox"]}}, True),
        ({"attributes": attributes("nan")}, True),
    ],
)
def test_only_what_changes_scores_scores_again(ten: Path, change: dict[str, Any], again: bool):
    before = source(ten)
    before.training()
    SCORED.clear()
    after = source(ten, **change)
    after.training()
    assert bool(SCORED) == again
    assert (after.digest() != before.digest()) == again


def test_other_contents_or_another_name_are_another_digest(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", {"text": "a"})
    first = source(path).digest()
    assert source(write(tmp_path / "elsewhere/rows.jsonl", {"text": "a"})).digest() == first
    assert source(write(tmp_path / "row.jsonl", {"text": "a"})).digest() != first
    assert source(write(tmp_path / "rows.jsonl", {"text": "b"})).digest() != first


def test_another_spacy_is_another_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spacy = pytest.importorskip("spacy")
    path = write(tmp_path / "rows.jsonl", {"text": "a"})
    before = [source(path, splitter=splitter).digest() for splitter in ("en", None)]
    monkeypatch.setattr(spacy, "__version__", "9.9")
    after = [source(path, splitter=splitter).digest() for splitter in ("en", None)]
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, True]


def test_a_file_of_the_hubs_cache_is_known_by_its_name(tmp_path: Path):
    def linked(blob: str, text: str) -> str:
        folder = tmp_path / f"{blob}-{text}"
        write(folder / "blobs/rows.jsonl", {"text": text}).rename(folder / "blobs" / blob)
        (folder / "rows.jsonl").symlink_to(folder / "blobs" / blob)
        return source(folder / "rows.jsonl").digest()

    assert linked("1", "a") == linked("1", "b")
    assert linked("1", "c") != linked("2", "c")


# ---- draws


PINNED = [0.8526933784368156, 0.8914139384529872, 0.8047575994420146]
"""another beginning would hold out other sentences"""


def test_draws_are_even_and_depend_on_everything_they_are_for():
    numbers = np.arange(200_000)
    found = uniform(0, "share", numbers)
    assert (found >= 0).all()
    assert (found < 1).all()
    counts = np.histogram(found, 50, (0, 1))[0]
    assert ((counts - 4000) ** 2 / 4000).sum() < 85  # chi square, 49 degrees of freedom, p = 0.001
    others = [
        uniform(1, "share", numbers),
        uniform(0, "bare", numbers),
        *(uniform(0, "share", numbers, np.array([i])) for i in range(2)),
    ]
    for other in [*others, np.roll(found, 1)]:
        assert abs(np.corrcoef(found, other)[0, 1]) < 0.01
    assert uniform(0, "share", np.arange(5, 9)).tolist() == found[5:9].tolist()
    assert (
        uniform(0, "share", numbers[:, None][:3], numbers[None, :4])[2, 3] == uniform(0, "share", np.array([2]), np.array([3]))[0]
    )
    assert found[:3].tolist() == PINNED
