"""Files of rows: the same rows from every format, the right places, and what a damaged or mistaken file is answered with."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alignlab.data.files import find, labels, raw_rows
from alignlab.errors import MissingError, UserError

ROWS: list[dict[str, Any]] = [
    {"id": "é", "instruction": "日本\u2028語 😀", "input": "x\u0085y", "score": 3.0},
    {"id": "b", "instruction": 'quotes " and \\ and\nlines\tand nothing', "input": None, "score": None},
    {"id": "}", "instruction": "]", "input": "[{", "score": -0.5},
]


def refused(path: Path) -> str:
    """What reading a file to its end is answered with, without the folder: one or two lines."""
    with pytest.raises(UserError) as caught:
        for _ in raw_rows(path):
            pass
    assert caught.value.status == 2
    assert str(caught.value).count("\n") < 2
    return str(caught.value).replace(f"{path.parent}/", "")


def read(path: Path) -> list[tuple[int, Any]]:
    """Pairs of line or row number and row; of a row that is wrong, the message without its place."""
    found = []
    for place, row in raw_rows(path):
        assert place.startswith(f"{path}:")
        number = place.removeprefix(f"{path}:").split(":")[0]  # of several rows on a line, the column follows
        found.append((int(number), str(row).removeprefix(place) if isinstance(row, UserError) else row))
    return found


# ---- what can be read


def test_the_same_rows_from_every_format_and_encoding(tmp_path: Path):
    texts = {
        "lines.jsonl": [json.dumps(r) for r in ROWS],
        "unescaped.jsonl": [json.dumps(r, ensure_ascii=False) for r in ROWS],
        "blank.jsonl": ["", *(f"  {json.dumps(r)}\t\n" for r in ROWS), ""],
        "lines.json": [json.dumps(r, ensure_ascii=False) for r in ROWS],
        "array.json": [json.dumps(ROWS)],
        "array.jsonl": [json.dumps(ROWS)],
        "pretty.json": [" ", json.dumps(ROWS, indent=3, ensure_ascii=False), ""],
    }
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet", row_group_size=2)
    files = [tmp_path / "rows.parquet"]
    for name, lines in texts.items():
        for newline in ("\n", "\r\n"):
            for mark in ("", "\ufeff"):
                file = tmp_path / f"{len(newline)}{len(mark)}{name}"
                file.write_bytes((mark + "\n".join(lines).replace("\n", newline)).encode())
                files.append(file)
    for file in files:
        assert [row for _, row in read(file)] == ROWS, file


def test_places_are_lines_of_text_and_rows_of_parquet(tmp_path: Path):
    rows = [{"n": n, "text": "a\nb"} for n in range(3)]
    pretty = json.dumps(rows, indent=1)
    texts = {
        "a.json": (pretty, [2, 6, 10]),
        "b.json": ("\ufeff\n\n" + pretty.replace("\n", "\r\n"), [4, 8, 12]),
        "c.json": (json.dumps(rows), [1, 1, 1]),
        "d.json": (json.dumps(rows).replace("}, {", "},\n\n {"), [1, 3, 5]),
        "e.jsonl": ("\n\n".join(map(json.dumps, rows)), [1, 3, 5]),
    }
    for name, (text, lines) in texts.items():
        (tmp_path / name).write_bytes(text.encode())
        assert read(tmp_path / name) == list(zip(lines, rows, strict=True)), name
    assert [place.removeprefix(f"{tmp_path}/c.json:") for place, _ in raw_rows(tmp_path / "c.json")] == ["1", "1:28", "1:54"]
    pq.write_table(pa.Table.from_pylist(rows * 800), tmp_path / "f.parquet")
    assert [number for number, _ in read(tmp_path / "f.parquet")] == list(range(1, 2401))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(["a", "}", "]", ","]), below, max_size=3),
    max_leaves=6,
)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.text("ab{}[],\"'", max_size=3), VALUES, max_size=3), max_size=4), indent=st.none() | st.just(1)
)
@example(rows=[], indent=None)
@example(rows=[{}], indent=1)
def test_arrays_are_read_as_json_reads_them(tmp_path_factory, rows: list[dict[str, Any]], indent: int | None):
    file = tmp_path_factory.mktemp("arrays") / "rows.json"
    file.write_text(json.dumps(rows, indent=indent))
    assert [row for _, row in read(file)] == rows


def test_files_are_read_as_a_stream(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"n": 1}\n' + "not JSON\n" * 3)
    assert next(iter(raw_rows(file))) == (f"{file}:1", {"n": 1})


# ---- what cannot


@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_that_was_cut_off_anywhere_is_said_to_end(indent: int | None, tmp_path: Path):
    rows = [{"a": "x\\u00e9", "b": [{"start": 1}, None, True]}, {"a": -1.5e3, "b": []}]
    text, file = json.dumps(rows, indent=indent), tmp_path / "r.json"
    assert text.endswith("]")
    for end in range(1, len(text)):
        file.write_text(text[:end])
        message = refused(file)
        place, said = re.fullmatch(r"r\.json:(\d+)(?::\d+)?: not valid JSON(.*)", message, re.DOTALL).groups()  # type: ignore[union-attr]
        assert said.endswith(": the file ends in the middle of the list; fetch or write it again."), (text[:end], message)
        whole = text[:end].count("\n }" if indent else "]}")
        assert (f" after row {whole}:" in said) == (whole > 0), (text[:end], message)
        assert 1 <= int(place) <= text[:end].count("\n") + 1


def test_a_line_that_was_cut_off_anywhere_is_one_wrong_row(tmp_path: Path):
    row, file = {"a": "x\\u00e9", "b": [{"start": 1}, None, True]}, tmp_path / "r.jsonl"
    text = json.dumps(row)
    for end in range(1, len(text)):
        file.write_text(f"{text}\n{text[:end]}\n{text}\n")
        (_, first), (number, message), (_, last) = read(file)
        assert (first, number, last) == (row, 2, row)
        assert message.endswith("not valid JSON: the line ends in the middle of a row, which must be on one line."), message


PRETTY = json.dumps([{"n": 1, "t": "a"}, {"n": 2, "t": "b"}], indent=1)
HOW = "Rows are a JSON list [{...}, {...}], or JSON lines: one object {...} on each line."


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.json", PRETTY.replace("},", "}"), "r.json:6: not valid JSON after row 1: a comma is missing between two rows."),
        ("r.json", PRETTY[:-2] + ",\n]", "r.json:10: not valid JSON after row 2: the comma before the closing bracket must go."),
        ("r.json", PRETTY + "\n\nx", "r.json:12: not valid JSON after row 2: there is more after the closing bracket of the list."),
        ("r.json", PRETTY.replace('"b"', "b"), "r.json:8:8: not valid JSON after row 1: Expecting value."),
        ("r.json", "[\nrows]", "r.json:2:1: not valid JSON: a row must be one object {...}, not rows]."),
        (
            "r.json",
            json.dumps({"version": 1, "data": [{"n": 1}]}, indent=1),
            f"r.json: holds one object with version, data, not rows. Those under 'data' may be meant: save that list as a file.\n{HOW}",
        ),
        (
            "r.jsonl",
            json.dumps({"request": "a", "targets": ["b"]}, indent=1),
            f"r.jsonl: holds one object with request, targets, not rows. Is it data of another method?\n{HOW}",
        ),
        ("r.csv", "n,t\n1,a\n", "r.csv: not a file of rows. Give one as JSON, JSON lines or Parquet (*.json, *.jsonl, *.parquet)."),
        ("r.jsonl", '{"n": "caf\xe9"}', "r.jsonl: not UTF-8 text (byte 10). Save it as UTF-8."),
        ("r.json", "\xff\xfe[", "r.json: not UTF-8 text (byte 0). Save it as UTF-8."),
        (
            "r.parquet",
            "",
            "r.parquet: not Parquet that can be read: Parquet file size is 0 bytes. Fetch or write it again.",
        ),
    ],
)  # fmt: skip
def test_file_that_cannot_be_read(name: str, text: str, message: str, tmp_path: Path):
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    assert refused(tmp_path / name) == message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1, 2]", ": a row must be one object {...}, not [1, 2]."),
        ("5", ": a row must be one object {...}, not 5."),
        ('"' + "x" * 60 + '"', ': a row must be one object {...}, not "' + "x" * 36 + "...."),
        ("null", ": a row must be one object {...}, not null."),
        ("instruction,output", ":1: not valid JSON: a row must be one object {...}, not instruction,output."),
        ('{"n": one}', ":7: not valid JSON: Expecting value."),
        ('{"n": 1} {"n": 2}', ":10: not valid JSON: Extra data."),
        ('{"n": ' + "1" * 5000 + "}", ": not valid JSON: Exceeds the limit (4300 digits) for integer string conversion"),
        ('{"n": ' + "[" * 100000, ": not valid JSON: maximum recursion depth exceeded"),
    ],
)
def test_line_that_is_no_row_leaves_the_others(line: str, message: str, tmp_path: Path):
    file = tmp_path / "r.jsonl"
    file.write_text(f'{{"n": 1}}\n{line}\n{{"n": 3}}\n')
    (first, (number, wrong), last) = read(file)
    assert (first, number, last) == ((1, {"n": 1}), 2, (3, {"n": 3}))
    assert wrong.startswith(message)
    assert len(wrong) < 140
    file.write_text("[{},\n5,\n{}]")
    assert read(file) == [(1, {}), (2, ": a row must be one object {...}, not 5."), (3, {})]


def _cut(content: bytes) -> bytes:
    return content[:-30]


def _scratched(content: bytes) -> bytes:
    return content[:4] + b"\xff" * 60 + content[64:]


def _other(content: bytes) -> bytes:
    return b"instruction,output\n" * 9


@pytest.mark.parametrize("damage", [_cut, _scratched, _other])
def test_parquet_that_is_damaged(damage: Callable[[bytes], bytes], tmp_path: Path):
    file = tmp_path / "r.parquet"
    pq.write_table(pa.Table.from_pylist([{"instruction": f"Add {n}."} for n in range(500)]), file)
    file.write_bytes(damage(file.read_bytes()))
    message = refused(file)
    assert message.startswith("r.parquet: not Parquet that can be read: ")
    assert message.endswith(". Fetch or write it again.")


def test_file_that_is_gone(tmp_path: Path):
    assert refused(tmp_path / "r.json") == "r.json: cannot be read: No such file or directory."


# ---- what a path leads to


@pytest.mark.parametrize(
    ("root", "pattern", "message"),
    [
        ("rowz.jsonl", None, "data.path: there is no file or folder rowz.jsonl. Did you mean 'rows.jsonl'?"),
        ("empty/rows.jsonl", None, "data.path: there is no file or folder empty/rows.jsonl."),
        ("nowhere/rows.jsonl", None, "data.path: there is no file or folder nowhere/rows.jsonl."),
        ("nowhere", None, "data.path: there is no file or folder nowhere."),
        ("./owner/name", None, "data.path: there is no file or folder owner/name."),
        ("empty", None, "data.path: the folder empty holds no file of rows (*.json, *.jsonl, *.parquet)."),
        (".", "*.parquet", "data.path: the folder . holds no file that fits data.files=*.parquet."),
        (".", "/*.json", "data.files: /*.json is no pattern of files below a folder: "),
        (".", "a**", "data.files: a** is no pattern of files below a folder: "),
        ("own er/name", None, "data.path: there is no file or folder own er/name, and no data set on the hub can have this name."),
        ("alignlab:shipped/none", None, "data.path: there is no file or folder "),
    ],
)
def test_path_that_holds_no_rows(root: str, pattern: str | None, message: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("rows.jsonl").write_text("{}\n")
    with pytest.raises(UserError) as caught:
        find(root, "data.path", pattern, None)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert caught.value.status == 2


def test_data_set_on_the_hub_without_a_network(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read from the environment when it was imported
    with pytest.raises(MissingError) as caught:
        find("owner/name", "data.test", None, None)
    assert str(caught.value) == (
        "data.test: owner/name is neither a file, a folder, nor in the local cache, and the hub cannot be reached "
        "(HF_HUB_OFFLINE is set).\nFetch it on a machine with a network (hf download --repo-type dataset owner/name), "
        "or give a file: data.test=FILE."
    )


def test_labels_tell_files_apart():
    one, two, three = Path("a/rows.json"), Path("b/rows.json"), Path("b/more.json")
    assert labels([]) == {}
    assert labels([one]) == labels([one, one]) == {one: ""}
    assert labels([one, three]) == {one: "rows-", three: "more-"}
    assert labels([one, two, three]) == {one: "a-rows-", two: "b-rows-", three: "more-"}
    with pytest.raises(UserError, match=r"the rows of x/a/rows.json and y/a/rows.json would have the same names"):
        labels([Path("x/a/rows.json"), Path("y/a/rows.json")])
