"""What happens to a run folder while nobody, or somebody else, looks after it."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from disturbed import COMMON, losses, outcome
from forked import Forked
from torch.distributed.launcher import api

import alignlab
from alignlab.__main__ import command
from alignlab.interrupt import rubbish


def test_two_processes_on_one_folder(standing, monkeypatch, capsys):
    monkeypatch.chdir(standing.where)
    before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}
    for more in ([], ["stages=[report]"], ["overwrite=true"]):
        assert command([*COMMON, *more, "run_dir=run"]) == 2
        said = capsys.readouterr().err
        assert f"run_dir: run is in use: process {standing.pid} on {os.uname().nodename} works there since 2" in said
        assert said.count("alignlab:") == 1
    assert {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")} == before
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Name a fruit.\n")))
    assert command(["chat=run"]) == 0  # reading is not refused
    assert len(alignlab.RunFolder("run").metrics) == 16


def test_after_a_kill_the_same_command_ends_with_the_same_bytes_in_another_place(killed, whole, tmp_path, capsys):
    for name in ("copied", "moved"):
        shutil.copytree(killed, tmp_path / "first")
        if name == "copied":
            shutil.copytree(tmp_path / "first", tmp_path / name)
            shutil.rmtree(tmp_path / "first")
        else:
            (tmp_path / "first").rename(tmp_path / name)
        assert command([*COMMON, f"run_dir={tmp_path / name}"]) == 0
        assert "goes on from step 16 of 24" in capsys.readouterr().err
        assert outcome(tmp_path / name) == outcome(whole)
        assert losses(tmp_path / name) == losses(whole)
        assert not rubbish(tmp_path / name)


def test_what_a_kill_cuts_off_is_made_again(killed, whole, tmp_path, capsys):
    folder = shutil.copytree(killed, tmp_path / "run")
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    # a line that is bits and pieces, one of a later step, one cut off; a log that ends in the middle of a line; half a checkpoint
    damaged = [*lines[:9], b"\0\0\0\n", b'"step"\n', b'{"loss": 1}\n', *lines[9:], lines[-1].replace(b'"step": 16', b'"step": 17')]
    (folder / "metrics.jsonl").write_bytes(b"".join(damaged) + lines[-1][:50])
    (folder / "log.txt").write_bytes((folder / "log.txt").read_bytes() + b"2026-01-01 half a li")
    for left in (".step-24.tmp", ".step-8.old"):
        shutil.copytree(folder / "checkpoints/step-16", folder / f"checkpoints/{left}")
    (folder / "done/prepare.json").write_text("{")
    assert command([*COMMON, f"run_dir={folder}"]) == 0
    assert losses(folder) == losses(whole)
    assert outcome(folder) == outcome(whole)
    assert "half a li\n" in (folder / "log.txt").read_text()
    assert not rubbish(folder)


def test_steps_that_metrics_lack_are_said(killed, whole, tmp_path, capsys):
    folder = shutil.copytree(killed, tmp_path / "run")
    (folder / "metrics.jsonl").unlink()
    assert command([*COMMON, f"run_dir={folder}", "stages=[prepare,train]"]) == 0
    assert "metrics.jsonl lacks 16 of 16 steps" in capsys.readouterr().err
    assert losses(folder) == losses(whole)[16:]


@pytest.mark.parametrize("years", [-30, 30])
def test_nothing_depends_on_the_clock(killed, whole, tmp_path, years, capsys):
    folder = shutil.copytree(killed, tmp_path / "run")
    for path in [*folder.rglob("*"), folder]:
        seconds = path.stat().st_mtime + years * 31_536_000
        os.utime(path, (seconds, seconds))
    assert command([*COMMON, f"run_dir={folder}"]) == 0
    said = capsys.readouterr().err
    assert "prepare: done before" in said
    assert "goes on from step 16 of 24" in said
    assert outcome(folder) == outcome(whole)


def test_a_configuration_edited_by_hand_is_noticed(killed, whole, tmp_path, capsys):
    folder = shutil.copytree(killed, tmp_path / "run")
    frozen = folder / "config.yaml"
    text = frozen.read_text()

    def edited(old: str, new: str) -> str:
        assert text.count(old) == 1
        frozen.write_text(text.replace(old, new))
        return capsys.readouterr().err

    edited("  lr: 0.001", "  lr: 0.002")
    assert command([*COMMON, f"run_dir={folder}"]) == 2
    assert "train.lr is 0.002 there and 0.001 now." in edited("  epochs: 12", "  epochs: [12")
    assert command([*COMMON, f"run_dir={folder}"]) == 2
    said = edited("  samples: 20", "  samples: 3")
    assert f"{folder}/config.yaml:" in said
    assert "not the configuration that alignlab wrote" in said
    assert "Traceback" not in said
    assert command([*COMMON, f"run_dir={folder}"]) == 0
    assert "was last used with another configuration: suite.samples is 3 there and 20 now." in capsys.readouterr().err
    assert outcome(folder) == outcome(whole)
    assert frozen.read_text() == text.replace("run_dir: run", f"run_dir: {folder}")


def test_an_overwrite_that_was_cut_off_is_no_strangers_folder(tmp_path):
    folder = tmp_path / "run"
    alignlab.run([*COMMON, "stages=[prepare]", f"run_dir={folder}"])
    (folder / "config.yaml").rename(folder / "config.yaml.tmp")
    assert alignlab.run([*COMMON, "stages=[prepare]", f"run_dir={folder}"]).config["train"]["epochs"] == 12
    assert json.loads((folder / "run.lock").read_text())["pid"] == os.getpid()


def test_two_processes_leave_nothing_in_the_temporary_folder_of_the_system(whole, tmp_path):
    configured, temporary = api.LaunchConfig, tmp_path / "tmp"
    temporary.mkdir()

    def first() -> None:
        tempfile.tempdir = str(temporary)
        api.LaunchConfig = lambda **words: configured(**words | {"start_method": "fork"})

    command = [*COMMON, "stages=[prepare,train]", "train.epochs=1", "hardware=cpu2", f"run_dir={tmp_path / 'run'}"]
    with Forked(command, tmp_path / "said", first) as process:
        assert process.wait() == 0, process.words()
    assert "2 process(es)" in (tmp_path / "run/log.txt").read_text()
    assert not list(temporary.iterdir())


DAMAGE = {
    "trained.safetensors": "is not what was written: another checksum",
    "optimizer.safetensors": "has 176248 bytes and had 352496",
    "progress.json": "is missing",
    "manifest.json": "is not what was written",
}


@pytest.mark.parametrize(("file", "problem"), DAMAGE.items(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(killed, whole, tmp_path, file, problem, capsys):
    folder = shutil.copytree(killed, tmp_path / "run")
    path = folder / "checkpoints/step-16" / file
    content = path.read_bytes()
    middle = len(content) // 2
    if file == "progress.json":
        path.unlink()
    elif file == "optimizer.safetensors":
        path.write_bytes(content[:middle])
    else:  # one bit of it
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 128]) + content[middle + 1 :])
    assert command([*COMMON, "stages=[prepare,train]", f"run_dir={folder}"]) == 0
    said = capsys.readouterr().err
    assert f"{folder}/checkpoints/step-16 is damaged ({file} {problem})" in said
    assert "goes on from step 8 of 24" in said
    assert losses(folder) == losses(whole)
    adapter = {name: content for name, content in outcome(whole).items() if name.startswith("adapter")}
    assert {name: (folder / name).read_bytes() for name in adapter} == adapter
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-16", "step-24"]
