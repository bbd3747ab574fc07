"""A run: its folder, its stages in order, and what need not be done again."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from alignlab.build import resolved
from alignlab.config import Config, digest
from alignlab.environment import peak_memory
from alignlab.errors import MissingError, StoppedError, UserError, refused, system_error
from alignlab.journal import SUFFIX
from alignlab.launch import World, naming_lost_ranks, processes
from alignlab.lock import FILE as LOCK
from alignlab.lock import FolderLock
from alignlab.paths import content, fingerprint
from alignlab.provenance import leaves
from alignlab.records import Prompt, write_json, write_text
from alignlab.signals import Stop
from alignlab.text import TextCodec
from alignlab.trackers import Guarded
from alignlab.workshop import Workshop

log = logging.getLogger(__name__)

NEEDS: dict[str, tuple[str, ...]] = {
    "inspect": (),
    "prepare": (),
    "score": (),
    "train": ("prepare",),
    "sample": (),
    "evaluate": ("sample",),
    "report": ("evaluate",),
    "export": ("train",),
}
"""stages whose files a stage reads; ``sample``, ``evaluate`` and ``score`` also read the trained model where there is one"""

READS: dict[str, tuple[str, ...]] = {
    "inspect": ("method", "data", "model", "seed", "inspect"),
    "prepare": ("method", "data", "model", "seed"),
    "score": ("method", "data", "model", "seed", "score"),
    "train": ("method", "model", "train", "seed"),
    "sample": ("method", "data", "model", "sampler", "sample", "seed"),
    "evaluate": ("method", "data", "model", "suite", "seed"),
    "report": ("suite",),
    "export": ("model",),
}
"""config nodes a stage depends on"""

FIRST_LINE = "# The resolved configuration of a run of alignlab."
"""of config.yaml in a run folder: tells it from a stranger's"""

CURVE = ("method", "model", "data", "train", "seed")
"""config nodes that a run folder is bound to"""

MEASURED = ("suite", "sampler", "sample", "score")
"""config nodes of what is done again where they change"""

NEUTRAL = frozenset({"rows", "cache", "batch", "device", "parallel", "attempts", "timeout_seconds", "key_variable"})
"""fields of classes, of those that a configuration names, that change memory, speed or place, and no result"""

SAVING = frozenset({"save_every_steps", "keep_checkpoints"})
"""fields of ``train`` that are no more than that, too"""

OWN_FOLDERS = ("", "done", "rows", "checkpoints", "plots")
"""of a run folder, where files are written under a temporary name"""


def _pruned(node: Any, without: frozenset[str] = SAVING) -> Any:
    """A node without all these; keys that a user chose, in a set of keys that is no class's, are others."""
    if not isinstance(node, dict):
        return node
    return {k: _pruned(v, without) for k, v in node.items() if k not in without and not ("_target_" in node and k in NEUTRAL)}


@dataclass
class Run:
    """One run: a folder and a checked configuration."""

    folder: Path
    config: Config
    stop: Stop
    world: World
    machines: Any = None
    """others that this one meets and leads"""

    def path(self, *parts: str) -> Path:
        """A path inside the run folder."""
        return self.folder.joinpath(*parts)

    def say(self, message: str) -> None:
        """A line for the person and for log.txt."""
        log.info(message)
        if self.world.main:
            print(message, file=sys.stderr, flush=True)

    @cached_property
    def text(self) -> TextCodec:
        """Tokenizer and chat template of the model."""
        from alignlab.models.load import load_text

        return load_text(self.config.model, self.config.method.new_tokens(), weights=not self.config.plan)

    @cached_property
    def device(self) -> str:
        """Where stages of one process compute."""
        import torch

        return "cuda" if self.config.hardware.device != "cpu" and torch.cuda.is_available() else "cpu"

    @cached_property
    def tracker(self) -> Any:
        """The tracker, started and guarded; the same run of it after a resume, another after an overwrite."""
        node, file = self.config.node, self.path("done", "tracker-id")
        tracker = Guarded(self.config.tracker, self.say, self.folder)
        if not file.exists():
            write_text(file, uuid.uuid4().hex[:16])
        run_id = file.read_text()
        tracker.start(self.folder, self.folder.name, run_id, OmegaConf.to_container(node, resolve=True))  # type: ignore[arg-type]
        return tracker

    def close(self, *, failed: bool) -> None:
        """Close the tracker, if anything was mirrored to it."""
        if "tracker" in self.__dict__:
            self.tracker.finish(failed)

    @property
    def trained(self) -> bool:
        """Whether the folder holds a trained model."""
        return self.path("done", "train.json").exists()

    def prompts(self, which: str) -> Sequence[Prompt]:
        """What the model ``before`` or ``after`` training is asked."""
        return self.config.suite.prompts(self.config.data, which)

    def models(self) -> list[str]:
        """Which models can be sampled and evaluated: the untrained one, and the trained one where there is one."""
        return ["before", "after"] if self.trained else ["before"]

    def load(self, which: str, dtype: str | None = None, step: int | None = None) -> Any:
        """The model ``before`` or ``after`` training, with its weights in ``model.dtype`` or another one.

        With ``step``, that after so many optimizer steps, from its checkpoint.
        """
        from alignlab.models.load import after_model, load_model

        config, seed = self.config.model, self.config.seed
        if dtype:
            config = replace(config, dtype=dtype)
        tokens = self.config.method.new_tokens()
        if which == "before":
            return load_model(config, self.device, seed, tokens)
        if step is not None:
            from alignlab.stages.train import checkpoint_model

            return checkpoint_model(self, step, dtype)
        return after_model(config, self.folder, self.device, seed, tokens)

    def workshop(self) -> Workshop:
        """What the data source makes records with."""
        from alignlab.models.load import load_model, load_text

        config, seed = self.config.model, self.config.seed
        tokens = self.config.method.new_tokens() if config.adapter else ()  # an adapter may have rows for them
        drawn = config.weights == "random" or bool(tokens)
        known = [digest(resolved(self.config.node.model, "model"), seed if drawn else None), *fingerprint(config)]
        return Workshop(
            self.folder,
            known,
            lambda: load_text(config, tokens),
            lambda: load_model(config, self.device, seed, tokens),
            self.stop,
            self.say,
        )

    def digest(self, stage: str) -> str:
        """Digest of all that a stage reads: config nodes, data, and the stages before it."""
        read = [self.config.node[name] for name in READS[stage] if name != "seed"]
        # which metric is the objective is the report's affair
        without = SAVING | {"objective"} if stage == "evaluate" else SAVING
        nodes: list[Any] = [_pruned(OmegaConf.to_container(node, resolve=True), without) for node in read]
        nodes.append([content(value) for node in read for key, value in _plain(node).items() if key.endswith("template")])
        if "model" in READS[stage]:
            nodes.append(fingerprint(self.config.model))
        if "suite" in READS[stage]:
            nodes.append(self.config.suite.digest())
        if stage == "sample":
            nodes.append(self._asked())
        rows = self.config.data.digest() if "data" in READS[stage] or stage == "train" else ""
        if stage == "train":  # what was made with a model need not come out the same again
            rows += content(str(self.path("rows", "made.json")))
        before = [self.marker(name).get("digest") for name in NEEDS[stage]]
        asked = {"score": self.config.score.model, "sample": self.config.sample.model, "evaluate": "both"}
        if asked.get(stage, "before") != "before":  # what is asked of the untrained model alone outlasts a training
            before.append(self.marker("train").get("digest"))
        return digest(stage, *nodes, self.config.seed, rows, before)

    def _asked(self) -> list[Any]:
        """All that the sample stage takes from the suite: its other keys change no sample."""
        suite = self.config.suite
        prompts = [asdict(prompt) for which in ("before", "after") for prompt in self.prompts(which)]
        return [vars(suite.decoding()), suite.samples, getattr(suite, "padding", None), prompts]

    def marker(self, stage: str) -> dict[str, Any]:
        """What a finished stage left behind; empty where it has not finished, or the file is damaged."""
        path = self.path("done", f"{stage}.json")
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return {}

    def is_done(self, stage: str) -> bool:
        """Whether a stage has finished with what it would read now, and its files are there."""
        marker = self.marker(stage)
        return marker.get("digest") == self.digest(stage) and all(self.path(f).exists() for f in marker.get("files", ()))


def stage_function(stage: str) -> Callable[[Run], list[str]]:
    """The function of a stage: it does the work and returns the names of the files it wrote."""
    import importlib

    return getattr(importlib.import_module(f"alignlab.stages.{stage}"), stage)


def execute(run: Run) -> None:
    """Run the chosen stages in order; what is done with the same inputs is skipped.

    Raises:
        UserError: a stage lacks the files of one that was never run, or what the stage itself raises.
    """
    if "train" in run.config.stages:
        processes(run.config.hardware, run.world)  # what cannot be had is said before anything is done
    if {"train", "report"} & set(run.config.stages):
        run.config.tracker.ready()
    if {"sample", "evaluate"} & set(run.config.stages):
        run.config.suite.ready()
    if "sample" in run.config.stages and getattr(run.config.sampler, "elsewhere", False):
        run.config.sampler.sample_many()  # which it refuses
    failed = True
    try:
        for stage in run.config.stages:
            with naming_lost_ranks(stage, run.world, run.stop):
                (_run_stage if run.world.size == 1 or stage == "train" else _run_on_main)(run, stage)
            if run.stop.signal:
                raise run.stop.error("what was finished is kept")
        failed = False
    finally:
        run.close(failed=failed)


def _run_on_main(run: Run, stage: str) -> None:
    """A stage of one process among several: the others wait, and end with it if it fails."""
    failure: UserError | StoppedError | None = None
    if run.world.main:
        try:
            _run_stage(run, stage)
        except (UserError, StoppedError) as error:
            failure = error
        except Exception as error:
            run.world.share(UserError(str(error)))
            raise
    failure = run.world.share(failure)
    if failure is not None:
        raise failure


def _run_stage(run: Run, stage: str) -> None:
    for needed in NEEDS[stage]:
        if not run.is_done(needed):
            raise UserError(
                f"stages: {stage} reads what {needed} writes, and {run.folder} does not hold it for this configuration.\n"
                f"Add it: stages=[{needed},{stage}]."
            )
    if run.is_done(stage):
        run.say(f"{stage}: done before")
        _clear(run, run.marker(stage)["files"])
        return
    log.info("%s begins", stage)
    started = time.monotonic()
    marker = run.path("done", f"{stage}.json")
    if run.world.main:
        marker.unlink(missing_ok=True)
    try:
        files = stage_function(stage)(run)
    except Exception as error:
        system = system_error(error)
        if system is None:
            raise
        raise refused(stage, system, run.folder) from error
    if run.world.main and files:  # what leaves nothing for another stage is never done before
        seconds = time.monotonic() - started
        left = {"digest": run.digest(stage), "seconds": round(seconds, 3), "peak_mib": peak_memory(), "files": files}
        write_json(marker, left)
        _clear(run, files)
        log.info("%s took %.1f s", stage, seconds)


def _clear(run: Run, files: Sequence[str]) -> None:
    """Delete what files that are done were made of."""
    if run.world.main:
        for name in files:
            run.path(name + SUFFIX).unlink(missing_ok=True)


def open_folder(folder: Path, config: Config, *, overwrite: bool) -> FolderLock:
    """Make the run folder, or take up the one that is there; returns the lock that keeps other runs out of it.

    Raises:
        UserError: it holds a run with another training configuration, or something that is no run; or a run is at work there.
        MissingError: it cannot be written.
    """
    frozen = folder / "config.yaml"
    ours = frozen.is_file() and frozen.read_text(encoding="utf-8", errors="replace").startswith(FIRST_LINE)
    if frozen.exists() and not ours:
        raise UserError(f"run_dir: {folder} has a config.yaml that alignlab did not write. Choose another run_dir.")
    if not ours and folder.exists() and any(folder.iterdir()) and not (folder / LOCK).exists():
        raise UserError(f"run_dir: {folder} is not empty and is no run of alignlab. Choose another run_dir.")
    lock = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder)
        if overwrite and ours:
            for path in sorted(folder.iterdir(), key=lambda path: path.name != "done"):  # first what says that the rest is whole
                if path.name != LOCK:
                    _delete(path)
        for part in OWN_FOLDERS:
            for path in (folder / part).glob("*.tmp"):  # what a process that was killed was writing
                _delete(path)
        if frozen.exists():
            _compare(folder, config)
        write_text(frozen, FIRST_LINE + "\n" + OmegaConf.to_yaml(config.node, resolve=True))
    except BaseException as error:
        if lock is not None:
            lock.close()
        if isinstance(error, OSError):
            raise MissingError(f"run_dir: {folder} cannot be written: {error.strerror}. Choose another: run_dir=FOLDER.") from None
        raise
    return lock


def _compare(folder: Path, config: Config) -> None:
    """Compare with the configuration that a folder was begun with: what shapes the curve must be the same; the rest is said.

    Raises:
        UserError: it is another one, or cannot be read.
    """
    try:
        there = _plain(OmegaConf.load(folder / "config.yaml"))  # type: ignore[arg-type]
    except (YAMLError, OmegaConfBaseException, ValueError, OSError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{folder / 'config.yaml'}{f':{mark.line + 1}' if mark else ''}"
        raise UserError(
            f"{where}: not the configuration that alignlab wrote: {str(error).splitlines()[0]}.\n"
            "Restore it, choose another run_dir, or overwrite=true to throw that run away."
        ) from None
    here = _plain(config.node)
    differing = [k for k in sorted({*there, *here}) if there.get(k) != here.get(k)]
    if not any((folder / "done").glob("*.json")) and not (folder / "checkpoints").exists():
        return
    for bound in (True, False):
        found = [key for key in differing if key.split(".")[0] in (CURVE if bound else MEASURED)]
        if not found:
            continue
        first = found[0]
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        other = f"{first} is {there.get(first)!r} there and {here.get(first)!r} now{more}."
        if bound:
            raise UserError(
                f"run_dir: {folder} holds a run with another configuration: {other}\n"
                "To go on with it, repeat its whole command (environment.json has it). "
                "Else choose another run_dir, or overwrite=true to throw that run away."
            )
        print(f"run_dir: {folder} was last used with another configuration: {other}", file=sys.stderr)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _plain(node: DictConfig) -> dict[str, Any]:
    """Leaves of a configuration by dotted key, but those that change no result."""
    return dict(leaves(_pruned(OmegaConf.to_container(node, resolve=True))))
