"""Folders of prompt files: which prompts are trained on, tested, held out, and what a wrong path is answered with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from alignlab.data.sources import PromptFiles
from alignlab.errors import UserError


def prompt(path: Path, **fields: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"request": f"Say {path.stem}.", "targets": ["yes", "no"]} | fields, indent=1))
    return str(path)


def source(path: Path | list[str] | None = None, **fields: Any) -> PromptFiles:
    values: dict[str, Any] = dict.fromkeys(("train", "test", "only", "leave_out", "validation"))
    return PromptFiles(**({"path": str(path) if isinstance(path, Path) else path} | values | fields))


def names(records: Any) -> list[str]:
    return [record.name for record in records]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b", "a", "deep/c"):
        prompt(tmp_path / f"{name}.json")
    prompt(tmp_path / "held.json", split="test")
    prompt(tmp_path / "asked.json", split="test", targets=[])
    (tmp_path / "notes.txt").write_text("not a prompt")
    return tmp_path


def test_prompts_are_named_by_their_path_and_held_out_ones_are_not_trained_on(folder: Path):
    data = source(folder)
    assert names(data.training()) == ["a", "b", "deep/c"]
    assert names(data.testing()) == ["a", "asked", "b", "deep/c", "held"]
    assert [(n, record.name) for n, record in data.scoring()] == list(enumerate(["a", "asked", "b", "deep/c", "held"]))
    assert [p.request for p in data.prompts()][:2] == ["Say a.", "Say asked."]


def test_a_single_file(folder: Path):
    assert names(source(folder / "deep" / "c.json").training()) == ["c"]


def test_train_and_test_replace_the_path(folder: Path):
    data = source(folder / "nowhere", train=[str(folder / "a.json"), str(folder / "deep")], test=str(folder / "b.json"))
    assert names(data.training()) == ["a", "deep/c"]
    assert names(data.testing()) == ["b"]


def test_equal_names_of_two_folders_are_told_apart(tmp_path: Path):
    files = [prompt(tmp_path / "one" / "w.json"), prompt(tmp_path / "two" / "w.json")]
    assert names(source(train=files).training()) == ["w", "two/w"]
    more = prompt(tmp_path / "three" / "two" / "w.json")
    with pytest.raises(UserError, match="have the same name; rename one"):
        list(source(train=[*files, more]).training())


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    for name in ("fruits/w1", "fruits/w2", "numbers/even/w1", "numbers/odd/w1", "names/w1"):
        prompt(tmp_path / "tasks" / f"{name}.json")
    prompt(tmp_path / "unseen" / "fruits" / "w3.json", split="test")
    return tmp_path


def test_the_first_folder_of_a_name_is_the_task(tasks: Path):
    records = list(source(tasks / "tasks").training())
    assert [(r.name, r.task) for r in records][::2] == [
        ("fruits/w1", "fruits"),
        ("names/w1", "names"),
        ("numbers/odd/w1", "numbers"),
    ]
    assert {record.task for record in source(tasks / "tasks" / "fruits").training()} == {""}


def test_several_folders_are_tasks_of_their_own(tasks: Path):
    data = source(path=[str(tasks / "tasks" / "fruits"), str(tasks / "unseen" / "fruits"), str(tasks / "tasks" / "names")])
    assert names(data.training()) == ["fruits/w1", "fruits/w2", "names/w1"]
    assert names(data.testing()) == ["fruits/w1", "fruits/w2", "fruits/w3", "names/w1"]


def test_tasks_to_train_on_and_tasks_left_out(tasks: Path):
    everything = names(source(tasks / "tasks").testing())
    for chosen, trained in (
        ({"only": "fruits"}, ["fruits/w1", "fruits/w2"]),
        ({"only": ["fruits", "names"]}, ["fruits/w1", "fruits/w2", "names/w1"]),
        ({"leave_out": "numbers"}, ["fruits/w1", "fruits/w2", "names/w1"]),
        ({"leave_out": ["fruits", "names"]}, ["numbers/even/w1", "numbers/odd/w1"]),
    ):
        data = source(tasks / "tasks", **chosen)
        assert data.digest() == source(tasks / "tasks").digest()
        assert names(data.training()) == trained
        assert names(data.testing()) == everything
    assert names(source(tasks / "tasks", leave_out="numbers", validation=0.4).validation_records()) == ["fruits/w2"]


def test_a_task_that_does_not_exist(tasks: Path):
    with pytest.raises(UserError) as caught:
        source(tasks / "tasks", leave_out="fruit").digest()
    assert str(caught.value) == (
        "data.leave_out: 'fruit' is no task of these prompts (fruits, names, numbers). Did you mean 'fruits'?"
    )
    with pytest.raises(UserError, match="none, as they lie in one folder"):
        source(tasks / "tasks" / "fruits", only="fruits").digest()
    with pytest.raises(ValueError, match="leave_out: cannot be given together with data.only"):
        source(tasks / "tasks", only="fruits", leave_out="names")


def test_validation_is_a_fixed_share_or_a_path(folder: Path):
    data = source(folder, validation=0.34)
    assert len(data.validation_records()) == 1
    assert sorted(names(data.validation_records()) + names(data.training())) == ["a", "b", "deep/c"]
    apart = source(folder / "a.json", validation=str(folder / "b.json"))
    assert names(apart.validation_records()) == ["b"]
    assert names(apart.training()) == ["a"]
    assert source(folder).validation_records() == []


def test_digest_follows_names_and_contents(folder: Path):
    before = source(folder).digest()
    assert source(folder).digest() == before
    (folder / "a.json").rename(folder / "z.json")
    renamed = source(folder).digest()
    prompt(folder / "z.json", request="Other")
    assert len({before, renamed, source(folder).digest()}) == 3


def test_files_may_lie_below_the_home_folder(folder: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert names(source(Path("~") / folder.name / "a.json").training()) == ["a"]


@pytest.mark.parametrize("validation", [0, 1, 1.0, 0.0, -0.5, True, ["a"]])
def test_validation_that_is_neither_share_nor_path(validation: Any, tmp_path: Path):
    with pytest.raises(ValueError, match="validation: must be a share between 0 and 1 or a path"):
        source(tmp_path, validation=validation)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": "folder/nowhere.json"}, "data.path: there is no file or folder folder/nowhere.json."),
        ({"path": "foldr"}, "data.path: there is no file or folder foldr. Did you mean 'folder'?"),
        ({"train": ["folder", "nowhere"]}, "data.train: there is no file or folder nowhere."),
        ({"train": ["folder"], "test": ["folder/bb.json"]}, "data.test: there is no file or folder folder/bb.json."),
        ({"path": "folder", "validation": "nowhere"}, "data.validation: there is no file or folder nowhere."),
        ({"path": "empty"}, "data.path: the folder empty holds no prompt file (*.json), however deep."),
        ({"path": "alignlab:shipped/none"}, "data.path: there is no file or folder "),
    ],
)
def test_path_that_holds_nothing(fields: dict[str, Any], message: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prompt(Path("folder/b.json"))
    Path("empty").mkdir()
    with pytest.raises(UserError) as caught:
        source(**fields).digest()
    assert str(caught.value).startswith(message)
    assert str(caught.value).count("\n") == 0


def test_a_prompt_to_train_on_needs_targets(tmp_path: Path):
    file = prompt(tmp_path / "a.json", targets=[])
    with pytest.raises(UserError) as caught:
        list(source(tmp_path).training())
    assert str(caught.value).startswith(f"{file}:3:targets: a prompt to train on needs at least one target.")
    assert names(source(tmp_path).testing()) == ["a"]


def test_a_folder_with_the_name_of_a_file_is_no_prompt(tmp_path: Path):
    prompt(tmp_path / "a.json")
    (tmp_path / "b.json").mkdir()
    assert names(source(tmp_path).training()) == ["a"]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    os.symlink(tmp_path / "gone", tmp_path / "a.json")
    with pytest.raises(UserError, match=r"a\.json: cannot be read: No such file"):
        source(tmp_path).digest()
