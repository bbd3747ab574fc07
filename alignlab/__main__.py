"""The command: compose, check, freeze, run the stages."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from alignlab import slurm
from alignlab.compose import CONF, help_text, refuse, run_name, translate, without_hydra
from alignlab.errors import FAULT, OK, LostError, StoppedError, UserError, memory_error, refused, system_error
from alignlab.launch import World, leading, met, world
from alignlab.signals import Stop
from alignlab.trackers import leave

if TYPE_CHECKING:
    from alignlab.pipeline import Run


OTHERS = ("chat", "verify")
"""commands that are no run: a module each, which reads the command line itself, and a function of the same name"""


def main() -> None:
    """Entry point of ``python -m alignlab`` and of the ``alignlab`` command; ends the process."""
    leave(command(sys.argv[1:]))


def command(arguments: Sequence[str]) -> int:
    """Run a command line; returns the exit status."""
    _quiet_libraries()
    outside = world(arguments)
    try:
        asked = {"--help", "-h", "--version", "--cfg", "-c", "--info", "-i", "--hydra-help"} & set(arguments)
        other = next((name for name in OTHERS if any(argument.startswith(f"{name}=") for argument in arguments)), None)
        if other and not asked:
            if outside.size > 1:
                raise UserError(f"{other} is one process: run it without torchrun or accelerate launch.")
            return getattr(import_module(f"alignlab.{other}"), other)(arguments)
        if not outside.main:  # what rank 0 answers by itself needs nobody to wait for it
            return OK if asked else _follow(outside)
        with Stop(several=outside.size > 1):  # also while nothing but the command line is read
            _hydra(list(arguments), outside)
        return OK
    except SystemExit as error:  # argparse, --help
        return int(error.code or 0) if not isinstance(error.code, str) else FAULT
    except (UserError, StoppedError) as error:
        return _say(error, error.status, arguments)
    except BrokenPipeError:  # whoever read our output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return _say("stopped: nothing was under way", 130, arguments)
    except Exception as error:
        if type(error).__module__.startswith(("hydra", "omegaconf", "antlr4")):
            refusal = translate(error, arguments)
            return _say(refusal, refusal.status, arguments)
        system = system_error(error)
        if system is not None:
            refusal = refused("system", system, Path.cwd())
            return _say(refusal, refusal.status, arguments)
        memory = memory_error(error)
        if memory is not None:
            return _say(memory, memory.status, arguments)
        traceback.print_exc()
        return _say(f"a fault of alignlab itself: {type(error).__name__}: {error}", FAULT, arguments)


def _say(message: object, status: int, arguments: Sequence[str]) -> int:
    wanted = re.compile(r"\+*debug\.traceback=(true|yes|on|1)", re.IGNORECASE)
    if any(wanted.fullmatch(a) for a in arguments) and sys.exc_info()[0] is not None:
        traceback.print_exc()
    print(f"alignlab: {message}", file=sys.stderr)
    return status


def _quiet_libraries() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # which casts and kernels it takes
    # peft asks transformers under names that are on their way out; nothing a person can act on
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|accelerate)\b")


def _hydra(arguments: list[str], outside: World) -> None:
    """Let Hydra parse the command line and call :func:`_task`, once or once per job of a sweep."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    from alignlab.provenance import sources

    if "--version" in arguments:
        print(f"alignlab {version('alignlab')}")
        return
    parsed = _parsed(arguments)
    if parsed.help:
        print(help_text())
        return
    refuse(parsed.overrides)
    folder = next((word for word in parsed.overrides if word.startswith("run_dir=") and "," not in word and "$" not in word), None)
    if folder and {"-m", "--multirun"} & set(arguments):
        raise UserError(f"{folder}: each run of a sweep needs a folder of its own. Leave run_dir out: their names tell them apart.")
    if outside.size > 1 and {"-m", "--multirun"} & set(arguments):
        raise UserError("a sweep starts its own processes: run it without torchrun or accelerate launch.")

    parent = os.getpid()
    failures: list[Exception] = []
    jobs: list[tuple[list[str], Path, Any]] = []
    sweep = bool({"-m", "--multirun"} & set(arguments))

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def task(node: Any) -> float | None:
        chosen = HydraConfig.get()
        choices = {k: str(v) for k, v in chosen.runtime.choices.items() if v is not None}
        try:
            overrides = list(chosen.overrides.task)
            given = [*chosen.overrides.hydra, *overrides]
            found = partial(sources, given, GlobalHydra.instance().config_loader(), chosen.job.config_name or "config")
            run = run_composed(without_hydra(node), choices, overrides, arguments, outside, found)
            jobs.append((overrides, run.folder, run.config.suite))
            return _objective(run)
        except Exception as error:  # out of Hydra's sight, which would print a line of its own
            if os.getpid() != parent:  # a launcher's job, whose failure only Hydra brings back
                raise
            failures.append(error)
            if sweep:
                print(f"alignlab: {' '.join(chosen.overrides.task)}: {error}", file=sys.stderr)
            return None

    # Hydra prints and exits by itself unless this is set; its refusals are ours to put into words.
    before, sys.argv = (os.environ.get("HYDRA_FULL_ERROR"), sys.argv), ["alignlab", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        task()
    finally:
        sys.argv = before[1]
        if before[0] is None:
            del os.environ["HYDRA_FULL_ERROR"]
    if sweep and jobs:
        from alignlab.report.sweep import write_sweep

        written = write_sweep(jobs)
        if written is not None:
            tables = "\n\n".join(table.narrow(80).plain() for table in written[0])
            print(f"\n{tables}\n\nsweep       {written[1]}")
    if failures:
        raise failures[0]


def _parsed(arguments: list[str]) -> Any:
    """Hydra's own reading of the command line, with a sentence instead of argparse's usage for what it does not know."""
    from hydra._internal.utils import get_args_parser

    def wrong(message: str) -> NoReturn:
        raise UserError(f"{message}. Settings are written KEY=VALUE, without dashes; --help explains them.")

    parser = get_args_parser()
    parser.error = wrong  # type: ignore[method-assign]
    return parser.parse_args(arguments)


def run_composed(
    node: Any,
    choices: dict[str, str],
    overrides: list[str],
    arguments: Sequence[str],
    outside: World,
    sources: Callable[[], Mapping[str, str]],
) -> Run:
    """Check and freeze a composed configuration, then run its stages.

    Args:
        node: the configuration without Hydra's own node; its interpolations are resolved here.
        choices: the option chosen in each group.
        overrides: the overrides of this run, for its name.
        arguments: the whole command line, for the record.
        outside: the processes that a launcher started.
        sources: tells which file or command wrote each value; asked once the configuration is checked.
    """
    from alignlab.config import check
    from alignlab.environment import log_file, write_environment
    from alignlab.pipeline import Run, execute, open_folder
    from alignlab.provenance import write_provenance

    machines = None
    try:
        config = check(node)
        if node.run_dir is None:
            node.run_dir = str(Path("runs") / run_name(choices, overrides, node.seed))
        config.data.digest()  # a data path that is wrong shall not leave a folder behind
        folder = Path(str(node.run_dir))
        if config.plan:
            from alignlab.costs import plan

            outside.share(None)  # nothing is left to do for other ranks
            return plan(folder, config, choices, outside)
        if config.hardware.slurm is not None:
            return slurm.submit(config, folder, overrides, outside)
        machines = met(config.hardware, outside)
        if machines is not None:
            machines.meet(config)
            if not machines.leads:
                machines.follow(folder, config)
                machines.end(None)
                return Run(folder, config, Stop(), outside, machines)
        lock = open_folder(folder, config, overwrite=config.overwrite)
    except BaseException as error:
        if outside.size > 1:
            outside.share(error if isinstance(error, UserError) else UserError(str(error)))
        if machines is not None:
            machines.end(error)
        raise
    outside.share(str(folder))
    with lock, log_file(folder), Stop(several=outside.size > 1) as stop, leading(machines, folder, stop):
        run = Run(folder, config, stop, outside, machines)
        command = write_environment(run, choices, overrides, arguments)
        write_provenance(folder, node, sources(), command)
        execute(run)
    return run


def _follow(outside: World) -> int:
    """What ranks other than 0 do under a launcher: wait for the frozen configuration, then take part in its stages."""
    from omegaconf import OmegaConf

    from alignlab.config import check
    from alignlab.lock import FolderLock
    from alignlab.pipeline import Run, execute

    folder = outside.share()
    if folder is None:  # a plan
        return OK
    if isinstance(folder, UserError):
        return folder.status
    try:
        with FolderLock(Path(folder), rank=True), Stop(several=True) as stop:
            execute(Run(Path(folder), check(OmegaConf.load(Path(folder) / "config.yaml")), stop, outside))  # type: ignore[arg-type]
    except (UserError, StoppedError) as error:
        if isinstance(error, LostError) and str(error):  # rank 0 may be the one that is gone
            print(f"alignlab: {error}", file=sys.stderr)
        return error.status
    return OK


def _objective(run: Run) -> float | None:
    """What a sweeper minimises: the suite's objective after training, or before where nothing was trained."""
    import json

    name = getattr(run.config.suite, "objective", None)
    path = run.path("results.json")
    if not name or not path.exists():
        return None
    found = json.loads(path.read_text()).get(name, {})
    return found.get("after", found.get("before", {})).get("value")


if __name__ == "__main__":
    main()
