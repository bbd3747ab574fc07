"""plan=true: what it says, and that it leaves nothing and needs no weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from alignlab.__main__ import command
from alignlab.paths import resolve

TINY = Path(resolve("alignlab:models/tiny"))


def plan(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert command(["plan=true", *words]) == status
    said = capsys.readouterr()
    assert all(len(line) <= 80 for line in said.out.splitlines())
    return " ".join(said.out.split()), said.err


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_plan_of_a_folder_without_weights_leaves_nothing(here: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(TINY, "model", ignore=shutil.ignore_patterns("*.safetensors"))
    words = ("method=cut", "model=local", "model.path=model", "hardware=cpu", "train.max_steps=3")
    out, _ = plan(capsys, *words)
    assert [path.name for path in here.iterdir()] == ["model"]
    assert "400 records, 400 rows" in out
    assert "3 in 0.06 epoch(s), 8 of 400 examples each, on 1 rank(s)" in out
    assert "98,304 trained of 1,344,640 (7.31 %)" in out
    assert "fits: " in out
    assert "of training, by a few layers timed here" in out
    assert command([*words, "run_dir=run", "stages=[prepare]"]) == 2  # a run needs them
    assert "has no *.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("method=dpo", "hardware=gpu8"), ["on 8 rank(s)", "there is no such device here", "not measured"]),
        (("method=delia",), ["1000 answers of at most 80 tokens are not asked of the model", "own answers stand in"]),
        (("stages=[prepare]",), ["none: stages has no train"]),
    ],
)
def test_plan_without_what_lacks(words: tuple[str, ...], says: list[str], here: Path, capsys: pytest.CaptureFixture[str]):
    out, _ = plan(capsys, *words)
    assert all(word in out for word in says), out
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("model=llama2-13b",), 3, "neither a folder nor in the local cache"),
        (("method=cut", "data.path=none.jsonl"), 2, "data.path"),
        (("train.best=validation_loss",), 2, "validation_loss is never measured"),
    ],
)
def test_plan_of_what_cannot_be(words: tuple[str, ...], status: int, says: str, here: Path, capsys: pytest.CaptureFixture[str]):
    _, error = plan(capsys, *words, status=status)
    assert says in error
    assert not list(here.iterdir())
