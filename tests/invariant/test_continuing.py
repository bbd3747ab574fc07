"""A run that was cut off continues: bit for bit on the same hardware, along the same curve on another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from trained import COMMON, HARDWARE, ONE, STEPS, Hardware, curve, distance, place, prepare, train
from trained import weights as trained_weights

import alignlab
from alignlab.records import read_jsonl

TWO, SHARDED = HARDWARE["two processes"], HARDWARE["two processes, sharded"]


def cut_off(run: Path, folder: Path, step: int, hardware: Hardware) -> Path:
    """A copy as a kill leaves it behind after a checkpoint: with metrics of later steps, and no trained model."""
    place(run, folder, hardware.words)
    for checkpoint in (folder / "checkpoints").iterdir():
        if checkpoint.name != f"step-{step}":
            shutil.rmtree(checkpoint)
    for name in ("adapter", "model"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return folder


CHANGES = {
    "diffuse, one to two": ("diffuse", ONE, TWO),
    "delia, two to sharded": ("delia", TWO, SHARDED),
    "conditioning, sharded to one": ("conditioning", SHARDED, ONE),
    "conditioning-lora, sharded to two": ("conditioning-lora", SHARDED, TWO),
    "conditioning-lora, one to sharded": ("conditioning-lora", ONE, SHARDED),
}


@pytest.mark.parametrize(("method", "first", "then"), CHANGES.values(), ids=CHANGES)
def test_other_hardware_goes_on_along_the_same_curve(method, first, then, runs, tmp_path):
    one, before = runs(method, ONE), runs(method, first)
    run = cut_off(before, tmp_path / "run", 10, then)
    train([run], then.processes)
    rows = list(read_jsonl(run / "metrics.jsonl"))
    assert rows[:10] == list(read_jsonl(before / "metrics.jsonl"))[:10]  # also the times: nothing was done again
    assert len(rows) == STEPS
    for a, b in zip(curve(one), curve(run), strict=True):
        assert b[0] == pytest.approx(a[0], rel=0, abs=1e-5)
        assert b[1] == pytest.approx(a[1], rel=1e-4)
    assert distance(trained_weights(one), trained_weights(run)) < 1e-4


@pytest.mark.parametrize(("dropout", "processes"), [(0.0, 1), (0.1, 1), (0.1, 2)])
def test_the_same_hardware_goes_on_bit_for_bit(dropout, processes, tmp_path):
    words = [*COMMON, "train.groups_per_step=3", f"train.lora.dropout={dropout}", "train.epochs=6", "train.save_every_steps=4"]
    whole = prepare(tmp_path / "whole", [*words, "train.keep_checkpoints=3"])
    train([whole], processes)
    part = cut_off(whole, tmp_path / "part", 8, Hardware())
    train([part], processes)
    assert curve(part) == curve(whole)
    assert len(curve(part)) == 12
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (part / "adapter" / name).read_bytes() == (whole / "adapter" / name).read_bytes()


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, caplog):
    words = [*COMMON, "train.groups_per_step=3", "train.epochs=6", "train.save_every_steps=4", f"run_dir={tmp_path / 'run'}"]
    whole = alignlab.run(words)
    expected = curve(whole.path)
    (whole.path / "done/train.json").unlink()
    (whole.path / "checkpoints/step-12/optimizer.safetensors").write_bytes(b"cut off")
    with caplog.at_level("WARNING"):
        alignlab.run(words)
    assert "step-12 is damaged" in caplog.text
    assert curve(whole.path) == expected


def test_only_the_latest_checkpoints_are_kept(tmp_path):
    words = [*COMMON, "train.groups_per_step=3", "train.epochs=5", "train.save_every_steps=2", "train.keep_checkpoints=2"]
    run = alignlab.run([*words, f"run_dir={tmp_path / 'run'}"])
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == ["step-10", "step-8"]
    assert json.loads((run.path / "checkpoints/step-10/progress.json").read_text())["step"] == 10
