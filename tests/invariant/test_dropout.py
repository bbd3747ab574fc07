"""With dropout the same hardware repeats bit for bit, and other hardware draws other masks from the same distribution."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from trained import METHODS, curve, place, prepare, train, vector
from trained import weights as trained_weights

from alignlab.paths import resolve
from alignlab.records import write_jsonl

DROPOUT = "train.lora.dropout=0.3"
SMALL = "hardware.tokens_per_micro=50"
COPIES, SEEDS, LEVEL = 4, 11, 1e-3
HARDWARE = {"micro-batches": ([SMALL], 1), "two processes": ([SMALL], 2)}


REPEATED = HARDWARE | {"two processes, sharded": ([SMALL, "hardware.sharding=fsdp"], 2)}


@pytest.mark.parametrize(("words", "processes"), REPEATED.values(), ids=REPEATED)
def test_the_same_hardware_repeats_bit_for_bit(words, processes, prepared, tmp_path):
    runs = [place(prepared("sft"), tmp_path / name, [*words, DROPOUT, "train.max_steps=5"]) for name in ("one", "again")]
    train(runs, processes)
    one, again = (((run / "adapter/adapter_model.safetensors").read_bytes(), curve(run)) for run in runs)
    assert one == again


@pytest.fixture(scope="module")
def over_seeds(tmp_path_factory):
    """``over_seeds(words, processes)``: two steps of a run for each seed, a folder each.

    A step is copies of one row, so that masks which are the same where they should be independent add up.
    """
    folder = tmp_path_factory.mktemp("seeds")
    with Path(resolve("alignlab:shipped/judged/train.jsonl")).open(encoding="utf-8") as rows:
        row = json.loads(next(rows))
    write_jsonl(folder / "copies.jsonl", [row | {"id": str(i)} for i in range(COPIES)])
    words = [*METHODS["sft"], "method.responses=all", f"data.path={folder / 'copies.jsonl'}", f"train.groups_per_step={COPIES}"]
    source = prepare(folder / "source", [*words, "train.max_steps=2", "train.save_every_steps=1"])
    count = itertools.count()

    def get(words: list[str], processes: int = 1) -> list[Path]:
        name = next(count)
        runs = [place(source, folder / f"{name}-{seed}", [f"seed={seed}", *words]) for seed in range(SEEDS)]
        train(runs, processes)
        return runs

    return get


@pytest.fixture(scope="module")
def without(over_seeds):
    return over_seeds(["train.lora.dropout=0"])


@pytest.fixture(scope="module")
def one(over_seeds):
    """One process, each step one micro-batch."""
    return over_seeds([DROPOUT])


def _gradient(run: Path):
    """Of the first step, up to a factor. The adapter is zero then, so that it is linear in the masks."""
    return vector(run / "checkpoints/step-1/optimizer.safetensors", "exp_avg/")


def _noise(runs: list[Path], without: list[Path]) -> np.ndarray:
    """How much dropout changes the first gradient, seed by seed."""
    return np.array([float((_gradient(a) - _gradient(b)).norm()) for a, b in zip(runs, without, strict=True)])


def _losses(runs: list[Path]) -> np.ndarray:
    """After one step."""
    return np.array([curve(run)[-1][0] for run in runs])


def _p(differences: np.ndarray) -> float:
    """Exact two-sided sign-flip test: under the same distribution either run of a seed may be the one and the other."""
    signs = np.array(list(itertools.product((1, -1), repeat=len(differences))))
    return float((abs(signs @ differences) >= abs(differences.sum()) - 1e-12).mean())


def _ps(runs: list[Path], others: list[Path], without: list[Path]) -> tuple[float, float]:
    a, b = _noise(runs, without), _noise(others, without)
    return _p((a - b) / (a + b)), _p(_losses(runs) - _losses(others))


@pytest.mark.parametrize(("words", "processes"), HARDWARE.values(), ids=HARDWARE)
def test_other_hardware_agrees_in_distribution(words, processes, one, without, over_seeds):
    other = over_seeds([*words, DROPOUT], processes)
    for a, b in zip(one, other, strict=True):
        assert (trained_weights(a) != trained_weights(b)).any()
    assert min(_ps(one, other, without)) > LEVEL


def test_the_test_finds_masks_that_repeat_and_dropout_that_is_missing(one, without, over_seeds, monkeypatch):
    from alignlab.train import loop

    derive = loop.derive
    monkeypatch.setattr(loop, "derive", lambda seed, *keys: derive(seed, *keys[:3]))  # no micro-batch among the keys
    for wrong in (over_seeds([SMALL, DROPOUT]), without):
        assert min(_ps(one, wrong, without)) < LEVEL
