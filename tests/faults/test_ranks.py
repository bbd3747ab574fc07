"""Several ranks: a lost one ends the run with a sentence that names it, a signal to any of them saves, nothing is left behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from disturbed import COMMON, losses
from forked import Forked, ForkedRank

import alignlab
from alignlab import ranks
from alignlab.compose import compose
from alignlab.errors import LostError, StoppedError, UserError
from alignlab.interrupt import rubbish
from alignlab.launch import World, train_on_ranks, world
from alignlab.lock import FolderLock
from alignlab.signals import Stop
from alignlab.slurm import first_host
from alignlab.train import loop

SHORT = [*COMMON, "stages=[prepare,train]", "train.max_steps=20"]
LONG = [*COMMON, "stages=[prepare,train]", "train.epochs=4000", "train.max_steps=4000"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The short run, in one process; it also imports what forks need."""
    return alignlab.run([*SHORT, "hardware=cpu", f"run_dir={tmp_path_factory.mktemp('alone') / 'run'}"]).path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(ready: Callable[[], bool], *processes: Forked) -> None:
    end = time.monotonic() + 40
    while not ready():
        assert all(process.poll() is None for process in processes), [process.words() for process in processes]
        assert time.monotonic() < end, [process.words() for process in processes]
        time.sleep(0.02)


def steps(run: Path, count: int) -> Callable[[], bool]:
    metrics = run / "metrics.jsonl"
    return lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= count


def descendants(pid: int) -> list[int]:
    children = [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*children, *(d for c in children for d in descendants(c))]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# ---- ranks that somebody else started: tasks of srun, whose variables stand for those of torchrun, too


@pytest.fixture
def tasks(tmp_path, monkeypatch) -> Iterator[Callable[..., list[Forked]]]:
    """``tasks(words)``: two processes with the environment that ``srun -n 2`` gives, in forks, which import nothing anew."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    started: list[Forked] = []

    def start(words: Sequence[str]) -> list[Forked]:
        PartialState._reset_state()
        monkeypatch.setenv("MASTER_PORT", str(free_port()))
        common = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}
        pair = []
        for rank in ("0", "1"):
            for name, value in {**common, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}.items():
                monkeypatch.setenv(name, value)
            pair.append(Forked(words, tmp_path / f"said-{rank}"))
        started.extend(pair)
        return pair

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_tasks_of_srun_are_ranks(tasks, alone, tmp_path):
    pair = tasks([*SHORT, f"run_dir={tmp_path / 'two'}"])
    assert [process.wait() for process in pair] == [0, 0], pair[0].words()
    assert "2 process(es) on cpu" in pair[0].words()
    assert pair[1].words() == ""
    assert dict(losses(tmp_path / "two")) == pytest.approx(dict(losses(alone)), abs=1e-5)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_of_a_launcher_is_killed(lost, tasks, alone, tmp_path):
    pair = tasks([*LONG, "run_dir=run"])
    until(steps(tmp_path / "run", 5), *pair)
    pair[lost].kill()
    killed = time.monotonic()
    assert pair[1 - lost].wait() == 1
    assert time.monotonic() - killed < 30
    said = pair[1 - lost].words()
    assert f"alignlab: train: rank {lost} of 2 is gone." in said
    assert said.count("alignlab:") == 1
    assert "Traceback" not in said
    FolderLock(tmp_path / "run").close()


@pytest.mark.parametrize(("name", "told", "status"), [("SIGTERM", [1], 143), ("SIGINT", [0, 1], 130), ("SIGUSR1", [0, 0], 143)])
def test_a_signal_to_one_rank_or_to_all_saves_within_the_step(name, told, status, tasks, alone, tmp_path):
    pair = tasks([*LONG, "run_dir=run"])
    until(steps(tmp_path / "run", 5), *pair)
    for rank in told:
        pair[rank].send(name)
    assert [process.wait() for process in pair] == [status, status]
    said = re.search(rf"stopped by {name}: step (\d+) of \d+ is saved", pair[0].words())
    assert said, pair[0].words()
    assert (tmp_path / f"run/checkpoints/step-{said[1]}").is_dir()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, World(0, 1)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "1"}, World(0, 1)),  # a batch script
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "0"}, World(0, 1)),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NODELIST": "gpu[07-09,12]"}, World(3, 4)),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "RANK": "1", "WORLD_SIZE": "2"}, World(1, 2)),
    ],
)
def test_which_tasks_are_ranks(environment, expected, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(environment))
    assert world() == expected
    assert os.environ.get("MASTER_ADDR") == ("gpu07" if expected == World(3, 4) else None)
    monkeypatch.setattr(os, "environ", {name: value for name, value in environment.items() if name.startswith("SLURM")})
    assert world(["hardware=nodes"]) == World(0, 1)  # each task is a machine


def test_the_first_host_of_a_list():
    assert [first_host(text) for text in ("a", "a,b", "n[3-5]", "n[03,5],m1", "r[1-2]n[07-09]-x,y")] == [
        "a",
        "a",
        "n3",
        "n03",
        "r1n07-x",
    ]


# ---- ranks of our own


@pytest.fixture
def forked_ranks(monkeypatch):
    """Ranks are forks, too."""
    monkeypatch.setattr(ranks, "Popen", ForkedRank)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_of_our_own_is_killed_and_the_same_command_goes_on(lost, forked_ranks, alone, tmp_path):
    run = tmp_path / "run"
    with Forked([*LONG, "hardware=cpu2", f"run_dir={run}"], tmp_path / "said") as process:
        until(steps(run, 25), process)
        both = descendants(process.pid)
        os.kill(both[lost], signal.SIGKILL)
        killed = time.monotonic()
        assert process.wait() == 1
        assert time.monotonic() - killed < 30
    said = process.words()
    assert (
        f"alignlab: train: rank {lost} of 2 on {socket.gethostname()} was killed by signal 9 (SIGKILL), as the system does" in said
    )
    assert "hardware.tokens_per_micro" in said
    assert re.search(r"step \d+ is saved in .*checkpoints. The same command continues from there\.$", said.strip())
    assert said.count("alignlab:") == 1
    assert "Traceback" not in said
    assert not alive(both[1 - lost])
    with Forked([*LONG, "hardware=cpu2", f"run_dir={run}"], tmp_path / "again") as process:
        until(lambda: (tmp_path / "again").exists() and "goes on from step 24 of" in process.words(), process)
        process.send("SIGTERM")
        assert process.wait() == 143
    assert rubbish(run) == []


def test_the_parent_is_killed_and_its_ranks_end(forked_ranks, alone, tmp_path):
    with Forked([*LONG, "hardware=cpu2", f"run_dir={tmp_path / 'run'}"], tmp_path / "said") as process:
        until(steps(tmp_path / "run", 5), process)
        both = descendants(process.pid)
        process.kill()
        process.wait()
        until(lambda: not any(map(alive, both)))
    FolderLock(tmp_path / "run").close()


@pytest.mark.parametrize(
    ("name", "told", "status"),
    [("SIGTERM", "parent", 143), ("SIGINT", "all", 130), ("SIGUSR1", "rank", 143), ("SIGINT", "twice", 130)],
)
def test_a_signal_to_the_parent_a_rank_or_all(name, told, status, forked_ranks, alone, tmp_path):
    with Forked([*LONG, "hardware=cpu2", f"run_dir={tmp_path / 'run'}"], tmp_path / "said") as process:
        until(steps(tmp_path / "run", 5), process)
        both = descendants(process.pid)
        if told == "twice":
            os.kill(both[1], signal.SIGSTOP)  # it cannot save
        for pid in {"parent": [process.pid], "rank": both[1:], "all": [process.pid, *both], "twice": [process.pid]}[told]:
            os.kill(pid, getattr(signal, name))
        if told == "twice":
            time.sleep(0.3)
            assert process.poll() is None
            process.send(name)
            os.kill(both[1], signal.SIGCONT)
        assert process.wait() == status
        until(lambda: not any(map(alive, both)))
    if told != "twice":
        said = re.search(rf"^alignlab: stopped by {name}: step (\d+) of \d+ is saved", process.words(), re.MULTILINE)
        assert said, process.words()
        assert (tmp_path / f"run/checkpoints/step-{said[1]}").is_dir()


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (
            "ZeroDivisionError('no such row')",
            1,
            "rank 1 of 2 on .* failed: ZeroDivisionError: no such row.\nIts last lines:\n(  .*\n)+",
        ),
        ("MemoryError('7 GiB')", 3, "out of memory, with one row at a time: 7 GiB\nSet hardware.gradient_checkpointing"),
    ],
)
def test_a_rank_that_raises(error, status, words, forked_ranks, alone, tmp_path, monkeypatch):
    def broken(rows: Any) -> Any:
        if os.environ.get("RANK") == "1":
            raise eval(error)
        return collate(rows)

    collate = loop.collate
    monkeypatch.setattr(loop, "collate", broken)
    with Forked([*LONG, "hardware=cpu2", f"run_dir={tmp_path / 'run'}"], tmp_path / "said") as process:
        assert process.wait() == status
    assert re.search(words, process.words()), process.words()
    assert process.words().count("alignlab:") == 1
    assert "Traceback" not in process.words().split("alignlab:")[0]


# ---- several machines: two commands that meet on the loopback device


def machines(folder: Path, *words: Sequence[str], port: int = 0) -> list[Forked]:
    """Commands, each for a machine of its own with one rank."""
    common = [
        "hardware=nodes",
        "hardware.device=cpu",
        "hardware.processes=1",
        f"hardware.rendezvous=127.0.0.1:{port or free_port()}",
    ]
    return [Forked([*common, *own], folder / f"said-{i}") for i, own in enumerate(words)]


def test_two_machines_give_what_one_process_gives(forked_ranks, alone, tmp_path):
    words = [*SHORT, f"run_dir={tmp_path / 'two'}"]
    pair = machines(tmp_path, words, words)
    assert [process.wait() for process in pair] == [0, 0], [process.words() for process in pair]
    leads, follows = sorted(pair, key=lambda process: -len(process.words()))
    assert "2 process(es) on cpu" in leads.words()
    assert follows.words() == ""
    assert dict(losses(tmp_path / "two")) == pytest.approx(dict(losses(alone)), abs=1e-5)


@pytest.mark.parametrize("lost", ["rank", "machine", "leader"])
def test_a_lost_machine(lost, forked_ranks, alone, tmp_path):
    words = [*LONG, f"run_dir={tmp_path / 'run'}"]
    pair = machines(tmp_path, words, words)
    until(steps(tmp_path / "run", 25), *pair)
    leads, follows = sorted(pair, key=lambda process: -len(process.words()))
    dies, stays = (leads, follows) if lost == "leader" else (follows, leads)
    both = [pid for process in pair for pid in descendants(process.pid)]
    started = time.monotonic()
    if lost == "rank":
        os.kill(descendants(dies.pid)[0], signal.SIGKILL)
        assert dies.wait() == 1
        assert "rank 1 of 2" in dies.words()
    dies.kill()
    assert stays.wait() == 1
    assert time.monotonic() - started < 30
    said = stays.words()
    words = (
        "rank 1 of 2 on .* was killed by signal 9" if lost == "rank" else "machine [01] of 2 (.*) has not been heard of for 10 s"
    )
    assert re.search(words, said), said
    assert said.count("alignlab:") == 1
    assert not any(map(alive, both))
    FolderLock(tmp_path / "run").close()


def test_a_signal_to_one_machine_ends_both_with_what_is_saved(forked_ranks, alone, tmp_path):
    words = [*LONG, f"run_dir={tmp_path / 'run'}"]
    pair = machines(tmp_path, words, words)
    until(steps(tmp_path / "run", 5), *pair)
    min(pair, key=lambda process: len(process.words())).send("SIGUSR1")  # the one that follows
    assert [process.wait() for process in pair] == [143, 143]
    for process in pair:
        assert re.search(r"alignlab: stopped by SIGUSR1: step \d+ of \d+ is saved", process.words()), process.words()


def test_machines_that_do_not_fit_together(alone, tmp_path, monkeypatch):
    same = [*SHORT, f"run_dir={tmp_path / 'run'}"]
    pair = machines(tmp_path, [*same, "train.lr=0.01"], [*same, "train.lr=0.02"])
    for process in pair:
        assert process.wait() == 2
        assert re.search(r"train\.lr: 0\.0[12] on \S+, which leads, and 0\.0[12] on ", process.words()), process.words()
    (single,) = machines(tmp_path, [*same, "hardware.wait_minutes=0.02"])
    assert single.wait() == 3
    assert "1 of 2 machines came to 127.0.0.1:" in single.words()
    assert "in 0.02 minutes" in single.words()
    monkeypatch.setattr("alignlab.machines.Machines.seen_within", 1.0)
    words = [*SHORT, "run_dir=here"]
    port, pair = free_port(), []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        pair += machines(tmp_path / name, words, port=port)
    for process in pair:
        assert process.wait() == 2
        assert "run_dir: here is not the same folder on " in process.words()
    assert not list(tmp_path.glob("*/here/adapter"))


def test_where_machines_meet_has_to_be_said():
    for words, message in [
        ([], "hardware.rendezvous: several machines meet at an address"),
        (["hardware.rendezvous=node01"], "hardware.rendezvous: must be HOST:PORT"),
        (["hardware.rendezvous=no.such.host.invalid:29500"], "hardware.rendezvous: no.such.host.invalid is not known here"),
    ]:
        with pytest.raises(UserError, match=re.escape(message)):
            alignlab.run(["hardware=nodes", *words])


# ---- the agent, with ranks that do no more than what is asked of them


TOLD = 'import json, os; os.write(1, (json.dumps(dict(message={message!r}, status={status})) + "\\n").encode()); os._exit({status})'
STAYS = "import os, signal, sys, time\nfor number in (2, 10, 15): signal.signal(number, signal.SIG_IGN)\n"


def ended(scripts: Sequence[str], folder: Path, monkeypatch: pytest.MonkeyPatch, stop: Stop | None = None) -> BaseException:
    """How training ends whose ranks do no more than this; they say on stderr when they are there."""
    start = f"import os, sys\nscripts = {list(scripts)!r}\nexec(scripts[int(os.environ['RANK'])])"
    monkeypatch.setattr(ranks, "START", start)
    monkeypatch.setattr(ranks, "GRACE", 0.5)
    hardware = compose(["hardware=cpu2", f"hardware.processes={len(scripts)}"])[0].hardware
    with pytest.raises((UserError, StoppedError)) as caught:
        train_on_ranks(folder, hardware, True, stop or Stop())
    return caught.value


HANGS = STAYS + "time.sleep(100)"


def test_what_hangs_is_ended_with_a_rank_that_is_lost(tmp_path, monkeypatch):
    dies = "print('about', 7, file=sys.stderr, flush=True); os.kill(os.getpid(), 11)"
    error = ended([HANGS, dies], tmp_path, monkeypatch)
    assert isinstance(error, LostError)
    assert "rank 1 of 2" in str(error)
    assert "was killed by signal 11 (SIGSEGV).\nIts last lines:\n  about 7\n" in str(error)
    assert "no step was saved yet" in str(error)


def test_the_rank_that_began_it_is_named_and_not_the_one_that_missed_it(tmp_path, monkeypatch):
    fault = "import json; print(json.dumps(dict(message='ValueError: 3', status=1, cut_off=False, lines='a\\nb'))); sys.exit(1)"
    missed = fault.replace("ValueError: 3", "RuntimeError: gloo").replace("cut_off=False", "cut_off=True")
    error = ended([missed, fault, HANGS], tmp_path, monkeypatch)
    assert isinstance(error, LostError)
    assert f"train: rank 1 of 3 on {socket.gethostname()} failed: ValueError: 3.\nIts last lines:\n  a\n  b\n" in str(error)


@pytest.mark.parametrize(("status", "kind"), [(2, UserError), (3, alignlab.MissingError), (143, StoppedError)])
def test_what_a_rank_says_is_said_again(status, kind, tmp_path, monkeypatch):
    told = TOLD.format(message="out of memory: 7 GiB", status=status)
    error = ended([told, HANGS.replace("100", "0.2")], tmp_path, monkeypatch)
    assert type(error) is kind
    assert str(error) == "out of memory: 7 GiB"


def test_a_signal_is_passed_on_once(tmp_path, monkeypatch):
    waits = (
        "import signal, time\ngot = []\nsignal.signal(10, lambda n, _: got.append(n))\n"
        "open(f'there-{os.environ[\"RANK\"]}', 'w').close()\n"
        "while not got: time.sleep(0.01)\ntime.sleep(0.3)\n"
        + TOLD.format(message="stopped by SIGUSR1: step 3 is saved", status=143).replace("import json, os", "import json")
        .replace("os._exit(143)", "os._exit(143 if got == [10] else 1)")
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)

    class Arriving(Stop):
        @property
        def signal(self) -> int:
            return signal.SIGUSR1 if len(list(tmp_path.glob("there-*"))) == 2 else 0

        @signal.setter
        def signal(self, value: int) -> None: ...

    error = ended([waits, waits], tmp_path, monkeypatch, Arriving())
    assert isinstance(error, StoppedError)
    assert (str(error), error.status) == ("stopped by SIGUSR1: step 3 is saved", 143)
