"""``plan=true``: what a run would take, before it is paid for. Rows are made in a temporary folder; no weights are loaded."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from alignlab.config import Config, Lora
from alignlab.data.rows import RowStore
from alignlab.errors import UserError
from alignlab.forecast import Memory, forecast
from alignlab.launch import World
from alignlab.pipeline import Run
from alignlab.protocols import Row
from alignlab.signals import Stop
from alignlab.stages.prepare import prepare
from alignlab.stages.train import refuse, trainable_model
from alignlab.timing import speed
from alignlab.train.plan import Plan

log = logging.getLogger(__name__)

WIDTH, INDENT = 80, 12
LEAST = 50_000_000
"""parameters from which on a run begins with a forecast of its memory"""


@dataclass(frozen=True)
class Work:
    """What is computed in training."""

    rows: RowStore
    plan: Plan
    ranks: int
    micro: tuple[Row, ...]
    """the largest micro-batch that was found"""
    several: bool
    """whether a rank has more than one in a step"""

    @property
    def nodes(self) -> int:
        """Tokens that all steps compute at most: methods that vary rows compute fewer."""
        whole, rest = divmod(self.plan.steps, self.plan.steps_per_epoch)
        last = sum(int(self.rows.length[list(self.plan.step(i).rows)].sum()) for i in range(rest))
        return whole * int(self.rows.length.sum()) + last


def ranks(config: Config, outside: World) -> int:
    """Ranks that would train, whether or not there are GPUs for them."""
    hardware = config.hardware
    gpus = torch.cuda.device_count() if hardware.device != "cpu" else 0
    return outside.size if outside.size > 1 else (hardware.processes or max(1, gpus)) * hardware.nodes


def work(rows: RowStore, config: Config, count: int) -> Work:
    """What training on these rows computes on so many ranks."""
    train, capacity = config.train, config.hardware.tokens_per_micro
    plan = Plan(rows, groups_per_step=train.groups_per_step, epochs=train.epochs, max_steps=train.max_steps, seed=config.seed)
    largest = plan.worst(config.method, capacity=capacity, world=count).rows
    return Work(rows, plan, count, largest, any(len(plan.loads(index, capacity, count)) > count for index in plan.looked_at()))


def memory(run: Run, done: Work) -> tuple[Memory, dict[str, int]]:
    """Memory of a rank, and figures of the model: parameters in all and ``trained``, and the ``bytes`` of its weights."""
    config = run.config
    model = trainable_model(run, "meta")
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    learning = [p for p in model.parameters() if p.requires_grad]
    figures = {
        "all": base.num_parameters(),
        "trained": sum(p.numel() for p in learning),
        "trained_bytes": sum(p.numel() * p.element_size() for p in learning),
    }
    parts = forecast(
        model,
        done.micro,
        config.train,
        config.hardware,
        device=_device(config),
        ranks=done.ranks,
        accumulates=done.several,
        quantization=config.model.quantization,
    )
    return parts, figures


def plan(folder: Path, config: Config, choices: Mapping[str, str], outside: World) -> Run:
    """Print what a run would take; nothing is left of it.

    Args:
        folder: of the run, which is not made.
        config: of it.
        choices: the option chosen in each group.
        outside: the processes that a launcher started.

    Raises:
        UserError: rows or model are wrong.
        MissingError: the model's config or tokenizer cannot be had.
    """
    with tempfile.TemporaryDirectory(prefix="alignlab-plan-") as temporary:
        run = _Quiet(Path(temporary), config, Stop(), outside)
        title = ", ".join(f"{group} {choices[group]}" for group in ("method", "model", "data", "hardware") if group in choices)
        parts = [("plan", [f"{title}: nothing is trained"])]
        parts += list(_parts(run, folder))
    for name, paragraphs in parts:
        for paragraph in paragraphs:
            print(textwrap.fill(paragraph, WIDTH, initial_indent=name.ljust(INDENT), subsequent_indent=" " * INDENT))
            name = ""
    return Run(folder, config, Stop(), outside)


class _Quiet(Run):
    """A run whose stages speak to the plan."""

    def say(self, message: str) -> None:
        """Keep the line."""
        self.__dict__.setdefault("said", []).append(message)


def _parts(run: Run, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Title and paragraphs of each part of a plan."""
    config = run.config
    lacking = list(config.data.unmade())
    prepare(run)
    reasons = [f"passed over: {place}: {reason.splitlines()[0]}" for place, reason in config.data.rejected.items()][:3]
    said = [line.removeprefix("prepare: ") for line in vars(run)["said"] if "rejected.jsonl" not in line]
    if len(config.data.rejected) > len(reasons):
        reasons.append(f"and {len(config.data.rejected) - len(reasons)} more wrong rows")
    yield "data", [said[-1], *said[:-1], *reasons, *lacking]
    if "train" not in config.stages:
        yield "training", ["none: stages has no train"]
        return
    rows = RowStore(run.path("rows", "train.arrow"))
    refuse(run, rows)
    done = work(rows, config, ranks(config, run.world))
    yield "steps", [_steps(config, done)]
    try:
        parts, figures = memory(run, done)
    except UserError:
        raise
    except Exception as error:  # an architecture that does something which needs contents
        yield "memory", [f"cannot be forecast for this architecture: {type(error).__name__}: {str(error).splitlines()[0]}"]
        return
    share = 100 * figures["trained"] / figures["all"]
    yield "parameters", [f"{figures['trained']:,} trained of {figures['all']:,} ({share:.3g} %)"]
    local, device = done.ranks // config.hardware.nodes, _device(config)
    has = room(device)
    yield "memory", [*_table(parts, done), *_verdict(run, done, parts, has, local)]
    yield "disk", _disk(run, folder, done, figures)
    yield "time", [_time(run, done, device, has)]


def _steps(config: Config, done: Work) -> str:
    plan = done.plan
    epochs = f"{plan.steps / plan.steps_per_epoch:.3g}"
    each = f"{config.train.groups_per_step} of {plan.groups} examples each"
    longest = f"{int(done.rows.length.max()):,} in the longest row"
    return f"{plan.steps:,} in {epochs} epoch(s), {each}, on {done.ranks} rank(s); {done.nodes:,} tokens, {longest}"


def _table(parts: Memory, done: Work) -> list[str]:
    """A line per part of the memory."""
    nodes = sum(len(row.tokens) for row in done.micro)
    what = f"of a rank when it holds most, {nodes:,} tokens at a time"
    sizes = {part.name: getattr(parts, part.name) for part in fields(parts)} | {"in all": parts.total}
    return [what, *(f"{name:<12} {shown(size):>10}" for name, size in sizes.items() if size)]


def _verdict(run: Run, done: Work, parts: Memory, has: int | None, local: int) -> list[str]:
    """Whether it fits, and if not what would."""
    device = _device(run.config)
    if has is None:
        return ["there is no such device here: whether it fits cannot be said"]
    times = local if device == "cpu" else 1
    there = f"{shown(has)} {'of this machine are free' if device == 'cpu' else 'has a GPU here'}"
    if parts.total * times <= has:
        return [f"fits: {there}"]
    fitting, least = advice(run, done, has // times)
    words = [f"does not fit: {there}" + f", for {times} ranks" * (times > 1)]
    words += [f"fits with {name}: {shown(size)}" for name, size in fitting]
    return words if fitting else [*words, f"no option makes it fit; least, {shown(least[1])}, needs {least[0]}"]


def advice(run: Run, done: Work, has: int) -> tuple[list[tuple[str, int]], tuple[str, int]]:
    """Options with which a rank fits into so many bytes, three at most, and the one that needs least; each with its bytes.

    Each is forecast, alone; where none fits, together with recomputed activations and smaller micro-batches.
    """
    single = list(_options(run.config, done))
    tried = [(name, _with(run, done, config)) for name, config in single]
    if not any(size <= has for _, size in tried):
        for name, config in single:
            small = replace(config.hardware, gradient_checkpointing=True, tokens_per_micro=_smallest(done))
            words = f"hardware.gradient_checkpointing=true hardware.tokens_per_micro={small.tokens_per_micro}"
            others = [word for word in name.split(" ") if word.split("=")[0] not in words]
            tried.append((" ".join([*others, words]), _with(run, done, replace(config, hardware=small))))
    fitting = [(name, size) for name, size in tried if size <= has]
    return fitting[:3], min(tried, key=lambda each: each[1])


def _smallest(done: Work) -> int:
    """The least capacity that asks for no longer row than there is."""
    return max(64, int(done.rows.length.max()))


def _options(config: Config, done: Work) -> Iterator[tuple[str, Config]]:
    """What may be changed to need less memory, as it stands on a command line, and the configuration with it."""
    hardware, nodes = config.hardware, sum(len(row.tokens) for row in done.micro)
    if not hardware.gradient_checkpointing:
        yield "hardware.gradient_checkpointing=true", replace(config, hardware=replace(hardware, gradient_checkpointing=True))
    capacity = min(hardware.tokens_per_micro, nodes) // 2
    while capacity >= _smallest(done):
        yield f"hardware.tokens_per_micro={capacity}", replace(config, hardware=replace(hardware, tokens_per_micro=capacity))
        capacity //= 2
    if done.ranks > 1 and not config.model.quantization:
        sharded = replace(hardware, sharding="fsdp")
        if hardware.sharding == "none":
            yield "hardware.sharding=fsdp", replace(config, hardware=sharded)
        if not hardware.offload and _device(config) != "cpu":
            words = "hardware.sharding=fsdp hardware.offload=true"
            yield words, replace(config, hardware=replace(sharded, offload=True))
    if config.train.lora is None:
        lora = Lora(rank=8, alpha=8, dropout=0.0, targets="all-linear")
        words = "'train.lora={rank:8,alpha:8,dropout:0,targets:all-linear}'"
        yield words, replace(config, train=replace(config.train, lora=lora))
    elif config.model.weights == "pretrained" and hardware.sharding == "none" and not config.model.quantization:
        yield "model.quantization=4bit", replace(config, model=replace(config.model, quantization="4bit"))


def _with(run: Run, done: Work, config: Config) -> int:
    """Bytes of a rank with another configuration."""
    other = replace(run, config=config)
    vars(other)["text"] = run.text
    return memory(other, work(done.rows, config, done.ranks))[0].total


def _disk(run: Run, folder: Path, done: Work, figures: Mapping[str, int]) -> list[str]:
    """What the run folder will hold, and whether there is room."""
    config, train = run.config, run.config.train
    every = train.save_every_steps or done.plan.steps
    # one more while it is written, and the best one
    kept = min(train.keep_checkpoints, -(-done.plan.steps // every)) + 1 + bool(train.best)
    checkpoint = 3 * figures["trained_bytes"]
    result = figures["trained_bytes"] if train.lora else figures["all"] * getattr(torch, config.model.dtype).itemsize
    rows = sum(file.stat().st_size for file in run.folder.rglob("*") if file.is_file())
    total = kept * checkpoint + result + rows
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    name = "adapter" if train.lora else "model"
    words = f"{shown(total)}: {kept} checkpoints of {shown(checkpoint)}, {name} {shown(result)}, rows {shown(rows)}"
    if total <= free:
        return [f"{words}; {shown(free)} are free"]
    less = [f"does not fit: {shown(free)} are free in {there}"]
    if (kept - train.keep_checkpoints + 1) * checkpoint + result + rows <= free:
        less.append("fits with train.keep_checkpoints=1")
    return [words, *less, "another place: run_dir=FOLDER"]


def _time(run: Run, done: Work, device: str, has: int | None) -> str:
    """How long training takes, where that can be measured."""
    if device == "cuda" and not torch.cuda.is_available():
        return "not measured: there is no GPU here"
    measured = speed(run, done.micro, (has or 0) // 4)
    if measured is None:
        return "not measured: even one layer and one row of this model take too long here"
    side_by_side = 1 if device == "cpu" else done.ranks
    seconds = done.nodes * measured.token / side_by_side + done.plan.steps * measured.update
    rate = f"{side_by_side / measured.token:,.0f} tokens a second"
    return f"about {duration(seconds)} of training, by a few layers timed here with random weights ({rate})"


def duration(seconds: float) -> str:
    """In words: the two digits that count."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{max(seconds, 1):.0f} seconds"


def shown(size: float) -> str:
    """Bytes in words."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def room(device: str) -> int | None:
    """Bytes of the smallest GPU, or of this machine's memory that are free; None where there is no GPU."""
    if device == "cuda":
        gpus = range(torch.cuda.device_count())
        return min((torch.cuda.get_device_properties(i).total_memory for i in gpus), default=None)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), free)
    with suppress(OSError, ValueError):  # of a container
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used)
    return free


def header(run: Run, rows: RowStore, parameters: int) -> str:
    """The line with which training begins: how much it is and, of a model of some size, what a rank will hold in memory."""
    done = work(rows, run.config, run.world.size)
    line = f"train: {_steps(run.config, done)}"
    if parameters < LEAST:
        return line
    try:
        return f"{line}; {shown(memory(run, done)[0].total)} of memory forecast"
    except Exception as error:  # nothing that is only said shall end a run
        log.debug("no forecast: %s", error)
        return line


def _device(config: Config) -> str:
    """What it is to run on, whether or not it is there."""
    wanted = config.hardware.device
    return wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
