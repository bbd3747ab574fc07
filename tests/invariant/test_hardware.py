"""The number of processes and the size of a micro-batch change the speed and never the curve; resume continues bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import alignlab
from alignlab.records import read_jsonl

QUICK = ["tracker=none", "stages=[prepare,train]", "train.groups_per_step=3"]


def _losses(folder: Path) -> list[tuple[float, float]]:
    return [(row["loss"], row["grad_norm"]) for row in read_jsonl(folder / "metrics.jsonl")]


def _close(one: list[tuple[float, float]], other: list[tuple[float, float]], tolerance: float) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, abs=tolerance, rel=tolerance)


def test_two_processes_give_the_gradients_and_the_trajectory_of_one(cli, tmp_path):
    # three rows on two ranks: one of them is short of a row
    common = [*QUICK, "train.max_steps=20", "train.save_every_steps=1", "train.keep_checkpoints=20", "train.clip=null"]
    one = cli(*common, "hardware=cpu", "run_dir=one")
    two = cli(*common, "hardware=cpu2", "run_dir=two")
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    assert "1 process(es)" in one.stderr
    assert "2 process(es)" in two.stderr
    _close(_losses(tmp_path / "one"), _losses(tmp_path / "two"), 1e-5)
    # after one step of AdamW the first moment is (1 - beta1) times the gradient
    moments = [load_file(tmp_path / run / "checkpoints/step-1/optimizer.safetensors") for run in ("one", "two")]
    names = [name for name in moments[0] if name.startswith("exp_avg/")]
    assert names
    for name in names:
        assert torch.allclose(moments[0][name] * 10, moments[1][name] * 10, rtol=0, atol=1e-6)
    assert max(float(moments[0][name].abs().max()) * 10 for name in names) > 1e-3


def test_one_prompt_a_step_is_shared_between_two_processes(cli, tmp_path):
    common = ["tracker=none", "stages=[prepare,train]", "train.max_steps=5", "data=fruits"]
    runs = [cli(*common, f"hardware={hardware}", f"run_dir={hardware}") for hardware in ("cpu", "cpu2")]
    assert [run.returncode for run in runs] == [0, 0], runs[1].stderr
    _close(_losses(tmp_path / "cpu"), _losses(tmp_path / "cpu2"), 1e-5)


JUDGED = ["train.lora.dropout=0", "train.warmup_steps=0", "train.lr=1e-3", "train.groups_per_step=5"]


def test_a_pair_of_contexts_is_never_parted(cli, tmp_path):
    common = [*QUICK, "method=cut", *JUDGED, "train.max_steps=6"]
    runs = [cli(*common, f"hardware={hardware}", f"run_dir={hardware}") for hardware in ("cpu", "cpu2")]
    assert [run.returncode for run in runs] == [0, 0], runs[1].stderr
    _close(_losses(tmp_path / "cpu"), _losses(tmp_path / "cpu2"), 1e-5)
    one, two = (list(read_jsonl(tmp_path / name / "metrics.jsonl")) for name in ("cpu", "cpu2"))
    for name in ("align_p", "misalign", "align_n", "detected"):  # also where one rank has no example of a kind
        assert [row.get(name) for row in one] == pytest.approx([row.get(name) for row in two], abs=1e-5)


LABELLED = ["method=conditioning", "data.sentences=40", "data.test.balanced=false", "train.groups_per_step=5"]
ROWS_ALONE = [*LABELLED, "train.lora={rank: 4, alpha: 8, dropout: 0.0, targets: all-linear}"]


@pytest.mark.parametrize("method", [LABELLED, ROWS_ALONE], ids=["whole model", "LoRA and new rows"])
def test_control_tokens_learn_the_same_on_two_processes(method, cli, tmp_path):
    common = [*QUICK, *method, "train.max_steps=6"]
    cache = str(tmp_path / "cache")
    runs = [cli(*common, f"hardware={hardware}", f"run_dir={hardware}", ALIGNLAB_CACHE=cache) for hardware in ("cpu", "cpu2")]
    assert [run.returncode for run in runs] == [0, 0], runs[1].stderr
    _close(_losses(tmp_path / "cpu"), _losses(tmp_path / "cpu2"), 1e-5)


DIALOGUES = [
    "method=delia",
    "train.lora.dropout=0",
    "data.diverse_ratio=0.5",
    "data.diverse_source=external",
    "train.groups_per_step=5",
]


def test_dialogues_and_a_new_token_learn_the_same_on_two_processes(cli, tmp_path):
    common = [*QUICK, *DIALOGUES, "train.max_steps=6", "train.probe_every_steps=3"]
    runs = [cli(*common, f"hardware={hardware}", f"run_dir={hardware}") for hardware in ("cpu", "cpu2")]
    assert [run.returncode for run in runs] == [0, 0], runs[1].stderr
    _close(_losses(tmp_path / "cpu"), _losses(tmp_path / "cpu2"), 1e-5)
    one, two = (list(read_jsonl(tmp_path / name / "metrics.jsonl")) for name in ("cpu", "cpu2"))
    for name in ("nll_downstream", "nll_diverse", "important/nll", "gradient/cosine", "<sep>/similarity"):
        assert [row.get(name) for row in one] == pytest.approx([row.get(name) for row in two], abs=1e-4)
    assert [row["step"] for row in one if "gradient/cosine" in row] == [3, 6]


METHODS = {
    "diffuse": ["data=fruits"],
    "cut": ["method=cut", *JUDGED],
    "dpo": ["method=dpo", *JUDGED],
    "conditioning": LABELLED,
    "delia": DIALOGUES,
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_size_of_a_micro_batch_does_not_change_the_curve(method, tmp_path):
    runs = []
    for capacity, backend in ((8192, "auto"), (60, "auto"), (40, "masked"), (8192, "padded")):
        folder = tmp_path / f"{capacity}-{backend}"
        hardware = [f"hardware.tokens_per_micro={capacity}", f"hardware.backend={backend}"]
        alignlab.run([*QUICK, *method, "train.max_steps=6", *hardware, f"run_dir={folder}"])
        runs.append(_losses(folder))
    for other in runs[1:]:
        _close(runs[0], other, 1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_run_that_was_cut_off_continues_bit_for_bit(tmp_path, dropout):
    common = [*QUICK, f"train.lora.dropout={dropout}", "train.epochs=6", "train.save_every_steps=4"]
    whole = alignlab.run([*common, f"run_dir={tmp_path / 'whole'}"])
    part = tmp_path / "part"
    alignlab.run([*common, f"run_dir={part}"])
    # what a kill after step 9 leaves behind: the checkpoint of step 8 and metrics beyond it
    import shutil

    shutil.copytree(tmp_path / "whole/checkpoints", tmp_path / "kept")
    for step in Path(part / "checkpoints").iterdir():
        if step.name != "step-8":
            shutil.rmtree(step)
    (part / "done/train.json").unlink()
    shutil.rmtree(part / "adapter")
    before = (part / "metrics.jsonl").read_text().splitlines()
    (part / "metrics.jsonl").write_text("\n".join(before[:9]) + "\n")
    resumed = alignlab.run([*common, f"run_dir={part}"])
    assert [row["step"] for row in resumed.metrics] == list(range(1, 13))
    assert _losses(part) == _losses(whole.path)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (part / "adapter" / name).read_bytes() == (whole.path / "adapter" / name).read_bytes()


def test_resume_on_other_hardware(cli, tmp_path):
    common = [*QUICK, "train.epochs=6", "train.save_every_steps=4"]
    whole = cli(*common, "run_dir=whole", "hardware=cpu")
    first = cli(*common, "run_dir=part", "hardware=cpu2")
    assert whole.returncode == first.returncode == 0, first.stderr
    part = tmp_path / "part"
    import shutil

    shutil.rmtree(part / "checkpoints/step-12")
    (part / "done/train.json").unlink()
    again = cli(*common, "run_dir=part", "hardware=cpu")
    assert again.returncode == 0, again.stderr
    assert "goes on from step 8 of 12" in again.stderr
    _close(_losses(tmp_path / "whole"), _losses(part), 1e-5)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, caplog):
    common = [*QUICK, "train.epochs=6", "train.save_every_steps=4", f"run_dir={tmp_path / 'run'}"]
    whole = alignlab.run(common)
    losses = _losses(whole.path)
    (whole.path / "done/train.json").unlink()
    (whole.path / "checkpoints/step-12/optimizer.safetensors").write_bytes(b"cut off")
    with caplog.at_level("WARNING"):
        alignlab.run(common)
    assert "step-12 is damaged" in caplog.text
    assert _losses(whole.path) == losses


def test_only_the_latest_checkpoints_are_kept(tmp_path):
    run = alignlab.run(
        [*QUICK, "train.epochs=5", "train.save_every_steps=2", "train.keep_checkpoints=2", f"run_dir={tmp_path / 'run'}"]
    )
    kept = sorted(p.name for p in (run.path / "checkpoints").iterdir())
    assert kept == ["step-10", "step-8"]
    assert json.loads((run.path / "checkpoints/step-10/progress.json").read_text())["step"] == 10
