"""Micro-batches, processes and sharding change the speed and never the curve."""

from __future__ import annotations

import shutil

import pytest
from trained import COMMON, HARDWARE, METHODS, ONE, STEPS, curve, distance, figures, place, prepare, train, vector
from trained import weights as trained_weights

import alignlab
from alignlab.data.rows import RowStore

LOSS, NORM, OTHERS, WEIGHTS = 1e-5, 1e-4, 1e-4, 1e-4
"""what may differ: the loss; the gradient's norm and other figures, of weights that rounding has moved; the final weights as one vector"""
TIED = "accuracy"
"""of dpo: before the first step every pair is a tie, which rounding decides"""


@pytest.mark.parametrize("hardware", HARDWARE)
@pytest.mark.parametrize("method", METHODS)
def test_the_curve_and_the_weights_are_those_of_one_process(method, hardware, runs):
    one, other = runs(method, ONE), runs(method, HARDWARE[hardware])
    expected, found = figures(one), figures(other)
    assert len(expected) == len(found) == STEPS
    for i, (a, b) in enumerate(zip(expected, found, strict=True)):
        assert a.keys() == b.keys()
        assert b["loss"] == pytest.approx(a["loss"], rel=0, abs=LOSS)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=NORM if i else 1e-5)
        for name, value in a.items():
            if i or name != TIED:
                assert b[name] == (value if isinstance(value, str) else pytest.approx(value, rel=OTHERS, abs=OTHERS)), name
    assert distance(trained_weights(one), trained_weights(other)) < WEIGHTS


@pytest.mark.parametrize("method", METHODS)
def test_twenty_steps_move_the_weights_by_far_more_than_may_differ(method, runs):
    half, whole = (vector(runs(method, ONE) / f"checkpoints/step-{step}/trained.safetensors") for step in (10, 20))
    assert distance(half, whole) > 30 * WEIGHTS


@pytest.mark.parametrize("method", ["delia", "conditioning"])
def test_the_gradient_of_a_step_is_that_of_one_process(method, prepared, tmp_path):
    moments = []
    for name, hardware in (("one", ONE), *HARDWARE.items()):
        if "sharded" in name:  # its checkpoint is in shares; the test above holds its first norm and all that follows
            continue
        run = place(prepared(method), tmp_path / name, [*hardware.words, "train.max_steps=1", "train.clip=null"])
        train([run], hardware.processes)
        # after one step of AdamW the first moment is (1 - beta1) times the gradient
        moments.append(vector(run / "checkpoints/step-1/optimizer.safetensors", "exp_avg/") * 10)
    assert moments[0].abs().max() > 1e-2
    for other in moments[1:]:
        assert (other - moments[0]).abs().max() < 1e-6


def test_one_prompt_a_step_is_shared_between_two_processes(tmp_path):
    words = [*COMMON, "data=fruits", "method.early_stop=false", "train.max_steps=5"]
    source = prepare(tmp_path / "source", words)
    one, two = (place(source, tmp_path / name, []) for name in ("one", "two"))
    train([one])
    train([two], 2)
    assert len(curve(two)) == 5
    for a, b in zip(curve(one), curve(two), strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)


def test_log_probabilities_before_training_do_not_depend_on_micro_batches(prepared, tmp_path):
    folder = prepare(tmp_path / "other", [*METHODS["dpo"], "hardware.tokens_per_micro=60"])
    one, other = (RowStore(run / "rows/train.arrow") for run in (prepared("dpo"), folder))
    assert len(one) == len(other) > 10
    for i in range(len(one)):
        assert other[i].columns["reference"] == pytest.approx(one[i].columns["reference"], rel=0, abs=1e-5)


def test_the_command_starts_two_processes_and_one_goes_on(cli, runs, tmp_path, capfd):
    words = [*METHODS["diffuse"], "hardware.tokens_per_micro=50"]
    two = cli(*words, "hardware=cpu2", "run_dir=run")
    assert two.returncode == 0, two.stderr
    assert "2 process(es)" in two.stderr
    run, one = tmp_path / "run", runs("diffuse", ONE)
    for a, b in zip(curve(one), curve(run), strict=True):
        assert a == pytest.approx(b, rel=NORM, abs=LOSS)
    shutil.rmtree(run / "checkpoints/step-20")
    (run / "done/train.json").unlink()
    alignlab.run([*words, "hardware=cpu", f"run_dir={run}"])
    assert f"goes on from step 10 of {STEPS}" in capfd.readouterr().err
    for a, b in zip(curve(one), curve(run), strict=True):
        assert a == pytest.approx(b, rel=NORM, abs=LOSS)
