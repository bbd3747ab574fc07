"""Slurm: ranks that ``srun`` started, and a job script for one run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alignlab.errors import MissingError, UserError
from alignlab.records import write_text

if TYPE_CHECKING:
    from alignlab.config import Config
    from alignlab.launch import World
    from alignlab.pipeline import Run

MINUTES = 2
"""before the time limit, when the job is told to save and is queued again"""


def ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """Torch's variables for a task of ``srun``; empty outside a step of several tasks.

    A batch script, and a shell that ``srun --pty`` opened, are no such step.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if not tasks.isdecimal() or int(tasks) < 2 or "SLURM_PROCID" not in environment:
        return {}
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    port = 20_000 + (31 * int(environment.get("SLURM_JOB_ID", 0)) + int(environment.get("SLURM_STEP_ID", 0))) % 20_000
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": environment.get("SLURM_STEP_TASKS_PER_NODE", tasks).partition("(")[0].partition(",")[0],
        "MASTER_ADDR": environment.get("MASTER_ADDR") or first_host(nodes),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(port),
    }


def first_host(nodes: str) -> str:
    """The first host of a list in Slurm's notation: ``gpu[07-09,12],login1`` begins with ``gpu07``."""
    head = re.match(r"[^,\[]*(\[[^\]]*\][^,\[]*)*", nodes)
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", head[0] if head else nodes)


def submit(config: Config, folder: Path, overrides: Sequence[str], outside: World) -> Run:
    """Write ``job.sh`` into the run folder, and submit it where ``hardware.slurm.submit`` says so.

    Args:
        config: of the run.
        folder: of the run.
        overrides: of the run, as the user wrote them.
        outside: nobody else's ranks.

    Raises:
        MissingError: there is no ``sbatch`` here.
        UserError: Slurm refuses the job, or this is a job already.
    """
    from alignlab.pipeline import Run, open_folder
    from alignlab.signals import Stop

    if outside.size > 1:
        raise UserError("hardware=slurm: writes a job script; start the command once, without torchrun, accelerate launch or srun.")
    assert config.hardware.slurm is not None
    with open_folder(folder, config, overwrite=config.overwrite):
        script = folder / "job.sh"
        write_text(script, job_script(config, folder, overrides))
        script.chmod(0o755)
    print(f"job script  {script}", file=sys.stderr)
    if config.hardware.slurm.submit:
        _send(script, folder)
    return Run(folder, config, Stop(), outside)


def _send(script: Path, folder: Path) -> None:
    if shutil.which("sbatch") is None:
        raise MissingError(
            f"hardware=slurm: there is no sbatch here. The script is written: submit it by hand where Slurm is, sbatch {script}.\n"
            "hardware.slurm.submit=false only writes it."
        )
    done = subprocess.run(["sbatch", str(script)], capture_output=True, text=True, check=False)
    if done.returncode:
        said = next(iter((done.stderr or done.stdout).strip().splitlines()), f"exit status {done.returncode}")
        raise UserError(
            f"hardware.slurm: sbatch refuses {script}: {said}\nhardware.slurm.options and its other keys say what to ask for."
        )
    number = re.search(r"\d+", done.stdout)
    job = number[0] if number else "?"
    print(f"job         {job}\nlog         {folder / f'slurm-{job}.log'}", file=sys.stderr)


_ASKED = re.compile(r"[+~]*(hardware$|hardware\.(slurm|nodes|rendezvous)\b|run_dir$|overwrite$)")


def job_script(config: Config, folder: Path, overrides: Sequence[str]) -> str:
    """The script: what is asked of Slurm, the user's own words, and what to do when time is nearly over."""
    hardware, slurm = config.hardware, config.hardware.slurm
    assert slurm is not None
    count = hardware.processes or 1
    each = f"--cpus-per-task={count}" if hardware.device == "cpu" else f"--gpus-per-node={count}"
    asked = [f"--job-name={folder.name}", f"--nodes={hardware.nodes}", "--ntasks-per-node=1", each]
    asked += [f"--{name}={value}" for name, value in (("partition", slurm.partition), ("account", slurm.account)) if value]
    asked += [f"--time={slurm.time}", "--requeue", f"--signal=B:USR1@{60 * MINUTES}", "--open-mode=append"]
    asked += [f"--output={folder.absolute() / 'slurm-%j.log'}", *slurm.options]
    inside = str(folder.absolute()).replace('"', '\\"')
    words = [word for word in overrides if not _ASKED.match(word.partition("=")[0])]
    words = [shlex.quote(word) for word in [*words, f'run_dir="{inside}"']]
    if hardware.nodes > 1:
        words += ["hardware=nodes", f"hardware.nodes={hardware.nodes}", '"hardware.rendezvous=$first:$port"']
    return _SCRIPT.format(
        asked="\n".join(f"#SBATCH {line}" for line in asked),
        place=shlex.quote(str(Path.cwd())),
        setup="\n".join(slurm.setup) or "# hardware.slurm.setup: nothing",
        meeting=_MEETING if hardware.nodes > 1 else "",
        python=shlex.quote(sys.executable) if not slurm.setup else "python",
        words=" \\\n  ".join(words),
    )


_MEETING = """
# the machines meet on the first one
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
"""

_SCRIPT = """\
#!/bin/bash
# Written by alignlab. The same run continues wherever it stopped: submit this again, or run the command below.
{asked}

cd {place} || exit 1
{setup}
{meeting}
# Slurm sends USR1 before the time is over, and TERM when it takes the machines away: pass both on to the run, which saves
told=
trap 'told=USR1; kill -USR1 "$run"' USR1
trap 'told=${{told:-TERM}}; kill -TERM "$run"' TERM
srun ${{SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"}} {python} -m alignlab \\
  {words} &
run=$!
wait "$run"
while kill -0 "$run" 2>/dev/null; do # a signal ended the wait, not the run
  wait "$run"
done
wait "$run"
status=$?

# out of time: back into the queue. A job that is preempted Slurm queues again itself (--requeue); one that you cancel stays so.
if [ "$status" = 143 ] && [ "$told" = USR1 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""
