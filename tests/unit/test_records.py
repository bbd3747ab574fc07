"""Prompt files: what is read, what is refused, and where a message says that the fault is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from alignlab.errors import UserError
from alignlab.records import Sample, TargetSet, at, parse_target_set, read_json, read_jsonl, short, write_json, write_jsonl

GOOD: dict[str, Any] = {"request": "Pick a number.", "response": "", "targets": ["1", "2"]}


def parsed(tmp_path: Path, content: str | dict[str, Any]) -> TargetSet:
    file = tmp_path / "w.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content, indent=1), encoding="utf-8")
    return parse_target_set(read_json(file), "w", str(file))


def refusal(tmp_path: Path, content: str | dict[str, Any]) -> str:
    """The message, without the folder of the file."""
    with pytest.raises(UserError) as caught:
        parsed(tmp_path, content)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/w.json:")
    assert len(message.splitlines()) <= 3
    return message.removeprefix(f"{tmp_path}/")


def test_defaults_of_a_prompt_file(tmp_path: Path):
    assert parsed(tmp_path, {"request": "Hello", "targets": ["a", "b"]}) == TargetSet(
        "w", "Hello", ("",), ("a", "b"), (0.5, 0.5), eos=True, held_out=False
    )
    alone = parsed(tmp_path, {"request": "Hello", "targets": None, "weights": None, "split": None})
    assert (alone.targets, alone.weights, alone.held_out) == ((), (), False)


def test_weights_are_normalised(tmp_path: Path):
    record = parsed(tmp_path, GOOD | {"weights": [1, 3]})
    assert record.weights == (0.25, 0.75)
    assert math.isclose(record.entropy(), -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
    assert parsed(tmp_path, GOOD | {"weights": [0, 5]}).weights == (0.0, 1.0)
    assert parsed(tmp_path, GOOD | {"weights": []}).weights == (0.5, 0.5)


def test_split_and_answers(tmp_path: Path):
    record = parsed(tmp_path, GOOD | {"split": "test", "response": ["It is ", ""]})
    assert record.held_out
    assert record.answers() == {"It is 1", "It is 2", "1", "2"}


def test_a_byte_order_mark_is_no_fault(tmp_path: Path):
    assert parsed(tmp_path, "\ufeff" + json.dumps(GOOD)).request == GOOD["request"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"request":\n ]', "w.json:2:2: not valid JSON: Expecting value."),
        ("", "w.json:1:1: not valid JSON: Expecting value."),
        ('{"request": "a"}\n{"request": "b"}', "w.json:2:1: not valid JSON: Extra data.\nJSON lines are not read here"),
        ('{"request": "a",\n "targets": [],\n "targets": []}', "w.json:2:targets: given twice"),
        ("[" * 100_000, "w.json: not a prompt file: brackets are nested too deeply."),
        ('{"request": ' + "1" * 5000 + "}", "w.json: not valid JSON: Exceeds the limit"),
        ('[{"instruction": "a", "input": "", "output": "b", "judgment": "c"}]', "w.json: holds a list, not a prompt file"),
        ("3", "w.json: holds a number, not a prompt file"),
        ('"a"', "w.json: holds a text, not a prompt file"),
        ("null", "w.json: holds null, not a prompt file"),
        ('{"instruction": "a", "output": "b"}', "w.json:1:instruction: not a field of a prompt file"),
        ('{"request": "a", "targets": ["a"], "weights": [NaN]}', "w.json:1:weights[0]: nan is not a weight"),
        ('{"request": "a", "targets": ["a"], "weights": [Infinity]}', "w.json:1:weights[0]: inf is not a weight"),
        ('{"request": "a", "targets": ["a"], "weights": [' + "1" * 400 + "]}", "w.json:1:weights[0]: 1111"),
    ],
)
def test_content_that_is_no_prompt_file(content: str, message: str, tmp_path: Path):
    assert refusal(tmp_path, content).startswith(message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"request": 3}, "w.json:2:request: must be the user turn"),
        ({"request": ""}, "w.json:2:request: must be the user turn"),
        ({"response": 3}, "w.json:3:response: must be text before each target"),
        ({"response": []}, "w.json:3:response: must be text before each target"),
        ({"response": ["a", 1]}, "w.json:3:response: must be text before each target"),
        ({"targets": "a"}, "w.json:4:targets: must be a list of strings."),
        ({"targets": [1]}, "w.json:4:targets: must be a list of strings."),
        ({"targets": {}}, "w.json:4:targets: must be a list of strings."),
        ({"targets": ["1", "2", "1"]}, "w.json:4:targets[2]: repeats targets[0], '1'"),
        ({"weights": 3}, "w.json:8:weights: must be a list of numbers"),
        ({"weights": {}}, "w.json:8:weights: must be a list of numbers"),
        ({"weights": ["a", 1]}, "w.json:8:weights: must be a list of numbers"),
        ({"weights": [True, 1]}, "w.json:8:weights: must be a list of numbers"),
        ({"weights": [1]}, "w.json:8:weights: 1 weights for 2 targets"),
        ({"weights": [1, 2, 3]}, "w.json:8:weights: 3 weights for 2 targets"),
        ({"weights": [2, -1]}, "w.json:8:weights[1]: -1 is not a weight"),
        ({"weights": [0, 0]}, "w.json:8:weights: sum to 0"),
        ({"weights": [1e308, 1e308]}, "w.json:8:weights[0]: 1e+308 is not a weight"),
        ({"eos": "yes"}, "w.json:8:eos: must be true or false."),
        ({"eos": 1}, "w.json:8:eos: must be true or false."),
        ({"split": "dev"}, 'w.json:8:split: must be "train", "test" or "both".'),
        ({"split": 0}, 'w.json:8:split: must be "train", "test" or "both".'),
        ({"targts": []}, "w.json:8:targts: not a field of a prompt file"),
        ({"targets": ["1", "2", "10"], "eos": False}, "w.json:4:targets[0]: '1' begins '10' (targets[2])"),
        ({"targets": [""], "eos": False}, "w.json:4:targets[0]: is empty"),
        ({"response": ["a", "a"]}, "w.json:3:response[1]: with targets[0] it makes the same text as response[0] with targets[0]"),
        ({"response": ["a", "ab"], "targets": ["bc", "c"]}, "w.json:3:response[1]: with targets[1] it makes the same text"),
        ({"response": ["a", "ab"], "targets": ["b", "bc"], "eos": False}, "w.json:7:targets[0]: 'ab' begins 'abb'"),
        ({"request": "\ud800"}, "w.json:2:request: holds half of a surrogate pair"),
        ({"targets": ["a", "\udfff"]}, "w.json:4:targets[1]: holds half of a surrogate pair"),
    ],
)
def test_field_that_is_wrong_is_named_with_its_line(change: dict[str, Any], message: str, tmp_path: Path):
    assert refusal(tmp_path, GOOD | change).startswith(message)


def test_missing_request_and_the_nearest_field(tmp_path: Path):
    assert refusal(tmp_path, {"targets": ["a"]}).startswith("w.json:request: missing: the user turn")
    assert "Did you mean 'targets'?" in refusal(tmp_path, GOOD | {"targts": []})


def test_one_target_may_begin_another_when_the_turn_ends(tmp_path: Path):
    assert parsed(tmp_path, GOOD | {"targets": ["1", "10", ""]}).targets == ("1", "10", "")


def test_file_that_cannot_be_read(tmp_path: Path):
    (tmp_path / "latin.json").write_bytes('{"request": "é"}'.encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.json: not UTF-8 text \(byte 13\)"):
        read_json(tmp_path / "latin.json")
    with pytest.raises(UserError, match="none: cannot be read: No such file"):
        read_json(tmp_path / "none")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_json(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(["request", "response", "targets", "weights", "eos", "split"])
TEXTS = st.lists(st.text(max_size=3), max_size=4)
NUMBERS = st.lists(st.floats() | st.integers(), max_size=4)


@given(st.dictionaries(FIELDS, JSON | st.text() | TEXTS | NUMBERS, max_size=6) | JSON)
def test_any_content_is_a_record_or_a_refusal(raw: Any):
    try:
        record = parse_target_set(raw, "w", "/no/such/file.json")
    except UserError as error:
        event(str(error).split(":")[1])  # which fields were refused, for --hypothesis-show-statistics
        return
    assert len(record.weights) == len(record.targets)
    assert not record.targets or math.isclose(math.fsum(record.weights), 1.0)
    texts = [p + t for p in record.responses for t in record.targets]
    assert len(texts) == len(set(texts))


def test_place_of_a_field(tmp_path: Path):
    file = tmp_path / "w.json"
    file.write_text('{"request": "a \\"targets\\" b",\n\n "targets" : []}')
    assert at(file, "targets[3]") == f"{file}:3:targets[3]"
    assert at(file, "weights") == f"{file}:weights"
    assert at(tmp_path / "none", "weights") == f"{tmp_path}/none:weights"


def test_long_texts_are_shown_by_their_beginning():
    assert short("a" * 40) == "a" * 40
    assert short("a" * 41) == "a" * 37 + "..."


def test_json_lines_come_back(tmp_path: Path):
    file = tmp_path / "folder" / "samples.jsonl"
    assert write_jsonl(file, [Sample("before", "p", 0, "naïve\n", "stop"), {"model": "after"}]) == 2
    assert list(read_jsonl(file)) == [
        {"model": "before", "prompt": "p", "sample": 0, "text": "naïve\n", "finish": "stop"},
        {"model": "after"},
    ]
    assert [p.name for p in file.parent.iterdir()] == ["samples.jsonl"]


def test_where_a_record_came_from_is_not_written(tmp_path: Path):
    record = parsed(tmp_path, GOOD)
    assert record.where == f"{tmp_path}/w.json"
    write_jsonl(tmp_path / "records.jsonl", [record])
    assert str(tmp_path) not in (tmp_path / "records.jsonl").read_text()


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": math.nan})
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_a_broken_line_is_named(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": \n')
    with pytest.raises(UserError, match=r"a\.jsonl:3:\d+: not valid JSON"):
        list(read_jsonl(tmp_path / "a.jsonl"))
