"""A job script, on a cluster of three small shell scripts: they stand in for Slurm, which no test machine has.

``srun`` becomes the command that it is given, ``sbatch`` and ``scontrol requeue`` write down what they were told; the test runs the
job as Slurm would, sends the signal that announces the end of its time, and runs it again once it is queued again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

import alignlab
from alignlab.__main__ import command

CLUSTER = {
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"',
    "sbatch": 'echo "$1" >> "$QUEUE"\necho "Submitted batch job 42"',
    "scontrol": 'echo "$*" >> "$QUEUE"',
}
WORDS = ["tracker=none", "stages=[prepare,train]", "train.epochs=12", "train.lora.dropout=0.1", "seed=3"]
SLURM = ["hardware=slurm", "hardware.device=cpu", "hardware.slurm.partition=long", 'hardware.slurm.options=["--mem=4G"]']


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Path:
    """Its commands are on the path; returns the file in which they write."""
    for name, body in CLUSTER.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("QUEUE", str(tmp_path / "queue"))
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "queue"


def test_a_job_whose_time_is_over_is_queued_again_and_ends_with_the_same_bytes(cluster, tmp_path, capsys):
    assert command([*WORDS, *SLURM, "run_dir=my run"]) == 0
    said = capsys.readouterr().err
    assert "job         42" in said
    assert "my run/slurm-42.log" in said
    script = tmp_path / "my run/job.sh"
    assert cluster.read_text() == "my run/job.sh\n"
    text = script.read_text()
    for line in ("--partition=long", "--mem=4G", "--time=24:00:00", "--requeue", "--signal=B:USR1@120", "--nodes=1"):
        assert f"#SBATCH {line}\n" in text
    assert "hardware.slurm.partition" not in text
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0

    metrics = tmp_path / "my run/metrics.jsonl"
    with subprocess.Popen(["bash", str(script)], stderr=subprocess.PIPE, text=True) as job:
        while job.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < 3):
            time.sleep(0.02)
        job.send_signal(signal.SIGUSR1)
        said = job.communicate()[1]
    assert job.returncode == 143, said
    assert "stopped by SIGUSR1: step" in said
    assert cluster.read_text().splitlines()[1:] == ["requeue 42"]

    again = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "goes on from step" in again.stderr
    assert len(cluster.read_text().splitlines()) == 2  # what is done is not queued again
    whole = alignlab.run([*WORDS, "hardware=cpu", f"run_dir={tmp_path / 'whole'}"])
    for name in ("adapter/adapter_model.safetensors", "records.jsonl"):
        assert (tmp_path / "my run" / name).read_bytes() == (whole.path / name).read_bytes()


def test_without_a_cluster_the_script_is_written_all_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command([*WORDS, *SLURM, "run_dir=mine"]) == 3
    assert "there is no sbatch here. The script is written: submit it by hand" in capsys.readouterr().err
    assert (tmp_path / "mine/job.sh").is_file()
    assert command([*WORDS, *SLURM, "hardware.slurm.submit=false", "run_dir=mine"]) == 0
    several = ["hardware.nodes=2", "hardware.processes=4", "hardware.slurm.submit=false", "run_dir=two"]
    assert command([*WORDS, *SLURM, *several]) == 0
    text = (tmp_path / "two/job.sh").read_text()
    assert "#SBATCH --nodes=2\n" in text
    assert '"hardware.rendezvous=$first:$port"' in text
