"""What a second command does with a folder that is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import alignlab
from alignlab.paths import resolve

QUICK = ["tracker=none", "train.epochs=2", "suite.samples=20"]
DATA = Path(resolve("alignlab:shipped/numbers-1-10"))


def test_changed_data_trains_anew(tmp_path, caplog):
    shutil.copytree(DATA, tmp_path / "data")
    common = [*QUICK, f"data.path={tmp_path / 'data'}", f"run_dir={tmp_path / 'run'}"]
    alignlab.run(common)
    before = (tmp_path / "run/adapter/adapter_model.safetensors").read_bytes()
    file = tmp_path / "data/w01.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"weights": [9, 1, 1, 1, 1, 1, 1, 1, 1, 1]}))
    with caplog.at_level("WARNING"):
        again = alignlab.run(common)
    assert "trained on other data or weights" in caplog.text
    assert (tmp_path / "run/adapter/adapter_model.safetensors").read_bytes() != before
    fresh = alignlab.run([*common[:-1], f"run_dir={tmp_path / 'fresh'}"])
    assert (fresh.path / "adapter/adapter_model.safetensors").read_bytes() == (
        again.path / "adapter/adapter_model.safetensors"
    ).read_bytes()


def test_a_line_cut_off_by_a_crash_is_made_again(tmp_path):
    common = [*QUICK, "stages=[prepare,train]", f"run_dir={tmp_path / 'run'}", "train.save_every_steps=5"]
    whole = alignlab.run(common)
    losses = [row["loss"] for row in whole.metrics]
    shutil.rmtree(whole.path / "checkpoints/step-12")
    (whole.path / "done/train.json").unlink()
    lines = (whole.path / "metrics.jsonl").read_text().splitlines()
    (whole.path / "metrics.jsonl").write_text("\n".join(lines[:10]) + "\n" + lines[10][:30])
    assert [row["loss"] for row in alignlab.run(common).metrics] == losses


def test_another_configuration_is_refused_and_overwrite_starts_anew(tmp_path):
    folder = tmp_path / "run"
    alignlab.run([*QUICK, "stages=[prepare]", f"run_dir={folder}"])
    with pytest.raises(alignlab.UserError, match=r"train\.lr is 0\.001 there and 0\.01 now"):
        alignlab.run([*QUICK, "train.lr=0.01", "stages=[prepare]", f"run_dir={folder}"])
    (folder / "mark").write_text("of the first run")
    alignlab.run([*QUICK, "train.lr=0.01", "stages=[prepare]", f"run_dir={folder}", "overwrite=true"])
    assert not (folder / "mark").exists()


def test_overwrite_never_takes_a_strangers_folder(tmp_path):
    (tmp_path / "config.yaml").write_text("mine: true\n")
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(alignlab.UserError, match="a config.yaml that alignlab did not write"):
        alignlab.run([*QUICK, f"run_dir={tmp_path}", "overwrite=true"])
    assert (tmp_path / "thesis.txt").exists()


def test_the_environment_stays_that_of_the_training(tmp_path):
    common = [*QUICK, f"run_dir={tmp_path / 'run'}", "score.tokens=true"]
    run = alignlab.run(common)
    first = (run.path / "environment.json").read_text()
    assert "score.tokens=true" in first
    alignlab.run([*common, "stages=[report]"])
    assert (run.path / "environment.json").read_text() == first
    assert "stages=[report]" in (run.path / "log.txt").read_text()


def test_a_held_out_prompt_that_does_not_fit_is_refused_before_training(tmp_path):
    shutil.copytree(DATA, tmp_path / "data")
    long = {"request": "Count. " * 600, "targets": ["{1}"], "split": "test"}
    (tmp_path / "data/long.json").write_text(json.dumps(long))
    with pytest.raises(alignlab.UserError, match=r"long\.json:1:request: the prompt .* is \d+ tokens long"):
        alignlab.run([*QUICK, f"data.path={tmp_path / 'data'}", f"run_dir={tmp_path / 'run'}"])
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_completion_ends_where_the_context_does(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/near.json").write_text(json.dumps({"request": "Say: " + "cat " * 500, "targets": [], "split": "test"}))
    run = alignlab.run([*QUICK, "stages=[sample]", f"data.path={tmp_path / 'data'}", f"run_dir={tmp_path / 'run'}"])
    assert len(run.samples) == 20
    assert {row["model"] for row in run.samples} == {"before"}


def test_a_folder_where_nothing_was_done_takes_the_corrected_command(tmp_path):
    with pytest.raises(alignlab.UserError, match="nowhere"):
        alignlab.run([*QUICK, "model=local", "model.path=./nowhere", "stages=[prepare]", f"run_dir={tmp_path / 'run'}"])
    alignlab.run([*QUICK, "stages=[prepare]", f"run_dir={tmp_path / 'run'}"])
    assert (tmp_path / "run/rows/train.arrow").exists()
