"""Runs of every method, 20 steps in fp32 without dropout, on any hardware; what is read before training is made once."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ranks
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file

import alignlab
from alignlab.config import check
from alignlab.launch import ALONE
from alignlab.pipeline import FIRST_LINE, Run
from alignlab.records import read_jsonl
from alignlab.signals import Stop
from alignlab.stages import train as stage

STEPS = 20
COMMON = ["tracker=none", "stages=[prepare,train]", "hardware=auto", "hardware.device=cpu", "train.precision=fp32"]
SHORT = [*COMMON, "train.epochs=100", f"train.max_steps={STEPS}", "train.save_every_steps=10", "train.groups_per_step=3"]
JUDGED = [*SHORT, "train.lora.dropout=0", "train.warmup_steps=0", "train.lr=1e-3"]
LABELLED = [*SHORT, "method=conditioning", "data.sentences=40", "data.test.balanced=false"]
DIALOGUES = ["method=delia", "train.lora.dropout=0", "data.diverse_ratio=0.5", "data.diverse_source=external"]
METHODS = {
    "diffuse": SHORT,
    "cut": ["method=cut", *JUDGED],
    "sft": ["method=sft", *JUDGED],
    "dpo": ["method=dpo", *JUDGED],
    "delia": [*DIALOGUES, *SHORT, "train.probe_every_steps=10"],  # LoRA, and a row of the embedding
    "conditioning": LABELLED,  # the whole model, with rows for new tokens
    "conditioning-lora": [*LABELLED, "train.lora={rank: 4, alpha: 8, dropout: 0.0, targets: all-linear}"],
}
"""method -> words of its command"""


@dataclass(frozen=True)
class Hardware:
    """``words`` of the group ``hardware``, and how many processes train; a rank of several is given ``ACCELERATE_USE_CPU``."""

    words: tuple[str, ...] = ()
    processes: int = 1


ONE = Hardware()
"""one process, each step one micro-batch"""
HARDWARE = {
    "micro-batches": Hardware(("hardware.tokens_per_micro=120", "hardware.backend=padded")),
    "one row each": Hardware(("hardware.tokens_per_micro=20", "hardware.backend=masked")),
    "two processes": Hardware(("hardware.tokens_per_micro=50",), 2),
    "two processes, sharded": Hardware(("hardware.tokens_per_micro=50", "hardware.sharding=fsdp"), 2),
}
"""all that must give what ONE gives"""


def prepare(folder: Path, words: Sequence[str]) -> Path:
    """A run folder with all that training reads."""
    return alignlab.run([*words, "stages=[prepare]", f"run_dir={folder}"]).path


def place(source: Path, folder: Path, words: Sequence[str]) -> Path:
    """A copy of a run folder with other values in its frozen configuration: ``("hardware.backend=padded",)``."""
    shutil.copytree(source, folder)
    config = OmegaConf.merge(OmegaConf.load(source / "config.yaml"), OmegaConf.from_dotlist(list(words)))
    (folder / "config.yaml").write_text(FIRST_LINE + "\n" + OmegaConf.to_yaml(config), encoding="utf-8")
    return folder


def train(folders: Sequence[Path], processes: int = 1) -> None:
    """The train stage of run folders that :func:`place` has made, one after another."""
    if processes > 1:
        ranks.train(folders, processes)
        return
    for folder in folders:
        node = OmegaConf.load(folder / "config.yaml")
        assert isinstance(node, DictConfig)
        with Stop() as stop:
            stage.train(Run(folder, check(node), stop, ALONE))


def curve(folder: Path) -> list[tuple[float, float]]:
    """Loss and norm of the gradient of each step."""
    return [(row["loss"], row["grad_norm"]) for row in read_jsonl(folder / "metrics.jsonl")]


def figures(folder: Path) -> list[dict[str, float | str]]:
    """All that was logged, but for the work: times, and nodes computed, which are more where a trie is cut."""
    work = {"seconds", "tokens", "tokens_per_second"}
    return [{name: value for name, value in row.items() if name not in work} for row in read_jsonl(folder / "metrics.jsonl")]


def weights(folder: Path) -> torch.Tensor:
    """What was trained, as one vector in fp64: the adapter, or the whole model."""
    file = next(path for name in ("adapter/adapter_model", "model/model") if (path := folder / f"{name}.safetensors").exists())
    return vector(file)


def vector(file: Path, prefix: str = "") -> torch.Tensor:
    """The tensors of a file whose names begin so, as one vector in fp64."""
    tensors = load_file(file)
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors) if name.startswith(prefix)])


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of two vectors, relative to the first."""
    return float((one - other).norm() / one.norm())
