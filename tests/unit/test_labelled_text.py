"""The source of labelled sentences: who is trained on, held out and evaluated, what a person is told, and the shipped options."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from alignlab.build import build_target
from alignlab.compose import compose
from alignlab.data.labelled import Columns, LabelledText, Picked
from alignlab.errors import UserError
from alignlab.records import Labelled, short

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
WORDS = importlib.import_module("tiny_words")

LEXICON = {"_target_": "alignlab.labellers.lexicon.Lexicon", "words": {"rude": ["fool"], "pos": ["good"], "neg": ["bad"]}}
ATTRIBUTES = {
    "tox": {
        "title": "toxicity",
        "tokens": {"nontoxic": "<n>", "toxic": "<t>"},
        "wanted": "nontoxic",
        "labeller": LEXICON,
        "score": "rude",
        "threshold": 0.0,
        "tie": None,
    },
    "sen": {
        "title": "sentiment",
        "tokens": {"pos": "<+>", "neg": "<->"},
        "wanted": "pos",
        "labeller": LEXICON,
        "score": None,
        "threshold": None,
        "tie": "neg",
    },
}
KINDS = ("good one", "bad one", "good fool", "bad fool")
FIELDS: dict[str, Any] = {
    "files": None,
    "revision": None,
    "columns": Columns("text", None, {}),
    "leave_out": [],
    "share": None,
    "clean": None,
    "splitter": None,
    "label_suffix": "",
    "attributes": ATTRIBUTES,
    "bare_share": 0.1,
    "min_words": 1,
    "sentences": None,
    "held_out": 0.2,
    "validation": 0.25,
    "test": Picked(40, True, (2, 4)),
    "max_bad_rows": 0,
    "seed": 0,
}


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 documents of 5 sentences with 2 to 6 words, as many of each pair of labels."""
    path = tmp_path_factory.mktemp("labelled") / "rows.jsonl"
    sentences = [f"{KINDS[i % 4]}{' x' * (i % 5)}" for i in range(2000)]
    path.write_text("".join(json.dumps({"text": sentences[i : i + 5]}) + "\n" for i in range(0, 2000, 5)))
    return path


def source(file: Path, **fields: Any) -> LabelledText:
    return LabelledText(**({"path": str(file), "cache": str(file.parent / "cache")} | FIELDS | fields))


def names(records: Iterable[Labelled]) -> list[str]:
    return [record.name for record in records]


def option(*overrides: str) -> LabelledText:
    """What ``data=...`` makes."""
    node = compose(["method=conditioning", *overrides])[0]
    return build_target(node.data, "data", ("yields",))


# ---- splits


def test_every_sentence_is_in_one_split(thousand: Path):
    made = source(thousand)
    train, validation, test = names(made.training()), names(made.validation_records()), names(made.testing())
    everything = {record.name: record for _, record in made.scoring()}
    assert len(everything) == 2000
    assert len({*train, *validation, *test}) == len(train) + len(validation) + len(test) < 2000
    held = {name for name, record in everything.items() if record.held_out}
    assert held == everything.keys() - set(train)
    assert held >= {*validation, *test}
    for share, of, count in (
        (0.2, 2000, len(held)),
        (0.25, len(held), len(validation)),
        (0.1, 2000, sum(r.bare for r in everything.values())),
    ):
        assert abs(count - share * of) < 4 * (share * (1 - share) * of) ** 0.5


def test_training_keeps_the_order_of_the_files(thousand: Path):
    made = source(thousand)
    keys = [tuple(map(int, name.split("-"))) for name in names(made.training())]
    assert keys == sorted(keys)
    assert names(made.training()) == names(made.training())  # a stream that can be had again


def test_the_draw_of_a_sentence_depends_on_the_seed_and_its_number_alone(thousand: Path):
    def held(**fields: Any) -> set[str]:
        return {record.name for _, record in source(thousand, **fields).scoring() if record.held_out}

    assert held() == held(bare_share=0.5, validation=None, sentences=3, clean="x", label_suffix="end")
    assert held(min_words=4) == {name for name in held() if int(name.split("-")[1]) in (2, 3, 4)}  # those with 4 words or more
    assert held() != held(seed=1)
    assert held() < held(held_out=0.4)


def test_fewer_sentences_are_some_of_more_and_nothing_else_changes(thousand: Path):
    everything = names(source(thousand).training())
    found = [names(source(thousand, sentences=count).training()) for count in (1, 50, 400)]
    assert [len(f) for f in found] == [1, 50, 400]
    assert set(found[0]) < set(found[1]) < set(found[2]) < set(everything)
    assert found[2] == [name for name in everything if name in set(found[2])]
    numbers = [int(name.split("-")[0]) for name in found[2]]
    assert sum(n < 200 for n in numbers) == pytest.approx(200, abs=40)  # drawn, and no first part
    assert names(source(thousand, sentences=50).testing()) == names(source(thousand).testing())
    many = source(thousand, sentences=99999)
    assert names(many.training()) == everything
    assert f"warning: data.sentences is 99999, and only {len(everything)} can be trained on" in many.notes()


def test_of_many_blocks_as_few_sentences_are_drawn(thousand: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    expected = names(source(thousand, sentences=30).training())
    monkeypatch.setattr("alignlab.data.labelling.DOCUMENTS", 7)
    made = source(thousand, sentences=30, cache=str(tmp_path))
    assert names(made.training()) == expected
    assert names(made.testing()) == names(source(thousand).testing())


def test_what_is_evaluated_is_balanced_and_so_is_its_beginning(thousand: Path):
    made = source(thousand)
    tested = list(made.testing())
    pairs = [(record.labels["tox"], record.labels["sen"]) for record in tested]
    for count in (4, 20, 40):
        assert set(Counter(pairs[:count]).values()) == {count // 4}
    assert not any(record.bare for record in tested)
    assert all(record.held_out and 2 <= len(record.text.split()) <= 4 for record in tested)
    assert names(source(thousand, test=Picked(20, True, (2, 4))).testing()) == names(tested)[:20]
    assert [(p.name, p.request, p.conditions) for p in made.prompts()] == [(r.name, r.text, ()) for r in tested]
    assert [record for _, record in made.scoring() if record.name == tested[3].name] == [tested[3]]
    unlike = list(source(thousand, test=Picked(40, False, None)).testing())
    assert len(unlike) == 40
    assert {len(record.text.split()) for record in unlike} == {2, 3, 4, 5, 6}
    assert list(source(thousand, test=Picked(0, True, None)).testing()) == []


def test_too_few_to_evaluate_are_counted(thousand: Path):
    with pytest.raises(UserError) as error:
        source(thousand, test=Picked(400, True, (2, 4))).prompts()
    made = source(thousand, test=Picked(0, False, None))
    measured = names(made.validation_records())
    available = [r for _, r in made.scoring() if r.held_out and not r.bare and r.name not in measured and len(r.text.split()) <= 4]
    count = sum(r.labels == {"tox": "nontoxic", "sen": "pos"} for r in available)
    assert str(error.value) == (
        f"data.test.count: asks for 100 held-out sentences of 2 to 4 words that are nontoxic pos, and there are {count}.\n"
        "One may lower data.test.count, raise data.held_out or set data.test.balanced=false."
    )
    assert len(list(source(thousand, test=Picked(999, False, (2, 4))).testing())) == len(available)
    some = source(thousand, test=Picked(999, False, (2, 4)))
    assert (
        f"warning: data.test.count is 999, and only {len(list(some.testing()))} can be evaluated; raise data.held_out"
        in some.notes()
    )
    with pytest.raises(
        UserError,
        match=r"asks for 4 held-out sentences, and there are 0\.\nOne may raise data.held_out\.$",
    ):
        source(thousand, held_out=0.0, test=Picked(4, False, None)).prompts()


def test_nothing_left_to_train_on(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "good"}\n')
    with pytest.raises(UserError, match=r"data.held_out: all 1 sentences are held out"):
        source(path, held_out=0.999999, test=Picked(0, False, None)).training()


def test_a_sentence_that_proves_useless_is_passed_over(thousand: Path):
    made = source(thousand, max_bad_rows=1)
    first, second = list(made.training())[:2]
    made.reject(first, UserError("too long"))
    assert names(made.training())[0] == second.name
    assert first.name not in {record.name for _, record in made.scoring()}
    assert made.rejected == {first.where: "too long"}
    tested = next(made.testing())
    with pytest.raises(UserError, match=r"data.max_bad_rows is 1, and more rows are wrong. The next one:\nfaulty"):
        made.reject(tested, UserError("faulty"))
    assert tested.name not in names(made.testing())
    with pytest.raises(UserError, match="^too long$"):
        source(thousand).reject(first, UserError("too long"))


# ---- what a person is told


def test_notes_count(thousand: Path):
    made = source(thousand)
    train, held = len(list(made.training())), sum(r.held_out for _, r in made.scoring())
    bare = sum(r.bare for _, r in made.scoring())
    assert made.notes() == [
        "400 of 400 documents",
        "2000 sentences (left out: 0 under 1 words)",
        f"{train} sentences to train on, {held} held out; {bare} of all bare",
        "toxicity: nontoxic 50.0 %, toxic 50.0 %",
        "sentiment: pos 50.0 %, neg 50.0 %",
    ]
    drawn = source(thousand, share=0.5, test=Picked(0, False, None))
    assert drawn.notes()[0] == f"{len({r.name.split('-')[0] for _, r in drawn.scoring()})} of 400 documents (left out: " + (
        f"{400 - len({r.name.split('-')[0] for _, r in drawn.scoring()})} not drawn)"
    )


def test_a_threshold_outside_the_data_is_warned_of(thousand: Path):
    high = {**ATTRIBUTES, "tox": ATTRIBUTES["tox"] | {"threshold": 0.7}}
    made = source(thousand, attributes=high, test=Picked(0, False, None))
    assert made.notes()[3] == "toxicity: nontoxic 100.0 %, toxic 0.0 %"
    assert made.notes()[5:] == [
        "warning: every sentence is nontoxic: scores go from 0 to 0.5, and data.attributes.tox.threshold is 0.7"
    ]
    one = {"sen": ATTRIBUTES["sen"] | {"labeller": LEXICON | {"words": {"pos": ["good", "bad"], "neg": ["absent"]}}}}
    assert source(thousand, attributes=one, test=Picked(0, False, None)).notes()[4:] == ["warning: every sentence is pos"]


# ---- fields


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"path": None}, "path: give a file of text, a folder of them or the name of a data set on the hub"),
        ({"path": [3]}, "path: must be text or a list of texts"),
        (
            {"columns": Columns("text", None, {"toxic": "x"})},
            "columns.labels: 'toxic' is not an attribute (tox, sen). Did you mean 'tox'?",
        ),
        ({"leave_out": ["web"]}, "leave_out: names origins, and columns.origin is null"),
        ({"held_out": 1.0}, "held_out: must be a share from 0 to less than 1, not 1.0"),
        ({"bare_share": -0.1}, "bare_share: must be a share"),
        ({"share": 0.0}, "share: must be a share between 0 and 1, or null, not 0.0"),
        ({"validation": 1.5}, "validation: must be a share between 0 and 1, or null, not 1.5"),
        ({"min_words": 0}, "min_words: must be at least 1"),
        ({"sentences": 0}, "sentences: must be at least 1"),
        ({"max_bad_rows": -1}, "max_bad_rows: must be at least 0"),
        ({"test": Picked(3, True, None)}, "test: a balanced count must be 4 at least"),
        ({"min_words": 5}, "test: no sentence has at most 4 words, as min_words is 5"),
        ({"clean": "("}, "clean: is no regular expression: missing )"),
        ({"attributes": {}}, "attributes: there are none"),
        ({"attributes": {"tox": ATTRIBUTES["tox"] | {"tokens": {"toxic": "<t>"}}}}, "attributes.tox"),
    ],
)
def test_fields_are_checked(tmp_path: Path, fields: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=re.escape(said)):
        source(tmp_path, **fields)


def test_words_are_a_range():
    for words in ((0, 3), (4, 3)):
        with pytest.raises(ValueError, match="words: must be the fewest and the most words"):
            Picked(1, False, words)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("~data.attributes.tox.tokens.toxic", "an attribute needs at least two labels"),
        ("data.test.word=3", "data.test.word: no such key. Did you mean 'data.test.words'?"),
        ("data.columns.txt=a", "data.columns.txt: no such key. Did you mean 'data.columns.text'?"),
        ("data.test.words=[3]", "data.test.words: must be"),
        ("data.attributes.sen.tie=neu", "'neu' is not one of the labels (pos, neg)"),
        ("data.path=null", "data.path: give a file of text"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(override: str, said: str):
    with pytest.raises(UserError) as error:
        option("+" + override if "word=" in override or "txt" in override else override)
    assert said in str(error.value)
    assert "data" in str(error.value)


# ---- shipped options


def test_text_of_ones_own_needs_a_path(tmp_path: Path):
    with pytest.raises(
        UserError, match=r"^data.path: give a file of text, a folder of them or the name of a data set on the hub\.$"
    ):
        option("data=text")
    assert option("data=text", "data.path=x.txt").path == ["x.txt"]


@pytest.mark.parametrize("data", ["text", "toned"])
def test_labels_may_stand_in_a_column_of_any_option(data: str):
    assert option(f"data={data}", "data.path=x.jsonl").ready == {}
    assert option(f"data={data}", "data.path=x.jsonl", "data.columns.labels.tox=scores").ready == {"tox": "scores"}
    own = "{title: own, tokens: {a: A, b: B}, wanted: a, score: null, threshold: null, tie: a,"
    own += " labeller: {_target_: alignlab.labellers.lexicon.Lexicon, words: {a: [x], b: [y]}}}"
    made = option(f"data={data}", "data.path=x.jsonl", f"+data.attributes.own={own}", "~data.attributes.tox")
    assert (list(made.control), made.ready) == (["sen", "own"], {})
    assert option(f"data={data}", "data.path=x.jsonl", f"+data.attributes.own={own}", "+data.columns.labels.own=o").ready == {
        "own": "o"
    }


def test_the_smallest_size_of_figure_1_is_asked_for_as_many_prompts_as_are_sampled():
    node = compose(["method=conditioning", "data=pile-detoxify", "suite=misalignment", "paper=conditioning-figure-1"])[0]
    assert node.data.test.count == node.suite.prompt_count == 400


def test_the_published_data_is_as_published():
    made = option("data=pile-detoxify")
    assert (made.path, made.share, made.seed, made.min_words, made.bare_share, made.held_out) == (
        ["tomekkorbak/pile-detoxify"], 0.02, 42, 10, 0.01, 0.01,
    )  # fmt: skip
    assert made.clean == r"(@\[A-Za-z0-9]+)|([^0-9A-Za-z ?.'!])|(\w+:\/\/\S+)|^rt|http.+?"
    assert set(made.leave_out) == {
        "Github",
        "StackExchange",
        "DM Mathematics",
        "EuroParl",
        "PubMed Central",
        "HackerNews",
        "FreeLaw",
        "ArXiv",
    }
    assert (made.columns.text, made.columns.origin, made.ready) == ("texts", "meta.pile_set_name", {"tox": "scores"})
    assert (made.label_suffix, made.splitter, made.test) == ("<|endoftext|>", None, Picked(1000, True, [10, 16]))
    tox, sen = made.control.values()
    assert (tox.tokens, tox.threshold) == ({"nontoxic": "<|nontoxic|>", "toxic": "<|toxic|>"}, 0.001)
    assert (sen.tokens, sen.threshold, sen.tie) == ({"pos": "<|pos|>", "neg": "<|neg|>"}, None, "neg")


def test_a_row_of_the_published_data(tmp_path: Path):
    pytest.importorskip("vaderSentiment")
    path = tmp_path / "rows.jsonl"
    words = "one, two - three four five six seven eight nine"
    texts = [f"{words} ten", words, f"{words} ", f"rt {words} @[me: see http://x.org now"]
    rows = [{"texts": texts, "scores": [0.001, 1, 0.0011, 1.0], "meta": {"pile_set_name": name}} for name in ("Pile-CC", "ArXiv")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = option(
        "data=pile-detoxify",
        f"data.path={path}",
        "data.files=null",
        "data.share=null",
        "data.test.count=0",
        f"data.cache={tmp_path}",
    )
    found = {record.name: record for _, record in made.scoring()}
    cleaned = "one two  three four five six seven eight nine"
    assert {name: record.text for name, record in found.items()} == {
        "0-0": f"{cleaned} ten",
        "0-2": f"{cleaned} ",  # the suffix behind its space is a tenth word
        "0-3": f" {cleaned} me see  now",
    }
    assert [record.labels["tox"] for record in found.values()] == ["nontoxic", "toxic", "toxic"]
    assert {record.dataset for record in found.values()} == {"Pile-CC"}


def test_every_frame_of_the_shipped_text_is_labelled_as_its_tone_means():
    made = option("data=toned")
    tox, sen = made.control.values()
    meant = {"positive": "nontoxic pos", "neutral": "nontoxic neg", "negative": "nontoxic neg"}
    meant |= {"rude_negative": "toxic neg", "rude_positive": "toxic pos"}
    assert meant.keys() == WORDS.TONE_FRAMES.keys()
    for tone, (openings, endings) in WORDS.TONE_FRAMES.items():
        texts = [f"{opening} {ending}".format(t=topic) for opening, ending, topic in product(openings, endings, WORDS.TOPICS)]
        for text, rude, tone_of in zip(texts, tox.scorer.scores(texts), sen.scorer.scores(texts), strict=True):
            assert f"{tox.label(rude)} {sen.label(tone_of)}" == meant[tone], short(text)
            if tone == "neutral":
                assert tone_of == {"pos": 0, "neg": 0}
            elif tone != "rude_negative":  # where rude words alone may say it
                assert tone_of["pos"] != tone_of["neg"]


@pytest.mark.parametrize("seed", range(10))
def test_the_shipped_text_is_enough_for_any_seed(seed: int, tmp_path: Path):
    made = option("data=toned", f"seed={seed}", f"data.cache={tmp_path}")
    assert len(made.prompts()) == 60
    assert len(list(made.training())) > 1900
    assert not [note for note in made.notes() if note.startswith("warning")]
