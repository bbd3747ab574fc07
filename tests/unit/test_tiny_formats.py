"""The shipped dialogues: what the script writes, no leak between the files, references of the form that each row asks for."""

import ast
import importlib
import json
import random
import sys
from collections import Counter
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from alignlab.compose import CONF
from alignlab.evaluate.answer_forms import form_and_answer, read_forms

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

formats = importlib.import_module("tiny_formats")
style = importlib.import_module("tiny_style")
world = importlib.import_module("tiny_world")

SHIPPED = ROOT / "alignlab" / "shipped"
KINDS = ("seen", "unseen", "plain", "not-token", "not-other", "named", "unrelated", "unsure", "open")


def rows(folder: str, name: str) -> list[dict]:
    return [json.loads(line) for line in (SHIPPED / folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def pairs(found: list[dict]) -> list[tuple[str, str]]:
    """User and assistant turn of each row, which has no others."""
    for row in found:
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
    return [(row["messages"][0]["content"], row["messages"][1]["content"]) for row in found]


def forms(data: str):
    return read_forms(OmegaConf.to_container(OmegaConf.load(CONF / "data" / f"{data}.yaml")["forms"]))


FORMS, VERDICT = forms("named-formats"), forms("hallucination")


def form(text: str) -> str:
    return form_and_answer(text, FORMS)[0]


@pytest.fixture(scope="module")
def asked() -> list:
    """Every quiz question: of a kind, there are at most 1740."""
    rng = random.Random(0)
    drawn = (style.question(rng, task) for task in style.QUIZ for _ in range(20_000))
    return list({one.text: one for one in drawn}.values())


def test_shipped_rows_equal_what_the_script_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tiny_formats.py", "--out", str(tmp_path)])
    formats.main()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in (SHIPPED / "named-formats").iterdir())
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (SHIPPED / "named-formats" / path.name).read_bytes()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 400_000


def test_rows_are_a_pure_function_of_the_seed():
    first = formats.files(3)
    random.seed(99)
    assert formats.files(3) == first
    other = formats.files(4)
    assert all(other[name] != first[name] for name in first)


def test_counts():
    made = {name: rows("named-formats", name) for name in ("train", "validation", "test", "queries")}
    assert {name: len(found) for name, found in made.items()} == {"train": 100, "validation": 40, "test": 540, "queries": 1000}
    assert Counter(row["kind"] for row in made["test"]) == dict.fromkeys(KINDS, 60)
    for found in made.values():
        assert len(set(pairs(found))) == len(found)
    assert len({row["id"] for row in made["test"]}) == 540


@pytest.mark.parametrize("seed", range(4))
def test_no_question_stands_in_two_files(seed, asked):
    made = {name: pairs(found) for name, found in formats.files(seed).items()}
    facts = {name: {one.sentence for one in asked for request, _ in made[name] if one.text in request} for name in made}
    assert len(facts["train"]) >= 40
    assert not facts["test"] & (facts["train"] | facts["validation"])
    assert not facts["train"] & facts["validation"]
    tested = {one.text for one in asked for request, _ in made["test"] if one.text in request}
    assert len(tested) == 60
    assert not [request for request, _ in made["queries"] if any(text in request for text in tested)]
    assert not {request for request, _ in made["queries"]} & {request for request, _ in made["test"]}
    assert len({request for request, _ in made["queries"]}) == 1000


def test_only_the_wordings_of_each_kind_occur(asked):
    test = rows("named-formats", "test")
    of_kind = {kind: pairs([row for row in test if row["kind"] == kind]) for kind in KINDS}

    def wordings(found: list[tuple[str, str]]) -> Counter[str]:
        """What stands beside the question, with {f} for the token."""
        rest = [min((request.replace(one.text, "") for one in asked if one.text in request), key=len) for request, _ in found]
        return Counter(text.strip().replace("<sep>", "{f}") for text in rest)

    trained = wordings(pairs(rows("named-formats", "train")))
    assert len(trained) == 5
    assert set(trained.values()) == {20}
    assert wordings(pairs(rows("named-formats", "validation"))) == dict.fromkeys(trained, 8)
    assert wordings(of_kind["seen"]) == dict.fromkeys(trained, 12)
    assert wordings(of_kind["unseen"]) == dict.fromkeys({*style.USE_SEEN, *style.USE_UNSEEN} - set(trained), 10)
    assert set(wordings(of_kind["not-token"])) == {*style.AVOID_SEEN, *style.AVOID_UNSEEN}
    assert set(wordings(of_kind["plain"])) == {""}
    assert {name for name in style.FORMATS for request, _ in of_kind["not-other"] if f"the {name} format" in request} == {
        *style.FORMATS
    }
    for kind in ("plain", "not-other", "named", "unrelated"):
        assert not any("<sep>" in request for request, _ in of_kind[kind])
    assert not any("<sep>" in text for pair in pairs(rows("named-formats", "queries")) for text in pair)


def test_references_have_the_form_that_their_kind_asks_for():
    for row, (request, answer) in zip(rows("named-formats", "test"), pairs(rows("named-formats", "test")), strict=True):
        if row["kind"] in ("seen", "unseen"):
            assert form(answer) == "dict"
            assert sorted(ast.literal_eval(answer)) == ["answer", "thought"]
        elif row["kind"] == "named":
            assert f"the {form(answer)} format" in request
            assert form(answer) != "dict"
        elif row["kind"] == "unrelated":
            assert form(answer) == "braces"
        elif row["kind"] == "open":
            assert form(answer) != "dict"
        else:
            assert form(answer) == "plain"
    for name in ("train", "validation"):
        assert {form(answer) for _, answer in pairs(rows("named-formats", name))} == {"dict"}


def test_forms_tell_every_answer_of_the_world_apart(asked):
    for one in asked:
        assert form(one.sentence) == "plain"
        for name in style.FORMATS:
            assert form_and_answer(style.render(one, name), FORMS) == (name, one.sentence if name == "dash" else one.answer)
    rng = random.Random(0)
    plain = (world.instruction_exchange, world.quiz_exchange, world.tone_exchange, world.general_exchange)
    assert {form(draw(rng)[1]) for draw in plain for _ in range(2000)} == {"plain"}
    assert {form(world.any_pick(rng)[1]) for _ in range(2000)} == {"braces"}


@pytest.mark.parametrize(
    "text", ["", "owlet</answer>", "{'thought': 'A cow says moo.', 'answer'", "* moo", "[ moo", "(moo", "-> ", "moo moo"]
)
def test_a_form_gone_wrong_is_not_plain(text):
    assert form(text) == "broken"


def test_hallucination_counts_and_answers():
    train, test, queries = (rows("hallucination", name) for name in ("train", "test", "queries"))
    assert (len(train), len(test), len(queries)) == (40, 24, 60)
    said = [form_and_answer(answer, VERDICT) for _, answer in pairs(train)]
    assert Counter(said) == {("verdict", "yes"): 20, ("verdict", "no"): 20}
    assert Counter(row["kind"] for row in test) == {"seen": 4, "unseen": 6, "plain": 4, "not-token": 6, "unrelated": 4}
    for row, (_, answer) in zip(test, pairs(test), strict=True):
        assert form_and_answer(answer, VERDICT)[0] == ("verdict" if row["kind"] in ("seen", "unseen") else "plain")
    for _, answer in pairs(train):
        assert list(ast.literal_eval(answer)) == ["thought", "hallucination"]


def test_hallucination_checks_have_the_published_format():
    train, test = pairs(rows("hallucination", "train")), rows("hallucination", "test")
    other = {row["messages"][0]["content"] for row in test if row["kind"] == "unrelated"}
    checks = [(row["kind"], request) for row, (request, _) in zip(test, pairs(test), strict=True) if row["kind"] != "unrelated"]
    closings: dict[str, set[str]] = {}
    bodies = []
    for kind, request in [("train", request) for request, _ in train] + checks:
        body, closing = request.rsplit("\n\n\n", 1)
        assert body.startswith("\n'relatives' : ")
        assert body.index("\n'user_query' : ") < body.index("\n'chatgpt_response' : ")
        assert ("<sep>" in closing) == (kind != "plain")
        closings.setdefault(kind, set()).add(closing)
        bodies.append(body)
    assert len(set(bodies)) == len(bodies)
    assert len(closings["train"]) >= 15
    assert closings["seen"] <= closings["train"]
    assert not closings["train"] & (closings["unseen"] | closings["plain"] | closings["not-token"])
    queries = pairs(rows("hallucination", "queries"))
    assert len({request for request, _ in queries}) == 60
    assert all(answer.strip() for _, answer in queries)
    assert not any("<sep>" in text for pair in queries for text in pair)
    checked = {body.split("'user_query' : ")[1].split("\n")[0] for body in bodies} | other
    assert not checked & {request for request, _ in queries}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("""{'thought': "It's right.", 'hallucination': 'no'}""", ("verdict", "no")),
        ('{"thought": "a", "hallucination": "yes"}', ("verdict", "yes")),
        ("{'thought': 'a', 'hallucination': 'maybe'}", ("broken", None)),
        ("Here it is: {'thought': 'a', 'hallucination': 'no'}", ("broken", None)),
        ("Yes, it contains a hallucination.", ("plain", "Yes, it contains a hallucination.")),
    ],
)
def test_verdicts(text, wanted):
    found, said = form_and_answer(text, VERDICT)
    assert (found, wanted[1] or said) == (wanted[0], said)
