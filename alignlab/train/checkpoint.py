"""Checkpoints: trained tensors, optimizer and position, with a manifest that tells whether they are as they were written."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from alignlab.errors import MissingError, system_error
from alignlab.files import sync
from alignlab.launch import ALONE, World

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
"""of a checkpoint, written last: name -> bytes and sha256 of every other file"""
WEIGHTS, OPTIMIZER, PROGRESS = "trained.safetensors", "optimizer.safetensors", "progress.json"


@dataclass
class Progress:
    """Where a run stands. With the plan and the seed it determines everything that follows."""

    step: int = 0
    """optimizer steps done"""
    finished: bool = False
    """whether the method stopped early"""
    epoch_sums: dict[str, list[float]] = field(default_factory=dict)
    """name -> [sum, count] of the epoch under way"""
    best: float | None = None
    """lowest validation loss so far"""
    best_step: int | None = None
    scaler: dict[str, float] | None = None
    """state of fp16's loss scaler"""
    key: str = ""
    """digest of what is trained on"""


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class Checkpoints:
    """The folder ``checkpoints/`` of a run.

    Args:
        folder: where ``step-N`` folders go.
        keep: how many of the latest to keep.
        key: digest of data, model and settings; a checkpoint with another one is of another training.
        world: the ranks that train; rank 0 writes, and says where all go on.
    """

    def __init__(self, folder: Path, keep: int, key: str = "", world: World = ALONE) -> None:
        self.folder, self.keep, self.key, self.world = folder, keep, key, world
        self._damaged: set[int] = set()

    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        found = (re.fullmatch(r"step-(\d+)", p.name) for p in self.folder.glob("step-*"))
        return sorted(int(m[1]) for m in found if m)

    def path(self, step: int) -> Path:
        """The folder of a step."""
        return self.folder / f"step-{step}"

    def save(self, progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer) -> Path:
        """Write ``step-N`` and drop those beyond the latest ``keep``.

        Raises:
            OSError: it cannot be written; nothing of it stays.
        """
        progress.key = self.key
        final, temporary = self.path(progress.step), self.folder / f".step-{progress.step}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            parameters = trained(model)
            _write(temporary / WEIGHTS, dict(parameters))
            state = {
                f"{key}/{name}": value
                for name, p in parameters.items()
                for key, value in optimizer.state[p].items()
                if isinstance(value, torch.Tensor)
            }
            _write(temporary / OPTIMIZER, state)
            _write_json(temporary / PROGRESS, asdict(progress))
            files = sorted(temporary.iterdir())
            _write_json(temporary / MANIFEST, {file.name: _facts(file) for file in files})
            for path in (*files, temporary / MANIFEST, temporary):
                sync(path)
            self._drop(progress.step)
            temporary.replace(final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync(self.folder)
        self._damaged.discard(progress.step)
        keep = {*[step for step in self.steps() if step not in self._damaged][-self.keep :], progress.best_step}
        for step in self.steps():
            if step not in keep:
                self._drop(step)
        return final

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
        """Restore the latest checkpoint that is whole into model and optimizer; None when there is none.

        Rank 0 says which one that is.

        Raises:
            MissingError: a rank does not find there what rank 0 found.
        """
        step = self.world.share(self._latest() if self.world.main else None)
        if step is None:
            return None
        problem = None if self.world.main else fault(self.path(step))
        lacking = f"train: rank {self.world.rank} cannot go on from {self.path(step)}, as rank 0 does: {problem}."
        self.world.agree(MissingError(f"{lacking}\nAll processes need the same run folder.") if problem else None)
        weights, state = load_file(self.path(step) / WEIGHTS), load_file(self.path(step) / OPTIMIZER)
        restore(model, weights)
        for name, p in trained(model).items():
            keys = {key.split("/", 1)[0]: key for key in state if key.split("/", 1)[1] == name}
            optimizer.state[p] = {k: state[key] if k == "step" else state[key].to(p.device) for k, key in keys.items()}
        return self._progress(step)

    def restore_weights(self, step: int, model: nn.Module) -> None:
        """Put the trained tensors of one checkpoint into the model.

        Raises:
            MissingError: they are damaged, for any rank.
        """
        problem = fault(self.path(step), WEIGHTS)
        self.world.agree(MissingError(f"{self.path(step)} cannot be used: {problem}.") if problem else None)
        restore(model, load_file(self.path(step) / WEIGHTS))

    def _progress(self, step: int) -> Progress:
        return Progress(**json.loads((self.path(step) / PROGRESS).read_text(encoding="utf-8")))

    def _latest(self) -> int | None:
        """The latest step from which training can go on. What a killed process left half written or half deleted goes."""
        for left in self.folder.glob(".step-*"):
            shutil.rmtree(left, ignore_errors=True)
        for step in reversed(self.steps()):
            problem = self._problem(step)
            if problem:
                self._damaged.add(step)
                log.warning("%s is damaged (%s); the checkpoint before it is used.", self.path(step), problem)
            elif self._progress(step).key == self.key:
                return step
            else:
                log.warning("%s was trained on other data or weights; training starts anew.", self.path(step))
                shutil.rmtree(self.folder, ignore_errors=True)
                return None
        return None

    def _problem(self, step: int) -> str | None:
        """Why training cannot go on from a step; None where it can."""
        problem = fault(self.path(step))
        if problem:
            return problem
        try:
            best = self._progress(step).best_step
        except (TypeError, ValueError):
            return f"another version of alignlab wrote {PROGRESS}"
        problem = fault(self.path(best), WEIGHTS) if best is not None else None
        return f"the best one so far, step-{best}, is: {problem}" if problem else None

    def _drop(self, step: int) -> None:
        """Delete a checkpoint, renamed first: under its own name it is whole or not there."""
        left = self.folder / f".step-{step}.old"
        with suppress(OSError):
            self.path(step).replace(left)
        shutil.rmtree(left, ignore_errors=True)


def fault(folder: Path, only: str | None = None) -> str | None:
    """What is wrong with the files of a checkpoint, or with one of them; None where they are as they were written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        for name in [only] if only else dict.fromkeys([WEIGHTS, OPTIMIZER, PROGRESS, *manifest]):
            said, found = manifest[name], _facts(folder / name)
            if found["bytes"] != said["bytes"]:
                return f"{name} has {found['bytes']} bytes and had {said['bytes']}"
            if found != said:
                return f"{name} is not what was written: another checksum"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"{Path(error.filename or folder).name} cannot be read: {error.strerror}"
    except (ValueError, TypeError, KeyError):
        return f"{MANIFEST} is not what was written"
    return None


def _facts(file: Path) -> dict[str, Any]:
    with file.open("rb") as content:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(content, "sha256").hexdigest()}


def _write_json(file: Path, value: Any) -> None:
    try:
        file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from None


def _write(file: Path, tensors: dict[str, Any]) -> None:
    """Write tensors; the system's refusal comes as the OSError that it is."""
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file)
    except SafetensorError as error:
        refusal = system_error(error)
        raise OSError(refusal.errno, refusal.strerror, str(file)) if refusal else error from None


def restore(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Copy tensors into the model's trained parameters, which must be the same ones."""
    parameters = trained(model)
    if weights.keys() != parameters.keys():
        raise ValueError(f"the checkpoint holds other parameters: {sorted(weights.keys() ^ parameters.keys())[:3]}")
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(weights[name])
