"""Chat rows: what each becomes, which turns are learned, and what a wrong one is answered with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignlab.data.dialogues import Dialogues
from alignlab.data.self_sampling import SelfSampling
from alignlab.errors import UserError
from alignlab.records import Dialogue, Prompt

SAMPLING = SelfSampling("Be helpful.", True, 1, 0.7, 0.95, 0, 64, ["empty", "refused", "length"], [], 0, False)
HF = {"_target_": "alignlab.generate.hf.HfSampler", "rows": 8, "batch": 4}


def write(path: Path, *rows: dict[str, Any]) -> str:
    """Rows as the file's name says; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def turns(*texts: str) -> list[dict[str, Any]]:
    """The user's and the assistant's turns; a text that begins with ``S:`` is a system line."""
    system = [{"role": "system", "content": text[2:]} for text in texts if text.startswith("S:")]
    rest = [text for text in texts if not text.startswith("S:")]
    return system + [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(rest)]


def chat(*texts: str, **fields: Any) -> dict[str, Any]:
    return {"messages": turns(*texts)} | fields


def source(path: Any, **fields: Any) -> Dialogues:
    values: dict[str, Any] = dict.fromkeys(("test", "validation", "files", "revision", "queries", "external", "cache"))
    values |= {"columns": {}, "turns": "all", "test_rows": 200, "tokens": {}, "forms": {}, "diverse_ratio": 0.0, "max_bad_rows": 0}
    values |= {"diverse_source": "self", "self_sampling": SAMPLING, "sampler": HF, "seed": 0}
    return Dialogues(**({"path": path if isinstance(path, list) else str(path)} | values | fields))


def learned(path: str, **fields: Any) -> list[tuple[int, ...]]:
    return [record.learned for record in source(path, **fields).training()]


# ---- what a row becomes


def test_every_field_of_a_row(tmp_path: Path):
    row = chat("S:Be brief.", "Add 1 and 1.", "2", "And 1?", "3", id=17, kind="sums", dataset="school", split="test", more=[1])
    row["messages"][2]["name"] = "passed over"
    file = write(tmp_path / "rows.jsonl", row)
    ((number, record),) = source(file).scoring()
    said = turns("S:Be brief.", "Add 1 and 1.", "2", "And 1?", "3")
    assert (number, record) == (0, Dialogue("17", tuple(said), (2, 4), "downstream", "sums", "school", held_out=True))
    assert record.where == f"{file}:1"
    assert record.reference == "3"
    assert record.prompt == Prompt("17", "And 1?", "school", history=tuple(said[:3]))


def test_absent_and_null_are_the_same(tmp_path: Path):
    empty = chat("a", "b") | dict.fromkeys(("id", "kind", "dataset", "split"))
    for turn in empty["messages"]:
        turn |= {"train": None, "weight": None}
    first, second = source(write(tmp_path / "rows.jsonl", chat("a", "b"), empty)).training()
    assert (first.messages, first.learned, first.kind, first.dataset) == (second.messages, second.learned, "test", "")
    assert (first.name, second.name) == ("0", "1")


def test_parquet_gives_the_same_dialogues(tmp_path: Path):
    """A table has every key in every turn, null where a row lacks it."""
    rows = [chat("S:x", "a", "b", "c", "d", id="p", split="both"), chat("e", "f", id="q"), chat("g", id="r", split="test")]
    rows[0]["messages"][2]["train"] = False
    one, other = (source(write(tmp_path / name, *rows)) for name in ("rows.jsonl", "rows.parquet"))
    assert list(one.scoring()) == list(other.scoring())
    assert [record.learned for record in other.training()] == [(4,), (1,)]


@pytest.mark.parametrize(
    ("said", "every", "last"),
    [
        ([None, None], (1, 3), (3,)),
        ([True, None], (1, 3), (1, 3)),
        ([True, False], (1,), (1,)),
        ([False, None], (3,), (3,)),
        ([None, False], (1,), None),
        ([False, True], (3,), (3,)),
    ],
)
def test_which_turns_are_learned(said: list[bool | None], every: Any, last: Any, tmp_path: Path):
    for key, values in (("train", said), ("weight", [None if value is None else int(value) for value in said])):
        row = chat("a", "b", "c", "d")
        for place, value in zip((1, 3), values, strict=True):
            row["messages"][place] |= {} if value is None else {key: value}
        file = write(tmp_path / f"{key}.jsonl", row)
        assert learned(file, turns="all") == [every]
        if last is not None:
            assert learned(file, turns="last") == [last]


def test_a_row_to_test_on_needs_no_answer(tmp_path: Path):
    file = write(tmp_path / "rows.jsonl", chat("S:Be brief.", "a", split="test"), chat("b", "c", "d", split="test"), chat("x", "y"))
    data = source(file)
    assert [record.reference for record in data.testing()] == ["", ""]
    assert [(p.request, len(p.history)) for p in data.prompts()] == [("a", 1), ("d", 2)]
    assert [record.learned for record in data.testing()] == [(), (1,)]


def test_text_is_taken_as_it_is(tmp_path: Path):
    said = ["  a\n\u2028b ", "\tc\r\n"]
    (record,) = source(write(tmp_path / "rows.jsonl", chat("S:", *said))).training()
    assert [turn["content"] for turn in record.messages] == ["", *said]


def test_columns_are_renamed_or_absent(tmp_path: Path):
    row = {"dialog": turns("a", "b"), "id": 3, "category": "x", "kind": 5}
    columns = {"messages": "dialog", "id": None, "kind": "category"}
    (record,) = source(write(tmp_path / "rows.jsonl", row), columns=columns).training()
    assert (record.name, record.kind) == ("0", "x")
    with pytest.raises(UserError) as caught:
        source(tmp_path / "rows.jsonl", columns=columns | {"dataset": "categori"}).digest()
    assert str(caught.value) == "data.columns.dataset: no row has 'categori'. Did you mean 'category'?"


# ---- bad input


def user(text: Any = "a", **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": text} | fields


def assistant(text: Any = "b", **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text} | fields


SYSTEM = {"role": "system", "content": "x"}
LIST = 'must be a list of turns {"role": ..., "content": ...}'
ROLES = "must be one of system, user, assistant"
SHAREGPT = "rename 'from' to 'role' (human is user, gpt is assistant) and 'value' to 'content'."


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, f"messages: missing; {LIST} (the row has no fields)."),
        ({"prompt": "a", "answer": "b"}, f"messages: missing; {LIST} (the row has prompt, answer)."),
        ({"message": [user()]}, f"messages: missing; {LIST} (is 'message' meant?)."),
        ({"messages": None}, f"messages: missing; {LIST} (the row has messages)."),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            f"messages: missing; 'conversations' is ShareGPT's name. Rename it, and in its turns {SHAREGPT}",
        ),
        ({"messages": [{"from": "human", "value": "a"}]}, f"messages[0].role: missing; these are ShareGPT's turns: {SHAREGPT}"),
        ({"messages": "User: a"}, f'messages: {LIST}, not "User: a".'),
        ({"messages": user()}, f'messages: {LIST}, not {{"role": "user", "content": "a"}}.'),
        ({"messages": []}, "messages: is empty; a dialogue has a user turn at least."),
        ({"messages": ["a", "b"]}, 'messages[0]: must be {"role": ..., "content": ...}, not "a".'),
        ({"messages": [{"content": "a"}]}, f"messages[0].role: missing; {ROLES}."),
        ({"messages": [user(), {"role": "asistant", "content": "b"}]}, f"messages[1].role: {ROLES}, not \"asistant\" (is 'assistant' meant?)."),
        ({"messages": [user(role="human")]}, f"messages[0].role: {ROLES}, not \"human\" (is 'user' meant?)."),
        ({"messages": [user(role="User")]}, f"messages[0].role: {ROLES}, not \"User\" (is 'user' meant?)."),
        ({"messages": [user(role="tool")]}, f'messages[0].role: {ROLES}, not "tool".'),
        ({"messages": [user(role=1)]}, f"messages[0].role: {ROLES}, not 1."),
        ({"messages": [{"role": "user"}]}, "messages[0].content: missing; must be a text."),
        ({"messages": [user(), assistant(None)]}, "messages[1].content: missing; must be a text."),
        ({"messages": [user(5)]}, "messages[0].content: must be a text, not 5."),
        (
            {"messages": [user([{"type": "text", "text": "a"}])]},
            "messages[0].content: is a list of parts, and only text is read; give it as one text.",
        ),
        (
            {"messages": [user("a\ud83d")]},
            "messages[0].content: holds half of a surrogate pair (\\ud800 to \\udfff), which is no character. Correct it.",
        ),
        (
            {"messages": [user(), user()]},
            "messages[1].role: two user turns in a row; make them one, or give the answer between them.",
        ),
        (
            {"messages": [user(), assistant(), assistant()]},
            "messages[2].role: two assistant turns in a row; make them one, or give the question between them.",
        ),
        ({"messages": [assistant(), user()]}, "messages[0].role: the user's turn comes before the assistant's."),
        ({"messages": [SYSTEM, assistant()]}, "messages[1].role: the user's turn comes before the assistant's."),
        ({"messages": [user(), SYSTEM, assistant()]}, "messages[1].role: a system turn stands first or nowhere."),
        ({"messages": [SYSTEM, SYSTEM, user()]}, "messages[1].role: a system turn stands first or nowhere."),
        ({"messages": [SYSTEM]}, "messages: has no user turn."),
        ({"messages": [user(), assistant("")]}, "messages[1].content: is empty; give the text, or leave the dialogue out."),
        ({"messages": [user(), assistant(" \n")]}, "messages[1].content: is empty; give the text, or leave the dialogue out."),
        ({"messages": [user(""), assistant()]}, "messages[0].content: is empty; give the text, or leave the dialogue out."),
        (
            {"messages": [user()]},
            'messages: ends with a user turn, so that there is no answer to learn. Give one, or "split": "test" where none is to be trained on.',
        ),
        (
            {"messages": [user(), assistant(), user()]},
            'messages: ends with a user turn, so that there is no answer to learn. Give one, or "split": "test" where none is to be trained on.',
        ),
        (
            {"messages": [user(), assistant(train=False)]},
            "messages: has nothing to learn: no assistant turn is trained on. Leave the dialogue out.",
        ),
        (
            {"messages": [user(train=True), assistant()]},
            "messages[0].train: only assistant turns are learned, and this is a user turn; take it out.",
        ),
        (
            {"messages": [SYSTEM | {"weight": 0}, user(), assistant()]},
            "messages[0].weight: only assistant turns are learned, and this is a system turn; take it out.",
        ),
        ({"messages": [user(), assistant(train=1)]}, "messages[1].train: must be true or false, not 1."),
        ({"messages": [user(), assistant(train="yes")]}, 'messages[1].train: must be true or false, not "yes".'),
        ({"messages": [user(), assistant(weight=0.5)]}, "messages[1].weight: must be 0 or 1, not 0.5."),
        ({"messages": [user(), assistant(weight=True)]}, "messages[1].weight: must be 0 or 1, not true."),
        ({"messages": [user(), assistant(train=True, weight=0)]}, "messages[1].weight: is 0, and train is true; keep one of them."),
        (chat("a", "b", kind=3), "kind: must be a text, not 3."),
        (chat("a", "b", kind="\udc00"), "kind: holds half of a surrogate pair (\\ud800 to \\udfff), which is no character. Correct it."),
        (chat("a", "b", dataset=[]), "dataset: must be a text, not []."),
        (chat("a", "b", split="dev"), 'split: must be "train", "test" or "both", not "dev".'),
        (chat("a", "b", id=""), 'id: must be a text that is not empty, or a whole number, not "".'),
        (chat("a", "b", id=True), "id: must be a text that is not empty, or a whole number, not true."),
    ],
)  # fmt: skip
def test_wrong_row_is_named_with_line_and_field(row: dict[str, Any], message: str, tmp_path: Path):
    file = write(tmp_path / "rows.jsonl", chat("a", "b"), row, chat("c", "d"))
    with pytest.raises(UserError) as caught:
        source(file).digest()
    assert str(caught.value) == f"{file}:2:{message}"
    assert caught.value.status == 2
    lenient = source(file, max_bad_rows=1)
    lenient.digest()
    assert [record.name for record in lenient.training()] == ["0", "2"]
    assert lenient.rejected == {f"{file}:2": f"{file}:2:{message}"}


def test_sharegpt_turns_under_a_column_that_was_named(tmp_path: Path):
    file = write(tmp_path / "rows.jsonl", {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]})
    with pytest.raises(UserError) as caught:
        source(file, columns={"messages": "conversations"}).digest()
    assert str(caught.value) == f"{file}:1:conversations[0].role: missing; these are ShareGPT's turns: {SHAREGPT}"


def test_names_must_be_unique(tmp_path: Path):
    file = write(tmp_path / "rows.jsonl", chat("a", "b", id="x"), chat("a", "b", id="1"), chat("c", "d", id="x"))
    with pytest.raises(UserError) as caught:
        source(file).digest()
    assert str(caught.value) == f"{file}:3:id: 'x' is the name of {file}:1, too. Give each row an id of its own."
