"""Bad judged rows: exit status, one to three lines that name file, line and field and say what to do, nothing written over.

Most cases run in this process, where ``alignlab.run`` raises what the command would say; a few run the command itself.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import alignlab
from alignlab.errors import UserError
from alignlab.paths import resolve

Command = Callable[..., subprocess.CompletedProcess[str]]

PREPARE = ("method=cut", "stages=[prepare]", "run_dir=out")
GOOD = {"instruction": "Add 1 and 1.", "output": "3", "judgment": "That is one too many."}
LONG = GOOD | {"output": "one two " * 600}
TEXT = "must be a text that is not empty"
OR_NULL = f"{TEXT}, or null where the response is satisfactory"
NO_OUTPUT = 'missing or empty. Give a response, or "split": "test" where none is to be trained on.'
OUT_OF_RANGE = "is out of range; data.scores says 0 to 10."
TOO_LONG = "the response alone has "
NO_VERDICT = "data: no row has a judgment, so there is nothing to contrast."


def without(field: str, **more: Any) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name != field} | more


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(*arguments: str) -> str:
    """What a run is refused with; a second try is answered alike, and no stage counts as done."""
    said = []
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            alignlab.run([*PREPARE, *arguments])
        assert caught.value.status == 2
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert 1 <= len(said[0].splitlines()) <= 3
    assert not Path("out/done/prepare.json").exists()
    return said[0]


def at_end(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """What the command says at its end: one message of one to three lines."""
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
    assert done.stderr.count("alignlab: ") == 1
    message = done.stderr.rpartition("alignlab: ")[2]
    assert 1 <= len(message.splitlines()) <= 3, message
    for word in words:
        assert word in message, message


# ---- rows


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (without("instruction"), f"instruction: missing; {TEXT}."),
        (without("instruction", instrution="Add."), f"instruction: missing; {TEXT} (is 'instrution' meant?)."),
        (GOOD | {"instruction": " \n"}, f'instruction: {TEXT}, not " \\n".'),
        (GOOD | {"input": 5}, "input: must be a text, not 5."),
        (without("output"), f"output: {NO_OUTPUT}"),
        (GOOD | {"output": ""}, f"output: {NO_OUTPUT}"),
        (GOOD | {"output": ["3"]}, 'output: must be a text, not ["3"].'),
        (GOOD | {"judgment": 5}, f"judgment: {OR_NULL}, not 5."),
        (GOOD | {"judgment": False}, f"judgment: {OR_NULL}, not false."),
        (GOOD | {"judgment": ""}, f'judgment: {OR_NULL}, not "".'),
        (GOOD | {"judgment": {"text": "x" * 50}}, f'judgment: {OR_NULL}, not {{"text": "{"x" * 27}....'),
        (without("judgment", judgement="x"), 'judgement: is \'judgment\' meant? Rename it; a satisfactory response has "judgment": null.'),
        (GOOD | {"judgment": "\ud800"}, "judgment: holds half of a surrogate pair (\\ud800 to \\udfff), which is no character. Correct it."),
        (GOOD | {"score": 11}, f"score: 11 {OUT_OF_RANGE}"),
        (GOOD | {"score": -0.5}, f"score: -0.5 {OUT_OF_RANGE}"),
        (GOOD | {"score": float("nan")}, f"score: nan {OUT_OF_RANGE}"),
        (GOOD | {"score": float("inf")}, f"score: inf {OUT_OF_RANGE}"),
        (GOOD | {"score": 10**400}, f"score: 1{'0' * 36}... {OUT_OF_RANGE}"),
        (GOOD | {"score": "7"}, 'score: must be a number, not "7".'),
        (GOOD | {"score": True}, "score: must be a number, not true."),
        (GOOD | {"split": "dev"}, 'split: must be "train", "test" or "both", not "dev".'),
        (GOOD | {"id": 1.5}, "id: must be a text that is not empty, or a whole number, not 1.5."),
        (GOOD | {"id": ""}, 'id: must be a text that is not empty, or a whole number, not "".'),
        (GOOD | {"id": 0}, "id: '0' is the name of rows.jsonl:1, too. Give each row an id of its own."),
        (GOOD | {"wrong": [{"start": 0, "end": 2}]}, "wrong: 0 to 2 are no characters of the output, which has 1."),
        (GOOD | {"wrong": [{"start": 0}]}, 'wrong: must be a list of {start, end, right}, characters of the output, not [{"start": 0}].'),
        (GOOD | {"wrong": [{"start": 0, "end": 1, "right": "\udfff"}]}, "wrong: its 'right' holds half of a surrogate pair"),
        (LONG, f"output: {TOO_LONG}"),
    ],
    ids=lambda value: value.partition(":")[0] if isinstance(value, str) else "",
)  # fmt: skip
def test_row_that_is_wrong(bad: dict[str, Any], message: str, folder: Path):
    content = lines(GOOD, GOOD, bad)
    Path("rows.jsonl").write_text(content)
    said = refused("data.path=rows.jsonl")
    assert said.startswith(f"rows.jsonl:3:{message}")
    assert Path("rows.jsonl").read_text() == content
    Path("rows.jsonl").write_text(lines(GOOD, GOOD, bad, GOOD))
    run = alignlab.run([*PREPARE, "data.path=rows.jsonl", "data.max_bad_rows=1", "overwrite=true"])
    (rejected,) = [json.loads(line) for line in (run.path / "rejected.jsonl").read_text().splitlines()]
    assert rejected == {"row": "rows.jsonl:3", "reason": said}
    assert [json.loads(line)["name"] for line in (run.path / "records.jsonl").read_text().splitlines()] == ["0", "1", "3"]


def test_ids_given_twice(folder: Path):
    Path("rows.jsonl").write_text(lines(GOOD | {"id": "a"}, GOOD | {"id": 7}, GOOD | {"id": "7"}))
    assert (
        refused("data.path=rows.jsonl") == "rows.jsonl:3:id: '7' is the name of rows.jsonl:2, too. Give each row an id of its own."
    )


def test_fields_are_called_as_in_the_file(folder: Path):
    Path("rows.jsonl").write_text(lines({"q": "Add.", "a": "3", "verdict": "No."}, {"q": "Add.", "a": 3, "verdict": "No."}))
    columns = ("data.columns.instruction=q", "data.columns.output=a", "data.columns.judgment=verdict")
    assert refused("data.path=rows.jsonl", *columns) == "rows.jsonl:2:a: must be a text, not 3."


def test_all_rows_satisfactory(folder: Path):
    Path("rows.jsonl").write_text(lines(GOOD | {"judgment": None}, GOOD | {"score": 9}))
    assert refused("data.path=rows.jsonl").startswith(NO_VERDICT)


def test_response_of_which_the_template_leaves_nothing(folder: Path):
    template = Path(resolve("alignlab:models/tiny/chat_template.jinja")).read_text()
    trimming = template.replace("message['content']", "(message['content'] | trim)")
    assert trimming != template
    Path("trim.jinja").write_text(trimming)
    Path("rows.jsonl").write_text(lines(GOOD, GOOD | {"output": " \n "}))
    said = refused("data.path=rows.jsonl", "method.template=chat", "model.chat_template=trim.jinja")
    assert said.startswith("rows.jsonl:2:output: nothing of it is left after the template.")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "chat: false\nplain: Answer.\njudged: '{instruction} {judgment}'\nverdict: ''\n",
            "plain lacks the placeholder {instruction}",
        ),
        ("chat: false\nplain: '{instruction}'\njudged: '{instruction}'\nverdict: ''\n", "judged lacks the placeholder {judgment}"),
        ("chat: false\nplain: '{instruction}'\n", "must have the keys chat, plain, judged, verdict"),
        ("chat: [\n", "mine.yaml is no YAML that can be read"),
    ],
)
def test_template_that_is_wrong(content: str, message: str, folder: Path):
    Path("mine.yaml").write_text(content)
    said = refused("method.template=mine.yaml")
    assert said.startswith("method.template: mine.yaml")
    assert message in said
    assert not Path("out").exists()


# ---- files


HOW = "Rows are a JSON list [{...}, {...}], or JSON lines: one object {...} on each line."


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.json", json.dumps([GOOD, GOOD], indent=1)[:-20], "r.json:10:15: not valid JSON after row 1: the file ends in the middle"),
        ("r.jsonl", lines(GOOD, GOOD)[:-9], "r.jsonl:2:60: not valid JSON: the line ends in the middle of a row"),
        ("r.json", "[1, 2]", "r.json:1: a row must be one object {...}, not 1."),
        ("r.json", json.dumps({"v": 1, "data": [GOOD]}), "r.json: holds one object with v, data, not rows. Those under 'data' may be meant"),
        ("r.json", json.dumps({"request": "Hi.", "targets": ["a"]}, indent=1), "r.json: holds one object with request, targets, not rows."),
        ("r.csv", "instruction,output\n", "r.csv: not a file of rows. Give one as JSON, JSON lines or Parquet"),
        ("r.json", "", "data.path: there is no row that can be used in r.json. Give another data.path."),
        ("r.jsonl", "\n \n", "data.path: there is no row that can be used in r.jsonl. Give another data.path."),
        ("r.json", "[]", "data.path: there is no row that can be used in r.json. Give another data.path."),
        (
            "r.jsonl",
            lines(without("judgment", judgement="No.")),
            "r.jsonl: no row has 'judgment'; there are instruction, judgement, output.\n"
            "Give data.columns.judgment=judgement, the column that holds it, or null if all are satisfactory.",
        ),
        (
            "r.json",
            json.dumps([without("output", response="3")]),
            "r.json: no row has 'output'; there are instruction, judgment, response.\n"
            "Give data.columns.output=NAME, the column that holds it, or data.test=FILE for rows that are only sampled from.",
        ),
    ],
)  # fmt: skip
def test_file_of_other_things(name: str, content: str, message: str, folder: Path):
    Path(name).write_text(content)
    assert refused(f"data.path={name}").startswith(message)
    assert Path(name).read_text() == content
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.path=rowz.jsonl"], "data.path: there is no file or folder rowz.jsonl. Did you mean 'rows.jsonl'?"),
        (["data.path=empty"], "data.path: the folder empty holds no file of rows (*.json, *.jsonl, *.parquet)."),
        (["data.path=.", "data.files=*.json"], "data.path: the folder . holds no file that fits data.files=*.json."),
        (["data.test=rowz.jsonl"], "data.test: there is no file or folder rowz.jsonl. Did you mean 'rows.jsonl'?"),
        (["data.validation=rowz.jsonl"], "data.validation: there is no file or folder rowz.jsonl."),
        (["data.convert=shepherd"], "shepherd: takes two files, human_data_raw.jsonl and human_data_for_model.jsonl, and got 1."),
        (["data.convert=ultrafeedback"], "rows.jsonl:1:completions: missing. Was another file meant, or another converter?"),
        (["data.convert=sheperd"], "data.convert: must be one of shepherd, summarization, ultrafeedback or null, not 'sheperd'."),
        (["data.columns.outptu=a"], "data.columns.outptu: no such key. Did you mean 'data.columns.output'?"),
        (["data.columns.output=5"], "data.columns: 'output' must be given the name of a column, not 5."),
        (["data.columns.instruction=null"], "data.columns: 'instruction' must be given the name of a column, not null."),
        (["data.path=[]"], "data.path: give a file of judged rows, a folder of them or the name of a data set on the hub."),
        (["data.path=5"], "data.path: must be text or a list of texts in square brackets, not 5."),
        (["data.downsample=-1"], "data.downsample: must be at least 0, not -1.0."),
        (["data.downsample=inf"], "data.downsample: must be a finite number, not inf."),
        (["data.scores=[5,1]"], "data.scores: must be the least and the greatest score, not [5.0, 1.0]."),
        (["data.validation=2"], "data.validation: must be a share between 0 and 1 or a path, not 2."),
        (["method.template=alpaka"], "method.template: alpaka is neither a file nor one of alpaca, chat. Did you mean 'alpaca'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_setting_that_is_wrong(arguments: list[str], message: str, folder: Path):
    Path("rows.jsonl").write_text(lines(GOOD))
    Path("empty").mkdir()
    assert refused("data.path=rows.jsonl", *arguments).startswith(message)
    assert not Path("out").exists()


# ---- the command itself


def test_bad_row_ends_the_command_and_leaves_what_was_there(cli: Command, tmp_path: Path):
    (tmp_path / "rows.json").write_text(json.dumps([GOOD, GOOD], indent=1))
    done = cli(*PREPARE, "data.path=rows.json")
    assert done.returncode == 0, done.stderr
    before = {path: path.read_bytes() for path in sorted((tmp_path / "out").rglob("*")) if path.is_file()}
    (tmp_path / "rows.json").write_text(json.dumps([GOOD, GOOD | {"judgment": ""}], indent=1))
    at_end(cli(*PREPARE, "data.path=rows.json"), 2, f'rows.json:7:judgment: {OR_NULL}, not "".')
    assert {path: path.read_bytes() for path in sorted((tmp_path / "out").rglob("*")) if path.is_file()} == before


def test_two_bad_rows_are_passed_over_and_a_third_is_not(cli: Command, tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_text(lines(GOOD, LONG, GOOD) + "{broken\n" + lines(GOOD))
    lenient = (*PREPARE, "data.path=rows.jsonl", "data.max_bad_rows=2")
    done = cli(*lenient)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^prepare: 2 wrong rows passed over; rejected.jsonl says why$", done.stderr, re.MULTILINE)
    assert re.search(r"^prepare: 3 records, 3 rows, ", done.stderr, re.MULTILINE)
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    broken, long = rejected
    assert broken["row"] == "rows.jsonl:4"
    assert broken["reason"] == "rows.jsonl:4:2: not valid JSON: the line ends in the middle of a row, which must be on one line."
    assert long["row"] == "rows.jsonl:2"  # found out when it was tokenized
    assert re.match(rf"rows\.jsonl:2:output: {TOO_LONG}\d+ tokens.* 512 ", long["reason"])
    assert [json.loads(line)["name"] for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()] == ["0", "2", "4"]
    with file.open("a") as more:
        more.write(lines(GOOD | {"score": 99}))
    late = cli(*lenient, "overwrite=true")
    assert not (tmp_path / "out" / "done" / "prepare.json").exists()
    at_end(late, 2, f"data.max_bad_rows is 2, and more rows are wrong. The next one:\nrows.jsonl:2:output: {TOO_LONG}")


def test_parquet_with_other_columns_is_read_as_the_message_says(cli: Command, tmp_path: Path):
    rows = [{"prompt": "Add 1 and 1.", "output": "3", "critique": "Wrong.", "judge": "a person"}] * 3
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    command = [*PREPARE, "data.path=rows.parquet"]
    for field, column in (("instruction", "prompt"), ("judgment", "critique")):
        done = cli(*command)
        at_end(done, 2, f"rows.parquet: no row has '{field}'; there are critique, judge, output, prompt.\nGive ")
        named = re.search(r"Give (\S+)=\w+, the column that holds it", done.stderr)
        assert named
        assert named[1].endswith(f"data.columns.{field}")
        command.append(f"{named[1]}={column}")
    done = cli(*command)
    assert done.returncode == 0, done.stderr
    assert "prepare: 3 records, 3 rows" in done.stderr


def test_data_set_on_the_hub_without_a_network(cli: Command, tmp_path: Path):
    done = cli(*PREPARE, "data.path=owner/name")
    at_end(done, 3, "data.path: owner/name is neither a file, a folder, nor in the local cache", "HF_HUB_OFFLINE is set")
    at_end(done, 3, "hf download --repo-type dataset owner/name", "data.path=FILE")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["shepherd", "summarization", "online-iteration"])
def test_a_set_of_others_is_never_replaced_by_the_shipped_one(option: str):
    assert (
        refused(f"data={option}") == "data.path: give a file of judged rows, a folder of them or the name of a data set on the hub."
    )


def test_a_test_instruction_that_is_too_long_is_said_before_training(folder: Path):
    Path("rows.jsonl").write_text(lines(GOOD))
    Path("asked.jsonl").write_text(lines({"instruction": "Say hello."}, {"instruction": "Say hello. " * 400}))
    said = refused("data.path=rows.jsonl", "data.test=asked.jsonl", "stages=[prepare,sample]")
    assert said.startswith("asked.jsonl:2: the prompt 'Below is an instruction")
    sampled = [
        "data.path=rows.jsonl",
        "data.test=asked.jsonl",
        "data.max_bad_rows=1",
        "stages=[prepare,sample]",
        "suite.max_new_tokens=3",
    ]
    run = alignlab.run([*PREPARE, *sampled])
    assert [json.loads(line)["prompt"] for line in (run.path / "samples.jsonl").read_text().splitlines()] == ["asked-0"]
    assert [json.loads(line)["row"] for line in (run.path / "rejected.jsonl").read_text().splitlines()] == ["asked.jsonl:2"]
    Path("asked.jsonl").write_text(lines({"instruction": "Say hello."}))
    alignlab.run([*PREPARE, *sampled, "overwrite=true"])
    assert not (run.path / "rejected.jsonl").exists()


def test_a_suite_of_another_kind_of_data():
    said = refused("suite=distribution")
    assert said.startswith("suite: the data gives Judged records, and suite Distribution evaluates TargetSet.")
