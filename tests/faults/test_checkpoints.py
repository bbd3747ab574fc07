"""A checkpoint is whole, or it is named and not used; on every rank the same one."""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
from collections.abc import Sequence
from dataclasses import make_dataclass
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from forked import ranks

from alignlab.errors import MissingError
from alignlab.launch import world
from alignlab.train.checkpoint import Checkpoints, Progress, fault, trained


def _model(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Linear(3, 2)


def _stepped(model: torch.nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer


@pytest.fixture
def saved(tmp_path):
    """``saved(1, 2)``: checkpoints of these steps, the model of each seeded by it."""

    def save(*steps: int, best: int | None = None) -> Checkpoints:
        kept = Checkpoints(tmp_path / "checkpoints", 3)
        for step in steps:
            model = _model(step)
            kept.save(Progress(step=step, best_step=best), model, _stepped(model))
        return Checkpoints(tmp_path / "checkpoints", 3)

    return save


def _loaded(kept: Checkpoints) -> tuple[int, torch.Tensor]:
    model = _model(0)
    progress = kept.load(model, torch.optim.AdamW(model.parameters()))
    return (progress.step if progress else 0), model.weight.detach()  # type: ignore[return-value]


def test_the_manifest_names_every_other_file(saved):
    folder = saved(1).path(1)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(manifest) == sorted(p.name for p in folder.iterdir() if p.name != "manifest.json")
    assert {name: said["bytes"] for name, said in manifest.items()} == {n: (folder / n).stat().st_size for n in manifest}
    assert fault(folder) is None


def test_every_damaged_byte_is_found(saved):
    folder, found = saved(1).path(1), 0
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        for place in range(len(content)):
            bit = 1 << place % 8
            with file.open("r+b") as damaged:
                damaged.seek(place)
                damaged.write(bytes([content[place] ^ bit]))
            problem = fault(folder)
            assert problem, f"{file.name}: bit {bit} of byte {place}"
            found += file.name in problem
            with file.open("r+b") as mended:
                mended.seek(place)
                mended.write(content[place : place + 1])
        for length in {0, 1, len(content) // 2, len(content) - 2}:  # without its last line end, a manifest is the same
            file.write_bytes(content[:length])
            assert file.name in str(fault(folder))
        file.unlink()
        assert fault(folder) == f"{file.name} is missing"
        file.write_bytes(content)
        assert fault(folder) is None
    assert found > 900


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"progress.json": 3}', '{"progress.json": {"bytes": 1}}'])
def test_a_manifest_that_says_nothing_vouches_for_nothing(saved, content):
    folder = saved(1).path(1)
    (folder / "manifest.json").write_text(content)
    assert fault(folder)


def test_the_latest_that_is_whole_is_used_and_the_damaged_ones_go_with_the_next(saved, caplog):
    kept = saved(1, 2, 3)
    (kept.path(3) / "manifest.json").unlink()
    (kept.path(2) / "trained.safetensors").write_bytes(b"")
    step, weight = _loaded(kept)
    assert step == 1
    assert torch.equal(weight, _loaded(Checkpoints(kept.folder, 3))[1])
    assert f"{kept.path(3)} is damaged (manifest.json is missing); the checkpoint before it is used." in caplog.text
    assert f"{kept.path(2)} is damaged (trained.safetensors has 0 bytes and had" in caplog.text
    assert kept.steps() == [1, 2, 3]  # nothing is thrown away before there is something better
    model = _model(3)
    kept.save(Progress(step=3), model, _stepped(model))
    assert kept.steps() == [1, 3]
    assert fault(kept.path(3)) is None


def test_one_whose_best_weights_are_damaged_is_not_gone_on_from(saved, caplog):
    kept = saved(1, 2)
    kept = saved(3, best=2)
    (kept.path(2) / "trained.safetensors").write_bytes(b"")
    assert _loaded(kept)[0] == 1
    assert f"{kept.path(3)} is damaged (the best one so far, step-2, is: trained.safetensors has 0 bytes" in caplog.text
    with pytest.raises(MissingError, match="step-2 cannot be used: trained.safetensors has 0 bytes"):
        kept.restore_weights(2, _model(0))


def test_one_of_another_version_is_damaged_too(saved, caplog):
    kept = saved(1, 2)
    model = _model(2)
    other = make_dataclass("Other", ["step", "key", "best_step", "later"])(2, "", None, 1)
    kept.save(other, model, _stepped(model))
    assert _loaded(Checkpoints(kept.folder, 3))[0] == 1
    assert "another version of alignlab wrote progress.json" in caplog.text


def test_a_disk_that_is_full_leaves_no_rubbish_and_the_one_before(saved):
    kept = saved(1)
    before = {path: path.read_bytes() for path in kept.folder.rglob("*") if path.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*optimizer\.safetensors'"):
            saved(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path: path.read_bytes() for path in kept.folder.rglob("*") if path.is_file()} == before
    assert not list(kept.folder.glob(".step*"))
    assert _loaded(kept)[0] == 1


def load_each(folder: Path, names: Sequence[str]) -> None:
    """What a rank says that loads each of these, as the file ``NAME-RANK``; the process ends here."""
    logging.getLogger("alignlab").addHandler(logging.StreamHandler(sys.stderr))
    Accelerator(cpu=True)
    here = world()
    for name in names:
        apart = folder / name / str(here.rank)
        model = torch.nn.Linear(3, 2)
        try:
            kept = Checkpoints(apart if apart.exists() else folder / name, 3, world=here)
            progress = kept.load(model, torch.optim.AdamW(model.parameters()))
            said = progress and f"{progress.step} {float(model.weight.detach().double().sum())!r}"
        except MissingError as error:
            said = str(error).splitlines()[0]
        (folder / f"{name}-{here.rank}").write_text(str(said))
    os._exit(0)


def test_all_ranks_go_on_from_where_rank_0_does(tmp_path):
    def made(name: str, *steps: int) -> Checkpoints:
        for step in steps:
            model = _model(step)
            Checkpoints(tmp_path / name, 3).save(Progress(step=step), model, _stepped(model))
        return Checkpoints(tmp_path / name, 3)

    damaged = made("damaged", 1, 2)
    (damaged.path(2) / "progress.json").write_text("{}")
    made("apart/0", 1, 2)
    made("apart/1", 1)  # what a rank sees whose folder lags behind, or is another one
    made("more/0", 1)
    made("more/1", 1, 2)
    (tmp_path / "none").mkdir()
    names = ("damaged", "apart", "more", "none")
    first, second = ranks([], tmp_path / "said", lambda: load_each(tmp_path, names))
    assert (first.wait(), second.wait()) == (0, 0), first.words() + second.words()
    said = {name: [Path(tmp_path, f"{name}-{rank}").read_text() for rank in (0, 1)] for name in names}
    model = _model(1)
    _stepped(model)
    loaded = f"1 {float(trained(model)['weight'].detach().double().sum())!r}"
    assert said["damaged"] == [loaded, loaded]
    assert said["more"] == [loaded, loaded]
    assert said["none"] == ["None", "None"]
    lacking = f"train: rank 1 cannot go on from {tmp_path}/apart/1/step-2, as rank 0 does: manifest.json is missing."
    assert said["apart"] == [lacking, lacking]
    assert (first.words() + second.words()).count("step-2 is damaged") == 1
