"""From YAML nodes to checked dataclasses: values live in YAML, types here, and no key passes that nobody declared."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, Node, OmegaConf

from alignlab.build import build, build_target, imported, resolved, shown
from alignlab.errors import UserError, did_you_mean

STAGES = ("inspect", "prepare", "score", "train", "sample", "evaluate", "report", "export")
DTYPES = ("float64", "float32", "bfloat16", "float16")


def one_of(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name}: must be one of {', '.join(map(str, choices))}, not {value!r}")


def at_least(name: str, value: float | None, least: float) -> None:
    """Raise ValueError if ``value`` is given and smaller than ``least``."""
    if value is not None and not value >= least:
        raise ValueError(f"{name}: must be at least {least}, not {value}")


def finite(name: str, value: float | None) -> None:
    """Raise ValueError if ``value`` is given and infinite or not a number."""
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{name}: must be a finite number, not {value}")


@dataclass
class Model:
    """A causal language model: where its weights are and how they are stored."""

    path: str
    revision: str | None
    weights: str
    architecture: dict[str, Any] | None
    tokenizer: str | None
    chat_template: str | None
    tokenizer_legacy: bool | None
    answer_lead: str
    answer_end: str
    system_turns: str
    pad_vocabulary_to: int | None
    dtype: str
    quantization: str | None
    attention: str
    adapter: str | None
    trust_remote_code: bool

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path: must be a folder or a name on the hub, not an empty text")
        one_of("weights", self.weights, ("pretrained", "random"))
        one_of("dtype", self.dtype, DTYPES)
        if self.quantization is not None:
            one_of("quantization", self.quantization, ("8bit", "4bit"))
        one_of("attention", self.attention, ("auto", "sdpa", "eager"))
        one_of("answer_end", self.answer_end, ("turn", "eos"))
        one_of("system_turns", self.system_turns, ("template", "user"))
        at_least("pad_vocabulary_to", self.pad_vocabulary_to, 1)
        if self.quantization and self.weights == "random":
            raise ValueError("quantization: only weights that are read can be quantised; random ones need null")
        if self.quantization and self.dtype == "float64":
            raise ValueError("quantization: its kernels do not compute in float64; take another model.dtype")
        if self.weights == "random" and not self.architecture:
            raise ValueError("weights: random needs the sizes of the model in model.architecture")


@dataclass
class Lora:
    """Low-rank adaptation: the fields of peft's LoraConfig that papers report."""

    rank: int
    alpha: float
    dropout: float
    targets: Any

    def __post_init__(self) -> None:
        at_least("rank", self.rank, 1)
        finite("alpha", self.alpha)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: must be in [0, 1), not {self.dropout}")
        if not (isinstance(self.targets, str) or (isinstance(self.targets, list) and self.targets)):
            raise ValueError("targets: must be 'all-linear' or a list of module names")


@dataclass
class Train:
    """Everything that shapes the curve."""

    lr: float
    schedule: str
    warmup_steps: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    decay: str
    clip: float | None
    epochs: int
    max_steps: int | None
    groups_per_step: int
    precision: str
    lora: Lora | None
    validate_every_steps: int | None
    probe_every_steps: int | None
    best: str | None
    save_every_steps: int | None
    keep_checkpoints: int

    def __post_init__(self) -> None:
        one_of("schedule", self.schedule, ("constant", "constant_with_warmup", "linear", "cosine"))
        one_of("decay", self.decay, ("all", "matrices"))
        one_of("precision", self.precision, ("fp32", "bf16", "fp16"))
        for name in ("epochs", "groups_per_step", "keep_checkpoints", "max_steps"):
            at_least(name, getattr(self, name), 1)
        for name in ("save_every_steps", "validate_every_steps", "probe_every_steps"):
            at_least(name, getattr(self, name), 1)
        for name in ("lr", "warmup_steps", "eps", "weight_decay", "clip"):
            finite(name, getattr(self, name))
            at_least(name, getattr(self, name), 0)
        if self.warmup_steps > 1 and self.warmup_steps != int(self.warmup_steps):
            raise ValueError(f"warmup_steps: must be a whole number, or below 1 for a share of all steps, not {self.warmup_steps}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: must be two numbers in [0, 1), not {list(self.betas)}")


@dataclass
class Slurm:
    """What a generated job script asks Slurm for."""

    partition: str | None
    account: str | None
    time: str
    submit: bool
    options: list[str]
    setup: list[str]


@dataclass
class Hardware:
    """Everything that changes the speed and not the curve."""

    device: str
    processes: int | None
    tokens_per_micro: int
    logits_mib: int
    gradient_checkpointing: bool
    sharding: str
    offload: bool
    nodes: int
    rendezvous: str | None
    wait_minutes: float
    slurm: Slurm | None
    backend: str

    def __post_init__(self) -> None:
        one_of("device", self.device, ("auto", "cpu", "cuda"))
        one_of("sharding", self.sharding, ("none", "fsdp"))
        if self.offload and self.sharding == "none":
            raise ValueError("offload: is of sharded training; give hardware.sharding=fsdp too")
        one_of("backend", self.backend, ("auto", "segments", "masked", "padded"))
        at_least("wait_minutes", self.wait_minutes, 0)
        for name in ("processes", "nodes", "tokens_per_micro", "logits_mib"):
            at_least(name, getattr(self, name), 1)


@dataclass
class Score:
    """What the ``score`` stage writes."""

    model: str
    tokens: bool

    def __post_init__(self) -> None:
        one_of("model", self.model, ("before", "after", "both"))


@dataclass
class Inspect:
    """How much the ``inspect`` stage shows."""

    rows: int
    lines: int

    def __post_init__(self) -> None:
        at_least("rows", self.rows, 1)
        at_least("lines", self.lines, 1)


@dataclass
class Sample:
    """Which models are sampled, how their weights are stored meanwhile, and where the completions go."""

    model: str
    dtype: str | None
    file: str
    alpaca_eval: bool
    step: int | None

    def __post_init__(self) -> None:
        one_of("model", self.model, ("before", "after", "both"))
        if self.dtype is not None:
            one_of("dtype", self.dtype, DTYPES)
        if not re.fullmatch(r"[\w.-]+\.jsonl", self.file) or self.file in ("records.jsonl", "metrics.jsonl", "scores.jsonl"):
            raise ValueError(f"file: must be a name such as samples.jsonl that no other stage writes, not {self.file!r}")


@dataclass
class Debug:
    """For finding faults."""

    traceback: bool


@dataclass
class Root:
    """What stands at the root beside the groups."""

    seed: int
    stages: list[str]
    run_dir: str | None
    plan: bool
    overwrite: bool

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError(f"stages: names none; choose among {', '.join(STAGES)}")
        for stage in self.stages:
            if stage not in STAGES:
                raise ValueError(f"stages: '{stage}' is not a stage ({', '.join(STAGES)}).{did_you_mean(stage, STAGES)}")
        if self.run_dir and Path(self.run_dir).exists() and not Path(self.run_dir).is_dir():
            raise ValueError(f"run_dir: {self.run_dir} is a file, and a run needs a folder; choose another run_dir")


TYPED: Mapping[str, type] = {
    "model": Model,
    "train": Train,
    "hardware": Hardware,
    "inspect": Inspect,
    "score": Score,
    "sample": Sample,
    "debug": Debug,
}
"""groups whose class is one of the above"""

PROTOCOLS: Mapping[str, tuple[str, ...]] = {
    "tracker": ("ready", "start", "scalars", "summary", "finish"),
    "data": (
        "yields",
        "training",
        "validation_records",
        "testing",
        "scoring",
        "lenient",
        "reject",
        "prompts",
        "digest",
        "notes",
        "make",
        "unmade",
    ),
    "method": (
        "accepts",
        "reference",
        "new_tokens",
        "rows",
        "parts",
        "vary",
        "loss",
        "finished",
        "probes",
        "conditions",
        "request",
        "scored",
        "sections",
    ),
    "suite": ("accepts", "ready", "digest", "prompts", "decoding", "evaluate", "summary", "charts"),
    "sampler": ("sample", "batches"),
}
"""groups that name their class, and what it must have; those that import least stand first, so that a mistake shows soonest"""


@dataclass(frozen=True)
class Config:
    """The checked configuration, and the node it was made of."""

    node: DictConfig
    method: Any
    model: Model
    data: Any
    train: Train
    hardware: Hardware
    sampler: Any
    suite: Any
    tracker: Any
    inspect: Inspect
    score: Score
    sample: Sample
    debug: Debug
    seed: int
    stages: list[str]
    plan: bool
    overwrite: bool


def check(node: DictConfig) -> Config:
    """Build every part of a composed configuration.

    Raises:
        UserError: an unknown key (with a suggestion), a missing or mistyped value, or parts that do not fit together.
    """
    own = [f.name for f in dataclasses.fields(Root)]
    for key in map(str, node):
        if key not in (*own, *TYPED, *PROTOCOLS):
            raise UserError(f"{key}: no such key.{did_you_mean(key, all_keys(node))}")
    _refuse_other_data(node)
    root = build(OmegaConf.create({k: v for k, v in resolved(node, "").items() if k in own}), Root, "")
    parts: dict[str, Any] = {name: build(_group(node, name), cls, name) for name, cls in TYPED.items()}
    parts |= {name: build_target(_group(node, name), name, members) for name, members in PROTOCOLS.items()}
    stages = [stage for stage in STAGES if stage in root.stages]
    if parts["model"].quantization:
        if "train" in stages and not parts["train"].lora:
            raise UserError("model.quantization: a quantised base cannot be trained whole. Give train.lora, or quantization=null.")
        if parts["hardware"].sharding != "none":
            raise UserError("hardware.sharding: a quantised base cannot be sharded. Take hardware.sharding=none.")
        if parts["sample"].dtype == "float64":
            raise UserError("sample.dtype: a quantised base does not compute in float64. Take another one.")
    return Config(node=node, **parts, seed=root.seed, stages=stages, plan=root.plan, overwrite=root.overwrite)


def _refuse_other_data(node: DictConfig) -> None:
    """Refuse data that the method or the suite cannot read: before they are built, since they take values of the data.

    What is wrong with a class itself is said where it is built.
    """
    kinds: dict[str, Any] = {}
    for name in ("data", "method", "suite"):
        part = node._get_node(name)
        if not (isinstance(part, DictConfig) and isinstance(part._get_node("_target_"), Node)):
            return
        try:
            kinds[name] = imported(str(part.get("_target_")), name)
        except UserError:
            return
    data, method, suite = kinds.values()
    if not all(hasattr(cls, name) for cls, name in ((data, "yields"), (method, "accepts"), (suite, "accepts"))):
        return
    if not issubclass(data.yields, tuple(method.accepts)):
        wanted = " or ".join(kind.__name__ for kind in method.accepts)
        raise UserError(
            f"data: this source gives {data.yields.__name__} records, and method {method.__name__} trains on {wanted}.\n"
            "Choose another data option (python -m alignlab --help lists them) or another method."
        )
    if not issubclass(data.yields, tuple(suite.accepts)):
        wanted = " or ".join(kind.__name__ for kind in suite.accepts)
        raise UserError(
            f"suite: the data gives {data.yields.__name__} records, and suite {suite.__name__} evaluates {wanted}.\n"
            "Choose another suite, or leave it to the method."
        )


def _group(node: DictConfig, name: str) -> DictConfig:
    value = node._get_node(name)
    if not isinstance(value, DictConfig) or value._is_none() or value._is_missing():
        given = "" if value is None else f", not {shown(resolved(node, '').get(name))}"
        raise UserError(f"{name}: must be a set of keys{given}.")
    return value


def all_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a configuration."""
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
        for key in map(str, node):
            yield f"{prefix}{key}"
            if not OmegaConf.is_missing(node, key):
                yield from all_keys(node._get_node(key), f"{prefix}{key}.")


def digest(*parts: Any) -> str:
    """Digest of anything that JSON can hold, nodes included."""
    plain = [OmegaConf.to_container(p, resolve=True) if OmegaConf.is_config(p) else p for p in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]
