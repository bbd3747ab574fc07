"""Trackers: where figures are mirrored to beside metrics.jsonl, and what keeps them from stopping or slowing a run."""

from __future__ import annotations

import logging
import os
import queue
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from alignlab.config import at_least
from alignlab.errors import MissingError
from alignlab.records import read_jsonl

if TYPE_CHECKING:
    from alignlab.protocols import Tracker


class Guarded:
    """A tracker that can neither stop nor slow a run, whatever it raises and however long it blocks.

    Its calls wait in line for a thread of their own. What goes wrong is said once; the run goes on.

    Args:
        tracker: what is called.
        say: tells the person.
        where: the folder where every figure stands anyway.
    """

    patience = 20.0
    """seconds that the end of a run waits for it"""
    room = 10_000
    """calls that may wait in line; what comes when the line is full is dropped"""
    hanging = False
    """whether a tracker of this process was left behind in the middle of a call"""

    def __init__(self, tracker: Tracker, say: Callable[[str], None], where: Path) -> None:
        self._tracker, self._say, self._where = tracker, say, where
        self._calls: queue.Queue[tuple[str, tuple[Any, ...]]] = queue.Queue(self.room)
        self._works, self._said, self._over = True, False, threading.Event()
        threading.Thread(target=self._work, name="tracker", daemon=True).start()

    def start(self, folder: Path, name: str, run_id: str, config: Mapping[str, Any]) -> None:
        """Open the run."""
        self._send("start", folder, name, run_id, config)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Mirror one step."""
        self._send("scalars", step, dict(values))

    def summary(self, figures: Mapping[str, float], files: Sequence[str]) -> None:
        """Mirror the results."""
        self._send("summary", dict(figures), list(files))

    def finish(self, failed: bool) -> None:
        """Close; waits for what is still in line, but not for long."""
        self._send("finish", failed)
        if not self._over.wait(self.patience):
            self._warn(f"has not finished after {self.patience:.0f} s and is left behind")
            Guarded.hanging = True

    def _send(self, call: str, *arguments: Any) -> None:
        try:
            self._calls.put_nowait((call, arguments))
        except queue.Full:
            self._warn("cannot keep up, and steps are left out there")

    def _work(self) -> None:
        while not self._over.is_set():
            call, arguments = self._calls.get()
            try:
                if self._works:
                    getattr(self._tracker, call)(*arguments)
            except BaseException as error:  # a library may even call sys.exit
                self._works = self._works and call != "start"
                self._warn(f"failed in {call} ({type(error).__name__}: {_harmless(error)})")
            if call == "finish":
                self._over.set()

    def _warn(self, what: str) -> None:
        if not self._said:
            self._said = True
            self._say(f"tracker: {type(self._tracker).__name__} {what}. The run goes on; all its figures are in {self._where}.")


def leave(status: int) -> NoReturn:
    """End the process, without the exit handlers of a tracker that hangs, which would wait for it.

    Nor with those of a rank that a launcher started and that is done: threads of its
    process group may still run then, and abort the process.
    """
    if Guarded.hanging or (status == 0 and int(os.environ.get("WORLD_SIZE") or 1) > 1):
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)
    sys.exit(status)


def _harmless(error: BaseException) -> str:
    """The first line of what was raised, without the value of any variable of the environment that may be a secret."""
    line = (str(error).splitlines() or [""])[0]
    for name, value in os.environ.items():
        if len(value) >= 8 and re.search("KEY|TOKEN|SECRET|PASSWORD", name, re.IGNORECASE):
            line = line.replace(value, "***")
    return line[:200]


@dataclass(frozen=True)
class NoTracker:
    """Only the run's own files."""

    def ready(self) -> None:
        """It needs nothing."""

    def start(self, folder: Path, name: str, run_id: str, config: Mapping[str, Any]) -> None:
        """Nothing to open."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing to mirror to."""

    def summary(self, figures: Mapping[str, float], files: Sequence[str]) -> None:
        """Nothing to mirror to."""

    def finish(self, failed: bool) -> None:
        """Nothing to close."""


SAMPLE = ("model", "prompt", "sample", "text")
"""columns of the samples table"""


def _samples(folder: Path, config: Mapping[str, Any], most: int) -> Iterator[list[Any]]:
    """The first completions of every model and prompt, as rows of the samples table."""
    path = folder / config["sample"]["file"]
    seen: Counter[tuple[str, str]] = Counter()
    for row in read_jsonl(path) if path.exists() else ():
        key = row["model"], row["prompt"]
        seen[key] += 1
        if seen[key] <= most:
            yield [row[column] for column in SAMPLE]


@dataclass
class Wandb:
    """Weights & Biases. The run's id stays the same after a resume; offline runs are uploaded later with ``wandb sync``."""

    mode: str
    project: str
    entity: str | None
    samples: int

    def __post_init__(self) -> None:
        if self.mode not in ("online", "offline"):
            raise ValueError(f"mode: must be online or offline, not {self.mode!r}")
        at_least("samples", self.samples, 0)

    def ready(self) -> None:
        """Refuse a run that could not be mirrored."""
        os.environ["WANDB_SILENT"] = "true"  # also keeps it from asking for a key on the terminal
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", "15")
        try:
            import wandb  # noqa: F401
        except ImportError:
            raise MissingError("tracker: the package wandb is not installed. Install it, or choose tracker=none.") from None
        if self.mode == "online" and not (os.environ.get("WANDB_API_KEY") or _has_login()):
            raise MissingError("tracker: no wandb API key. Set WANDB_API_KEY or run 'wandb login', or choose tracker=offline.")

    def start(self, folder: Path, name: str, run_id: str, config: Mapping[str, Any]) -> None:
        """Open the run ``run_id``, the same one after a resume."""
        self.ready()  # in a process that alignlab started, nobody has asked yet
        import wandb

        self._folder, self._config = folder, config
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            name=name,
            id=run_id,
            resume="allow" if self.mode == "online" else None,
            dir=str(folder.resolve()),  # what writes it may be a process with another working directory
            mode=self.mode,  # type: ignore[arg-type]
            config=dict(config),
            settings=wandb.Settings(init_timeout=30, console="off"),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Mirror one step."""
        self._run.log(dict(values), step=step)

    def summary(self, figures: Mapping[str, float], files: Sequence[str]) -> None:
        """The results in the run's summary, the plots as images, the samples as a table."""
        import wandb

        self._run.summary.update(dict(figures))
        rows = list(_samples(self._folder, self._config, self.samples))
        images = {Path(path).stem: wandb.Image(path) for path in files}
        self._run.log({**images, "samples": wandb.Table(columns=list(SAMPLE), data=rows)})

    def finish(self, failed: bool) -> None:
        """Close."""
        self._run.finish(exit_code=int(failed))


def _has_login() -> bool:
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return netrc.exists() and "wandb" in netrc.read_text(errors="replace")


@dataclass
class TensorBoard:
    """Event files in ``tensorboard/`` of the run folder. Steps that are done again after a crash replace the old ones."""

    samples: int

    def __post_init__(self) -> None:
        at_least("samples", self.samples, 0)
        self._writer: Any = None

    def ready(self) -> None:
        """Refuse a run that could not be mirrored."""
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError:
            raise MissingError(
                "tracker: the package tensorboard is not installed. Install it with pip install 'alignlab[tensorboard]', "
                "or choose another tracker."
            ) from None

    def start(self, folder: Path, name: str, run_id: str, config: Mapping[str, Any]) -> None:
        """Remember where to write; the first step says from where on old events are void."""
        self.ready()
        self._folder, self._config = folder, config

    def _open(self, purge_step: int | None) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder / "tensorboard"), purge_step=purge_step, flush_secs=10)
        return self._writer

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Mirror one step; the first one opens the file and writes the configuration."""
        if self._writer is None:
            from omegaconf import OmegaConf

            text = OmegaConf.to_yaml(OmegaConf.create(dict(self._config)))
            self._open(step).add_text("config", "\n".join("    " + line for line in text.splitlines()), step)
        for name, value in values.items():
            if name != "step":
                self._writer.add_scalar(name, value, step)

    def summary(self, figures: Mapping[str, float], files: Sequence[str]) -> None:
        """The results as scalars, the plots as images and the samples as a text table, all at the last step."""
        from matplotlib.image import imread

        writer = self._writer or self._open(None)
        metrics = self._folder / "metrics.jsonl"
        step = sum(1 for _ in read_jsonl(metrics)) if metrics.exists() else 0
        for name, value in figures.items():
            writer.add_scalar(f"results/{name}", value, step)
        for path in files:
            writer.add_image(f"plots/{Path(path).stem}", imread(path), step, dataformats="HWC")
        rows = _samples(self._folder, self._config, self.samples)
        lines = [SAMPLE, ["---"] * len(SAMPLE), *rows]
        writer.add_text("samples", "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines), step)
        writer.flush()

    def finish(self, failed: bool) -> None:
        """Close."""
        if self._writer is not None:
            self._writer.close()


def _cell(value: Any) -> str:
    """A cell of a Markdown table."""
    return str(value).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
