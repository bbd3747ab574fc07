"""Judged rows: what each becomes, which are trained on, tested and held out, and how they are numbered and named."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab.compose import compose
from alignlab.config import check
from alignlab.data.judged import JudgedRows
from alignlab.errors import UserError
from alignlab.paths import resolve
from alignlab.records import Fault, Judged


def write(path: Path, *rows: dict[str, Any]) -> str:
    """Rows as the file's name says; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=2)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def row(output: str = "3", judgment: str | None = "Wrong.", **fields: Any) -> dict[str, Any]:
    return {"instruction": "Add.", "output": output, "judgment": judgment} | fields


def source(path: Any, **fields: Any) -> JudgedRows:
    values: dict[str, Any] = dict.fromkeys(("test", "files", "revision", "convert", "downsample", "validation"))
    values |= {"columns": {}, "score_threshold": 7.0, "scores": (0.0, 10.0), "test_rows": 200, "max_bad_rows": 0, "seed": 0}
    return JudgedRows(**({"path": path if isinstance(path, list) else str(path)} | values | fields))


def names(records: Any) -> list[str]:
    return [record.name for record in records]


def outputs(records: Any) -> list[str]:
    return [record.output for record in records]


# ---- one row


def test_every_field_of_a_row(tmp_path: Path):
    full = {
        "id": 17,
        "instruction": "Say it in French.",
        "input": "Good morning, café",
        "output": "Bonne nuit",
        "judgment": "That is a good night.",
        "score": 2,
        "i_ans": "Bonjour",
        "reference": "Bonjour",
        "wrong": [{"start": 0, "end": 5, "right": "Bon"}, {"start": 6, "end": 10}],
        "task": "french",
        "dataset": "hellos",
        "split": "test",
        "judge": "passed over",
    }
    file = write(tmp_path / "rows.jsonl", full)
    (number, record), *more = source(file).scoring()
    assert (number, more) == (0, [])
    assert record == Judged(
        name="17",
        instruction="Say it in French.\nGood morning, café",
        output="Bonne nuit",
        judgment="That is a good night.",
        score=2.0,
        refined="Bonjour",
        reference="Bonjour",
        faults=(Fault(0, 5, "Bon"), Fault(6, 10, None)),
        task="french",
        dataset="hellos",
        held_out=True,
    )
    assert record.where == f"{file}:1"
    assert not record.satisfactory


def test_absent_and_null_are_the_same(tmp_path: Path):
    least = {"instruction": "Add.", "output": "3", "judgment": None}
    optional = dict.fromkeys(("input", "score", "i_ans", "reference", "wrong", "id", "task", "dataset", "split"))
    first, second = source(write(tmp_path / "rows.jsonl", least, least | optional)).training()
    assert asdict(first) | {"name": "", "where": ""} == asdict(second) | {"name": "", "where": ""}
    assert (first.name, second.name) == ("0", "1")
    assert first == Judged("0", "Add.", "3", None, None, None, None, None, "", "", held_out=False)


def test_only_an_input_that_is_not_empty_is_joined(tmp_path: Path):
    file = write(tmp_path / "rows.jsonl", row(input=""), row(input="1 and 1"), row(input="a\nb"))
    assert [r.instruction for r in source(file).training()] == ["Add.", "Add.\n1 and 1", "Add.\na\nb"]


def test_an_empty_list_of_faults_is_knowledge_and_null_is_none(tmp_path: Path):
    file = write(tmp_path / "rows.jsonl", row(wrong=[]), row(wrong=None), row(wrong=[{"start": 0, "end": 1, "right": ""}]))
    assert [r.faults for r in source(file).training()] == [(), None, (Fault(0, 1, ""),)]


@pytest.mark.parametrize(
    ("judgment", "score", "satisfactory"),
    [
        (None, None, True),
        (None, 1, True),
        ("Wrong.", None, False),
        ("Wrong.", 6.999, False),
        ("Wrong.", 7, True),
        ("Perfect.", 10, True),
        ("", 7, True),
    ],
)
def test_judgment_and_score_decide_what_is_satisfactory(judgment: str | None, score: Any, satisfactory: bool, tmp_path: Path):
    (record,) = source(write(tmp_path / "rows.jsonl", row(judgment=judgment, score=score))).training()
    assert record.satisfactory == satisfactory
    assert record.judgment == (None if satisfactory else judgment)
    assert record.score == score


def test_threshold_and_range_of_scores_are_settings(tmp_path: Path):
    file = write(tmp_path / "rows.jsonl", row(score=0.5), row(score=-1))
    data = source(file, score_threshold=0.5, scores=(-1.0, 1.0))
    assert [r.satisfactory for r in data.training()] == [True, False]
    with pytest.raises(UserError) as caught:
        source(file, scores=(0.0, 1.0)).digest()
    assert str(caught.value) == f"{file}:2:score: -1 is out of range; data.scores says 0 to 1."


def test_columns_are_renamed_or_absent(tmp_path: Path):
    theirs = {"prompt": "Add.", "answer": "3", "critique": "Wrong.", "score": 9, "id": "x", "output": "no response of ours"}
    columns = {"instruction": "prompt", "output": "answer", "judgment": "critique", "score": None, "id": None}
    (record,) = source(write(tmp_path / "rows.jsonl", theirs), columns=columns).training()
    assert (record.name, record.instruction, record.output, record.judgment, record.score) == ("0", "Add.", "3", "Wrong.", None)
    (praised,) = source(write(tmp_path / "plain.jsonl", row()), columns={"judgment": None}).training()
    assert praised.satisfactory


# ---- files


def test_folder_is_read_in_sorted_order_and_a_glob_chooses(tmp_path: Path):
    write(tmp_path / "b.jsonl", row("b"))
    write(tmp_path / "a" / "z.json", row("z"))
    write(tmp_path / "c.parquet", row("c"))
    (tmp_path / "notes.txt").write_text("no rows")
    (tmp_path / "d.json").mkdir()
    assert outputs(source(tmp_path).training()) == ["z", "b", "c"]
    assert names(source(tmp_path).training()) == ["z-0", "b-0", "c-0"]
    assert outputs(source(tmp_path, files="*.jsonl").training()) == ["b"]
    assert names(source(tmp_path, files="*.jsonl").training()) == ["0"]
    assert outputs(source(tmp_path, files="**/*.json").training()) == ["z"]
    several = [str(tmp_path / "c.parquet"), str(tmp_path), str(tmp_path / "b.jsonl")]
    assert outputs(source(several).training()) == ["c", "z", "b"]


def test_home_folder_and_the_installed_package_are_found(tmp_path: Path, monkeypatch):
    write(tmp_path / "rows.jsonl", row())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(list(source("~/rows.jsonl").training())) == 1
    shipped = source("alignlab:shipped/judged")
    assert len(list(shipped.training())) == 400
    assert len(list(shipped.testing())) == 240
    assert all(r.where.startswith(resolve("alignlab:shipped/judged")) for r in shipped.testing())


# ---- numbers and names


def test_scoring_numbers_rows_over_the_files_with_the_bad_ones_counted(tmp_path: Path):
    write(tmp_path / "rows" / "a.jsonl", row("a0"), row(judgment=5), row("a2", split="test"))
    (tmp_path / "rows" / "b.jsonl").write_text(f"{json.dumps(row('b0'))}\n\nnot JSON\n{json.dumps(row('b2'))}\n")
    write(tmp_path / "more.json", {"instruction": "Only sampled."}, row(id=5), row(split="dev"), row(id="x"))
    data = source(tmp_path / "rows", test=str(tmp_path / "more.json"), max_bad_rows=3)
    numbered = [(n, r.name) for n, r in data.scoring()]
    assert numbered == [(0, "a-0"), (2, "a-2"), (3, "b-0"), (5, "b-2"), (6, "more-0"), (7, "more-5"), (9, "more-x")]
    assert names(data.testing()) == ["a-2", "more-0", "more-5", "more-x"]
    assert names(data.training()) == ["a-0", "b-0", "b-2"]
    assert [place.rpartition("/")[2] for place in data.rejected] == ["a.jsonl:2", "b.jsonl:3", "more.json:11"]


def test_names_are_unique_over_path_and_test(tmp_path: Path):
    """Samples and details are kept by name: the held-out rows of one file must not be taken for those of another."""
    one = write(tmp_path / "one" / "rows.jsonl", row(id="x"), row(split="test"), row(split="test"))
    two = write(tmp_path / "two" / "rows.jsonl", row(id="x"), row(), row())
    data = source(one, test=two)
    assert names(data.testing()) == ["one-rows-1", "one-rows-2", "two-rows-x", "two-rows-1", "two-rows-2"]
    assert [r.name for _, r in data.scoring()] == ["one-rows-x", *names(data.testing())]
    assert [(p.name, p.request, p.dataset) for p in data.prompts()] == [(name, "Add.", "") for name in names(data.testing())]
    assert names(source(one, validation=two).testing()) == ["1", "2"], "validation gives no other names, so no other samples"
    assert names(source(one, test=one).training()) == ["x"]


def test_files_of_which_rows_would_have_the_same_names(tmp_path: Path):
    write(tmp_path / "a" / "rows.jsonl", row())
    write(tmp_path / "a" / "rows.json", row())
    with pytest.raises(UserError) as caught:
        source(tmp_path).digest()
    a, b = tmp_path / "a" / "rows.json", tmp_path / "a" / "rows.jsonl"
    assert str(caught.value) == f"data: the rows of {a} and {b} would have the same names. Rename one of the files."


# ---- who is trained on, tested, held out


def test_held_out_rows_and_those_of_test_are_never_trained_on(tmp_path: Path):
    file = write(tmp_path / "rows.jsonl", row("a"), row("b", split="test"), row("c", split="train"), row("d", split="both"))
    assert outputs(source(file).training()) == ["a", "c", "d"]
    assert outputs(source(file).testing()) == ["b"]
    test = write(tmp_path / "test.jsonl", row("t", split="train"), row("", None))
    data = source(file, test=test)
    assert outputs(data.training()) == ["a", "c", "d"]
    assert outputs(data.testing()) == ["b", "t", ""]
    assert {r.held_out for r in data.testing()} == {True}
    assert {r.held_out for r in data.training()} == {False}


def test_first_rows_are_tested_where_none_is_held_out(tmp_path: Path):
    file = write(tmp_path / "rows.jsonl", *(row(str(n)) for n in range(5)))
    for test_rows, expected in ((0, 0), (2, 2), (9, 5)):
        data = source(file, test_rows=test_rows)
        assert outputs(data.testing()) == outputs(data.training())[:expected]
        assert len(list(data.training())) == 5
        assert len(data.prompts()) == expected


def test_validation_is_a_fixed_share_or_a_path(tmp_path: Path):
    rows = [row(str(n), None if n % 3 else "Wrong.") for n in range(30)]
    file = write(tmp_path / "rows.jsonl", *rows, row("held", split="test"))
    data = source(file, validation=0.2)
    held, trained = outputs(data.validation_records()), outputs(data.training())
    assert len(held) == 6
    assert sorted(held + trained, key=int) == [str(n) for n in range(30)]
    assert held == sorted(held, key=int)
    assert outputs(source(file, validation=0.2, seed=9).validation_records()) == held
    assert len(source(file, validation=0.001).validation_records()) == 1
    assert source(file).validation_records() == []
    apart = source(file, validation=write(tmp_path / "v.jsonl", row("v"), row("w", split="test")))
    assert outputs(apart.validation_records()) == ["v", "w"]
    assert len(list(apart.training())) == 30


def test_downsample_counts_what_validation_leaves(tmp_path: Path):
    file = write(tmp_path / "rows.jsonl", *(row(str(n), None if n % 2 else "Wrong.") for n in range(40)))
    data = source(file, validation=0.5, downsample=0.5)
    trained = list(data.training())
    judged = sum(not r.satisfactory for r in trained)
    assert judged == 20 - sum(not r.satisfactory for r in data.validation_records())
    assert len(trained) - judged == int(0.5 * judged)
    assert outputs(data.validation_records()) == outputs(source(file, validation=0.5).validation_records())


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["judged", "good", "held"]), min_size=1, max_size=25),
    share=st.floats(0, 3, allow_nan=False),
    seed=st.integers(0, 2**31),
)
def test_downsample_keeps_judged_rows_and_as_many_good_ones_as_asked(tmp_path_factory, kinds: list[str], share: float, seed: int):
    folder = tmp_path_factory.mktemp("downsample")
    split = {"held": "test"}
    rows = [row(str(n), "No." if kind == "judged" else None, split=split.get(kind, "both")) for n, kind in enumerate(kinds)]
    data = source(write(folder / "rows.jsonl", *rows), downsample=share, seed=seed)
    kept = [int(r.output) for r in data.training()]
    judged = {n for n, kind in enumerate(kinds) if kind == "judged"}
    good = {n for n, kind in enumerate(kinds) if kind == "good"}
    assert judged <= set(kept) <= judged | good
    assert len(set(kept) & good) == min(len(good), int(share * len(judged)))
    assert kept == sorted(kept)
    other = [r | {"instruction": f"Other {n}", "output": r["output"] + "0", "id": f"x{n}"} for n, r in enumerate(rows)]
    again = source(write(folder / "other.json", *other), downsample=share, seed=seed)
    assert [int(r.output) // 10 for r in again.training()] == kept, "which ones stay follows from the seed, not from the words"


def test_downsample_follows_the_seed(tmp_path: Path):
    file = write(tmp_path / "rows.jsonl", *(row(str(n), "No." if n < 10 else None) for n in range(60)))
    drawn = {tuple(outputs(source(file, downsample=0.5, seed=seed).training())) for seed in range(8)}
    assert len(drawn) == 8
    assert {len(kept) for kept in drawn} == {15}
    assert len({r for kept in drawn for r in kept}) > 25


# ---- rows that are passed over


@pytest.fixture
def flawed(tmp_path: Path) -> str:
    rows = [row(str(n), None if n % 2 else "Wrong.") for n in range(12)]
    rows[3] |= {"judgment": 5}
    rows[4] |= {"output": ""}
    return write(tmp_path / "rows.jsonl", *rows)


def test_bad_rows_are_noted_with_reasons_up_to_a_limit(flawed: str):
    data = source(flawed, max_bad_rows=2)
    assert data.lenient
    assert outputs(data.training()) == ["0", "1", "2", "5", "6", "7", "8", "9", "10", "11"]
    reasons = {
        f"{flawed}:4": f"{flawed}:4:judgment: must be a text that is not empty, or null where the response is satisfactory, not 5.",
        f"{flawed}:5": f'{flawed}:5:output: missing or empty. Give a response, or "split": "test" where none is to be trained on.',
    }
    assert data.rejected == reasons
    with pytest.raises(UserError) as caught:
        list(source(flawed, max_bad_rows=1).training())
    assert str(caught.value) == f"data.max_bad_rows is 1, and more rows are wrong. The next one:\n{reasons[f'{flawed}:5']}"
    assert not source(flawed).lenient
    with pytest.raises(UserError) as caught:
        source(flawed).digest()
    assert str(caught.value) == reasons[f"{flawed}:4"]


def test_every_pass_gives_the_same_rows_also_after_rejections(flawed: str):
    """A row that is found out late goes, and nothing else changes: a fresh process draws the same rows."""
    options: dict[str, Any] = {"max_bad_rows": 4, "downsample": 0.5, "validation": 0.2, "test_rows": 4}
    data = source(flawed, **options)
    before = {name: list(getattr(data, name)()) for name in ("training", "validation_records", "testing")}
    assert before == {name: list(getattr(data, name)()) for name in before}
    for records in (before["training"], before["validation_records"]):
        data.reject(records[0], UserError("too long"))
    gone = {records[0].where for records in (before["training"], before["validation_records"])}
    late = source(flawed, **options)
    for record in [r for _, r in late.scoring() if r.where in gone]:  # before anything is drawn
        late.reject(record, UserError("too long"))
    scored = [f"{flawed}:{line}" for line in range(1, 13) if line != 4]
    for again in (data, data, late):
        kept = {name: [r for r in records if r.where not in gone] for name, records in before.items()}
        assert {name: list(getattr(again, name)()) for name in before} == kept
        assert [r.where for _, r in again.scoring()] == [where for where in scored if where not in gone]
        assert [p.name for p in again.prompts()] == names(before["testing"]), "an instruction can be sampled from all the same"
        assert len(again.rejected) == 4


def test_digest_follows_names_and_contents_and_is_taken_once(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    write(file, row())
    data = source(file)
    before = data.digest()
    assert source(file).digest() == before
    write(file, row("4"))
    changed = source(file).digest()
    file.rename(tmp_path / "other.jsonl")
    renamed = source(tmp_path / "other.jsonl").digest()
    tested = source(tmp_path / "other.jsonl", test=write(tmp_path / "test.jsonl", row())).digest()
    assert len({before, changed, renamed, tested}) == 4
    assert data.digest() == before


def test_the_option_of_the_command_line_is_this_source(tmp_path: Path):
    file = write(tmp_path / "rows.jsonl", {"instruction": "Add.", "answer": "3", "judgment": "No."})
    data = check(compose(["method=cut", f"data.path={file}", "data.columns.output=answer", "seed=5"])[0]).data
    assert isinstance(data, JudgedRows)
    assert (data.seed, data.score_threshold, data.downsample, data.max_bad_rows) == (5, 7, None, 0)
    assert outputs(data.training()) == ["3"]
