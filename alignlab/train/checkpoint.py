"""Checkpoints: trained tensors, optimizer and position, written under a temporary name and renamed."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from alignlab.records import write_text

log = logging.getLogger(__name__)


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
    """

    def __init__(self, folder: Path, keep: int, key: str = "") -> None:
        self.folder, self.keep, self.key = folder, keep, key

    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        found = (re.fullmatch(r"step-(\d+)", p.name) for p in self.folder.glob("step-*"))
        return sorted(int(m[1]) for m in found if m)

    def save(self, progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer) -> Path:
        """Write ``step-N`` and drop those beyond the latest ``keep``."""
        progress.key = self.key
        final = self.folder / f"step-{progress.step}"
        temporary = self.folder / f".step-{progress.step}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        parameters = trained(model)
        save_file({name: p.detach().cpu().contiguous() for name, p in parameters.items()}, temporary / "trained.safetensors")
        state = {
            f"{key}/{name}": value.detach().cpu().contiguous()
            for name, p in parameters.items()
            for key, value in optimizer.state[p].items()
            if isinstance(value, torch.Tensor)
        }
        save_file(state, temporary / "optimizer.safetensors")
        write_text(temporary / "progress.json", json.dumps(asdict(progress), indent=2) + "\n")
        for file in temporary.iterdir():
            _sync(file)
        shutil.rmtree(final, ignore_errors=True)
        temporary.replace(final)
        _sync(self.folder)
        keep = {*self.steps()[-self.keep :], progress.best_step}
        for step in self.steps():
            if step not in keep:
                shutil.rmtree(self.folder / f"step-{step}", ignore_errors=True)
        return final

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
        """Restore the latest checkpoint that is whole into model and optimizer; None when there is none."""
        for step in reversed(self.steps()):
            path = self.folder / f"step-{step}"
            try:
                progress = Progress(**json.loads((path / "progress.json").read_text()))
                weights, state = load_file(path / "trained.safetensors"), load_file(path / "optimizer.safetensors")
            except (OSError, ValueError, TypeError, SafetensorError) as error:
                log.warning("%s is damaged (%s); the checkpoint before it is used.", path, error)
                continue
            if progress.key != self.key:
                log.warning("%s was trained on other data or weights; training starts anew.", path)
                shutil.rmtree(self.folder, ignore_errors=True)  # every rank does so
                return None
            restore(model, weights)
            for name, p in trained(model).items():
                keys = {key.split("/", 1)[0]: key for key in state if key.split("/", 1)[1] == name}
                optimizer.state[p] = {k: state[key] if k == "step" else state[key].to(p.device) for k, key in keys.items()}
            return progress
        return None

    def restore_weights(self, step: int, model: nn.Module) -> None:
        """Put the trained tensors of one checkpoint into the model."""
        restore(model, load_file(self.folder / f"step-{step}" / "trained.safetensors"))


def restore(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Copy tensors into the model's trained parameters, which must be the same ones."""
    parameters = trained(model)
    if weights.keys() != parameters.keys():
        raise ValueError(f"the checkpoint holds other parameters: {sorted(weights.keys() ^ parameters.keys())[:3]}")
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(weights[name])


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
