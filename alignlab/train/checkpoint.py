"""Checkpoints: trained tensors, optimizer and position, with a manifest that tells whether they are as they were written."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from alignlab.engine.shards import fill, is_sharded
from alignlab.errors import MissingError, system_error
from alignlab.files import sync
from alignlab.launch import ALONE, World

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
"""of a checkpoint, written last: name -> bytes and sha256 of every other file"""
WEIGHTS, OPTIMIZER, PROGRESS = "trained.safetensors", "optimizer.safetensors", "progress.json"
SHARDS = "shards"
"""folder in place of the first two where ranks have shares: each writes its own, in PyTorch's format of distributed checkpoints"""


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
        """Write ``step-N`` and drop those beyond the latest ``keep``. All ranks call it; of whole tensors, rank 0 writes all.

        Raises:
            OSError: it cannot be written; nothing of it stays. Rank 0 raises it, and of a sharded model a rank that fails.
        """
        progress.key = self.key
        final, temporary = self.path(progress.step), self.folder / f".step-{progress.step}.tmp"
        sharded = is_sharded(trained(model).values())
        if not (sharded or self.world.main):
            return final
        try:
            refusal = self._begin(temporary) if self.world.main else None
            if sharded:
                refusal = self.world.share(refusal)
            if refusal:
                raise refusal
            if sharded:
                _write_shards(temporary / SHARDS, _tensors(model, optimizer))
                if not self.world.main:
                    return final
            else:
                tensors = _tensors(model, optimizer)
                for part, file in ((WEIGHTS, temporary / WEIGHTS), (OPTIMIZER, temporary / OPTIMIZER)):
                    _write(file, tensors[part])
            _write_json(temporary / PROGRESS, asdict(progress))
            files = sorted(path for path in temporary.rglob("*") if path.is_file())
            _write_json(temporary / MANIFEST, {file.relative_to(temporary).as_posix(): _facts(file) for file in files})
            for path in (*files, temporary / MANIFEST, *{file.parent for file in files}):
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

    def _begin(self, temporary: Path) -> OSError | None:
        """Make an empty folder; what the system says where it cannot be made."""
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        except OSError as error:
            return error
        return None

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
        there = {name.partition("/")[2] for name in _keys(self.path(step), OPTIMIZER)}
        for name, p in trained(model).items():
            if name in there:  # what no loss depends on has no moments
                moments = (torch.zeros_like(p, memory_format=torch.preserve_format) for _ in range(2))
                optimizer.state[p] = dict(zip(("step", "exp_avg", "exp_avg_sq"), (torch.zeros(()), *moments), strict=True))
        _restore(self.path(step), _tensors(model, optimizer))
        return self._progress(step)

    def restore_weights(self, step: int, model: nn.Module) -> None:
        """Put the trained tensors of one checkpoint into the model.

        Raises:
            MissingError: they are damaged, for any rank.
        """
        problem = fault(self.path(step), weights=True)
        self.world.agree(MissingError(f"{self.path(step)} cannot be used: {problem}.") if problem else None)
        _restore(self.path(step), {WEIGHTS: dict(trained(model))})

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
        problem = fault(self.path(best), weights=True) if best is not None else None
        return f"the best one so far, step-{best}, is: {problem}" if problem else None

    def _drop(self, step: int) -> None:
        """Delete a checkpoint, renamed first: under its own name it is whole or not there."""
        left = self.folder / f".step-{step}.old"
        with suppress(OSError):
            self.path(step).replace(left)
        shutil.rmtree(left, ignore_errors=True)


def fault(folder: Path, *, weights: bool = False) -> str | None:
    """What is wrong with the files of a checkpoint, or with those of its weights; None where they are as they were written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        shards = [name for name in manifest if name.startswith(f"{SHARDS}/")]
        needed = shards or [WEIGHTS]
        for name in needed if weights else dict.fromkeys([*needed, *([] if shards else [OPTIMIZER]), PROGRESS, *manifest]):
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


Tensors = Mapping[str, dict[str, Tensor]]
"""by what they are, :data:`WEIGHTS` or :data:`OPTIMIZER`, and by name"""


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """All that a checkpoint holds of a model and its optimizer: the tensors themselves."""
    parameters = trained(model)
    state = {
        f"{key}/{name}": value
        for name, p in parameters.items()
        for key, value in optimizer.state[p].items()
        if isinstance(value, Tensor)
    }
    return {WEIGHTS: {name: p.detach() for name, p in parameters.items()}, OPTIMIZER: state}


def _write_shards(folder: Path, tensors: Tensors) -> None:
    """Write what each rank has; all ranks call it."""
    from torch.distributed import checkpoint

    try:
        checkpoint.save({part: dict(some) for part, some in tensors.items()}, checkpoint_id=folder)
    except checkpoint.CheckpointException as error:
        failure = next(iter(error.failures.values()))[0]
        raise (system_error(failure) or failure) from None


def _restore(folder: Path, tensors: Tensors) -> None:
    """Fill tensors, whole ones or shares, with what a checkpoint holds, however it was sharded when it was written.

    Raises:
        ValueError: it holds others.
    """
    from torch.distributed import checkpoint

    for part, wanted in tensors.items():
        there = _keys(folder, part)
        if there != wanted.keys():
            raise ValueError(f"the checkpoint holds other parameters: {sorted(there ^ wanted.keys())[:3]}")
        if (folder / SHARDS).exists():
            with warnings.catch_warnings():  # that a single process loads what several wrote is meant
                warnings.filterwarnings("ignore", message="torch.distributed is", category=UserWarning)
                checkpoint.load({part: wanted}, checkpoint_id=folder / SHARDS, no_dist=not is_sharded(wanted.values()))
        else:
            for name, values in load_file(folder / part).items():
                fill(wanted[name], values)


def _keys(folder: Path, part: str) -> set[str]:
    """Names of the tensors of one kind that a checkpoint holds."""
    if not (folder / SHARDS).exists():
        with safe_open(folder / part, "pt") as file:
            return set(file.keys())
    from torch.distributed.checkpoint import FileSystemReader

    known = FileSystemReader(folder / SHARDS).read_metadata().state_dict_metadata
    return {key.removeprefix(f"{part}.") for key in known if key.startswith(f"{part}.")}
