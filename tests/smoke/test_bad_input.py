"""Every kind of bad input through the real command: exit status, one to three lines that say what to do, nothing written over."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from alignlab.compose import groups
from alignlab.paths import resolve

Command = Callable[..., subprocess.CompletedProcess[str]]
Done = subprocess.CompletedProcess[str]

TINY = Path(resolve("alignlab:models/tiny"))
PREPARE = ("stages=[prepare]", "run_dir=out")


def said(done: Done, status: int, *words: str) -> str:
    """What the command said at its end, after it is known to have kept to the form."""
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
    _, mark, message = done.stderr.rpartition("alignlab: ")
    assert mark, done.stderr
    assert done.stderr.count("alignlab: ") == 1
    assert 1 <= len(message.splitlines()) <= 3, message
    for word in words:
        assert word in message, message
    return message


def at_once(done: Done, status: int, *words: str) -> None:
    """The same, and nothing else was said."""
    assert done.stderr.startswith("alignlab: ")
    said(done, status, *words)


def prompt(path: Path, content: str | None = None, **fields: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        content if content is not None else json.dumps({"request": "Say yes or no.", "targets": ["yes", "no"]} | fields)
    )
    return path


# ---- the command line and the configuration: answered before anything is loaded, and without a trace on the disk


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["method.gama=1"], ["method.gama: no such key", "'method.gamma'"]),
        (["+train.lora.rnk=1"], ["train.lora.rnk: no such key", "'train.lora.rank'"]),
        (["++sed=1"], ["sed: no such key", "'seed'"]),
        (["method=difuse"], ["method=difuse: no such option", "'diffuse'", "There are: "]),
        (["data=numbrs"], ["data=numbrs: no such option", "'numbers'", "fruits"]),
        (["metod=cut"], ["metod: no such key", "'method'"]),
        (["recipe=none-such"], ["recipe=none-such: no such option", "There are: "]),
        (["train.lr=abc"], ["train.lr: must be a number, not 'abc'"]),
        (["train.epochs=1.5"], ["train.epochs: must be a whole number, not 1.5"]),
        (["train.betas=[2,0]"], ["train.betas: must be two numbers in [0, 1), not [2.0, 0.0]"]),
        (["train.lora.rank=0"], ["train.lora.rank: must be at least 1, not 0"]),
        (["method.prefixes=all"], ["method.prefixes: must be one of draw, average, not 'all'"]),
        (["sampler.rows=0"], ["sampler.rows: must be at least 1, not 0"]),
        (["overwrite=maybe"], ["overwrite: must be true or false, not 'maybe'"]),
        (["model=local"], ["model.path: needs a value; give model.path=..."]),
        (["method=null"], ["method=null: not the name of an option"]),
        (["foo"], ["foo: cannot be read as KEY=VALUE"]),
        (["a=["], ["a=[: cannot be read as KEY=VALUE", "quotes"]),
        (["--model=x"], ["unrecognized arguments: --model=x", "without dashes"]),
        (["seed=0,1"], ["seed=0,1: the comma is ambiguous", "-m seed=0,1"]),
        (["stages=[trian]"], ["stages: 'trian' is not a stage", "'train'"]),
        (["data.path=nowhere"], ["data.path: there is no file or folder nowhere"]),
        (["method._target_=no_such_package.Method"], ["method._target_", "cannot be imported", "no_such_package"]),
        (["method._target_=alignlab.data.sources.PromptFiles"], ["method._target_", "lacks accepts"]),
        (["suite._target_=os.getcwd"], ["suite._target_: os.getcwd is not a dataclass"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and "=" in value[-1] else "",
)
def test_command_line_that_is_wrong(arguments: list[str], words: list[str], cli: Command, tmp_path: Path):
    at_once(cli(*arguments), 2, *words)
    assert not list(tmp_path.rglob("config.yaml")), "a refused command leaves no run behind"


def test_every_refused_run_of_a_sweep_is_named(cli: Command, tmp_path: Path):
    done = cli("-m", "seed=0,1", "train.lr=abc")
    assert done.returncode == 2
    assert all(line.startswith("alignlab: ") for line in done.stderr.splitlines())
    for seed in (0, 1):
        assert f"alignlab: seed={seed} train.lr=abc: train.lr: must be a number, not 'abc'." in done.stderr
    assert not list(tmp_path.rglob("config.yaml"))


def test_configuration_is_refused_before_torch_is_loaded(cli: Command):
    for argument in ("+method.gama=1", "sampler.rows=0", "suite.top_p=7", "data.path=nowhere"):
        done = cli(argument, PYTHONPROFILEIMPORTTIME="1")
        loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
        assert "alignlab.compose" in loaded
        assert not loaded & {"torch", "transformers", "peft"}, argument


def test_traceback_is_shown_when_asked_for(cli: Command):
    done = cli("train.lr=abc", "debug.traceback=true")
    assert done.returncode == 2
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert done.stderr.splitlines()[-1] == "alignlab: train.lr: must be a number, not 'abc'."


def test_source_of_another_kind_than_the_method_reads(cli: Command, tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom alignlab.data.sources import PromptFiles\nfrom alignlab.records import Prompt\n"
        "@dataclass\nclass Other(PromptFiles):\n    yields = Prompt\n"
    )
    at_once(cli("data._target_=mine.Other"), 2, "data: this source gives Prompt records", "trains on TargetSet", "Choose another")


def test_help_explains_the_groups_and_fits_a_terminal(cli: Command):
    started = time.monotonic()
    done = cli("--help")
    assert done.returncode == 0
    assert time.monotonic() - started < 6  # a second or less on a machine of its own
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    for group in (name for name, options in groups().items() if options):
        assert any(f"  {group} " in line for line in lines), group
    assert sum(line.startswith("  python -m alignlab") for line in lines) >= 4
    assert "diffuse" in done.stdout


def test_configuration_is_printed_and_not_run(cli: Command, tmp_path: Path):
    done = cli("--cfg", "job", "train.lr=0.5")
    assert done.returncode == 0
    assert "  lr: 0.5\n" in done.stdout
    assert "hydra:" not in done.stdout
    assert not list(tmp_path.iterdir())
    at_once(cli("--cfg", "job", "train.lrr=0.5"), 2, "train.lrr: no such key", "'train.lr'")


def test_version_is_our_own(cli: Command):
    assert cli("--version").stdout == f"alignlab {version('alignlab')}\n"


# ---- the run folder


def test_run_dir_that_cannot_be_used(cli: Command, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    at_once(cli("run_dir=file"), 2, "run_dir: file is a file", "choose another run_dir")
    at_once(cli("run_dir=full"), 2, "run_dir: full is not empty and is no run of alignlab", "Choose another")
    at_once(cli("run_dir=full", "overwrite=true"), 2, "run_dir: full is not empty and is no run of alignlab")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.yaml").write_text("theirs: 1")
    at_once(cli("run_dir=theirs", "overwrite=true"), 2, "run_dir: theirs has a config.yaml that alignlab did not write")
    assert (tmp_path / "theirs" / "config.yaml").read_text() == "theirs: 1"
    at_once(cli("run_dir=file/below"), 3, "run_dir: file/below cannot be written", "Choose another")
    assert (tmp_path / "file").read_text() == "mine"
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_run_folder_is_bound_to_its_configuration(cli: Command, tmp_path: Path):
    out = tmp_path / "out"
    lacking = cli("stages=[train]", "run_dir=out")
    said(lacking, 2, "stages: train reads what prepare writes", "stages=[prepare,train]")
    assert cli(*PREPARE).returncode == 0
    (out / "kept").write_text("days of work")

    def kept() -> dict[Path, bytes]:  # the lock says who worked there last
        return {p: p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file() and p.name != "run.lock"}

    before = kept()
    other = ("run_dir: out holds a run with another configuration", "overwrite=true")
    at_once(cli(*PREPARE, "seed=1"), 2, *other, "seed is 0 there and 1 now")
    at_once(cli("stages=[train]", "run_dir=out", "train.lr=9"), 2, *other, "train.lr is 0.")
    assert kept() == before
    done = cli(*PREPARE, "seed=1", "overwrite=true")
    assert done.returncode == 0, done.stderr
    assert "seed: 1" in (out / "config.yaml").read_text()
    assert not (out / "kept").exists()


# ---- data


def test_data_folder_without_prompts(cli: Command, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    at_once(cli("data.path=empty"), 2, "data.path: the folder empty holds no prompt file (*.json)")
    (tmp_path / "empty" / "rows.jsonl").write_text('{"request": "a"}\n')
    at_once(cli("data.path=empty"), 2, "data.path: the folder empty holds no prompt file (*.json)")
    assert not (tmp_path / "runs").exists()


ALPACA = '[{"instruction": "Add.", "input": "1 1", "output": "3", "judgment": "Wrong."}]'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"request": "a",\n "targets": [}', ["w.json:2:14: not valid JSON"]),
        ('{"targets": ["a"]}', ["w.json:request: missing: the user turn, a string."]),
        ('{"request": "a",\n "targets": ["a"],\n "split": "dev"}', ['w.json:3:split: must be "train", "test" or "both".']),
        ('{"request": "a", "targets": ["a"], "weights": [NaN]}', ["w.json:1:weights[0]: nan is not a weight"]),
        ('{"request": "a", "targets": ["a", "a"]}', ["w.json:1:targets[1]: repeats targets[0], 'a'"]),
        (
            '{"request": "a", "targets": ["1", "10"], "eos": false}',
            ["'1' begins '10'", "nothing tells them apart", "Set eos to true"],
        ),
        (ALPACA, ["w.json: holds a list, not a prompt file", "Choose a method that reads this kind of data"]),
        ('{"request": "a", "targets": ["b"]}\n{"request": "b"}', ["w.json:2:1: not valid JSON", "JSON lines are not read here"]),
    ],
    ids=["broken", "missing-field", "mistyped-field", "weights", "repeats", "begins", "another-kind", "json-lines"],
)
def test_prompt_file_that_is_wrong(content: str, words: list[str], cli: Command, tmp_path: Path):
    file = prompt(tmp_path / "prompts" / "w.json", content)
    at_once(cli("run_dir=out", "data.path=prompts"), 2, *words)
    assert file.read_text() == content
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"targets": []}, ["w.json:1:targets: a prompt to train on needs at least one target", '"split": "test"']),
        ({"targets": ["a", "word " * 600]}, ["w.json:1:targets[1]: prompt and answer are", "512 positions", "Shorten the target"]),
        ({"request": "word " * 600}, ["w.json:1:request: the prompt 'word", "512 positions", "Shorten it"]),
    ],
    ids=["no-targets", "long-target", "long-prompt"],
)
def test_prompt_that_cannot_be_trained_on(fields: dict[str, Any], words: list[str], cli: Command, tmp_path: Path):
    prompt(tmp_path / "w.json", **fields)
    said(cli(*PREPARE, "data.path=w.json"), 2, *words)
    assert not (tmp_path / "out" / "done" / "prepare.json").exists()


# ---- the model


def test_weights_that_are_neither_cached_nor_reachable(cli: Command, tmp_path: Path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    (tmp_path / "cache").mkdir()
    started = time.monotonic()
    done = cli(*PREPARE, "model=gpt2", HF_HOME=str(tmp_path / "cache"), HF_ENDPOINT="http://127.0.0.1:9")
    assert time.monotonic() - started < 20  # 10 on a machine of its own
    said(
        done, 3, "model.path: openai-community/gpt2 is neither a folder nor in the local cache", "hf download", "model.path=FOLDER"
    )


def test_model_folder_that_holds_none(cli: Command, tmp_path: Path):
    local = (*PREPARE, "model=local")
    said(cli(*local, "model.path=./nowhere"), 2, "model.path: there is no folder ./nowhere")
    shutil.copytree(TINY, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    said(cli(*local, "model.path=m", "overwrite=true"), 2, "model.path: m has no *.safetensors", "that format only")


def test_tokens_of_one_target_that_begin_those_of_another(cli: Command, tmp_path: Path):
    shutil.copytree(TINY, tmp_path / "m")
    tokenizer = json.loads((tmp_path / "m" / "tokenizer.json").read_text())
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(tokenizer | {"normalizer": {"type": "Lowercase"}}))
    prompt(tmp_path / "w.json", targets=["Yes", "No way", "no"], eos=False)
    done = cli(*PREPARE, "model=local", "model.path=m", "data.path=w.json")
    said(done, 2, "w.json:1:targets[2]: the tokens of 'no' begin those of targets[1], 'No way'", "Set eos to true")


# ---- training


def test_loss_that_is_not_finite_stops_at_the_last_good_checkpoint(cli: Command, tmp_path: Path):
    done = cli("stages=[prepare,train]", "run_dir=out", "train.lr=1e9", "train.save_every_steps=1", "tracker=none", "data=fruits")
    said(
        done,
        2,
        "training: the ",
        "the step was not applied",
        "The last good checkpoint is out/checkpoints/step-",
        "Try a lower train.lr",
    )
    kept = sorted(p.name for p in (tmp_path / "out" / "checkpoints").iterdir())
    assert kept
    assert kept[-1] in done.stderr
    assert not (tmp_path / "out" / "done" / "train.json").exists()
    assert not (tmp_path / "out" / "adapter").exists()
