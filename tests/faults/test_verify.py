"""The command that kills a user's own run and compares, and what it is made of."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from forked import Forked

from alignlab import verify
from alignlab.__main__ import command
from alignlab.errors import StoppedError
from alignlab.interrupt import START, Group, differences, instants, rubbish
from alignlab.signals import Stop

SEED = 21
"""with which one kill is early in the only stage"""

# ---- the command


WILD = """
import os
from dataclasses import dataclass, replace
from alignlab.data.sources import PromptFiles

@dataclass
class Wild(PromptFiles):
    def training(self):
        return (replace(record, request=record.request + os.urandom(4).hex()) for record in super().training())
"""


class Fork(Forked):
    """A run in a fork, in place of a process of its own."""

    def __init__(self, arguments, *, shown=False):
        super().__init__(arguments, Path("said"))

    @property
    def returncode(self):
        return self.poll()


@pytest.fixture
def forked(whole, tmp_path, monkeypatch):
    """Runs are forks of this process, where ``whole`` has imported everything."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(verify, "Group", Fork)


def test_a_run_of_ones_own_passes(forked, capsys):
    words = ["stages=[prepare]", "verify.kills=1", f"verify.seed={SEED}", "run_dir=my run", "overwrite=true", "tracker=wandb"]
    assert command(["verify=resume", *words]) == 0
    said = capsys.readouterr()
    assert said.out == "PASS: killed once, the run left the same 4 files, byte by byte, as the\nrun that was not: my run\n"
    assert "verify: kill 1 of 1: in prepare" in said.err
    for name in ("records.jsonl", "rows/summary.json", "rows/train.arrow"):
        assert Path("my run/killed", name).read_bytes() == Path("my run/whole", name).read_bytes()
    found = json.loads(Path("my run/verify.json").read_text())
    assert (len(found["kills"]), found["seed"], found["files"], found["problems"]) == (1, SEED, 4, [])
    assert "prepare begins" in Path("my run/killed/log.txt").read_text().partition("prepare begins")[2]
    assert not Path("my run/killed/wandb").exists()


def test_a_run_that_draws_anew_each_time_fails(forked, tmp_path, capsys):
    (tmp_path / "wild_source.py").write_text(WILD)
    for part in ("whole", "killed", "cache"):  # of an earlier verification
        (tmp_path / "runs/verify" / part / "done").mkdir(parents=True)
    (tmp_path / "runs/verify/verify.json").write_text("{}")
    assert command(["verify=resume", "stages=[prepare]", "data._target_=wild_source.Wild", "verify.kills=0"]) == 1
    first, *files = capsys.readouterr().out.splitlines()
    assert first == "FAIL: killed 0 times, the run differs from the one that was not (runs/verify):"
    assert {line.partition(": differs from byte ")[0].strip() for line in files} >= {"records.jsonl", "rows/train.arrow"}
    assert len(json.loads(Path("runs/verify/verify.json").read_text())["problems"]) == len(files)
    assert not Path("runs/verify/cache").exists()


def test_a_run_that_fails_by_itself_is_not_compared(forked, capsys):
    assert command(["verify=resume", "data.path=nowhere"]) == 2
    assert "verify: the run itself does not end well" in capsys.readouterr().err
    assert not Path("runs/verify/killed").exists()


STARTER = """#!/bin/sh
exec 3>alive
sleep 1000 &
echo words >&2
echo "$@" >&3
wait
"""
"""a program that starts another one; the pipe is open as long as one of them lives"""


def test_what_a_run_started_is_killed_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("alive")
    Path("python").write_text(STARTER)
    Path("python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with Group(["seed=1"]) as process, open("alive") as alive:
        assert alive.readline() == "-m alignlab seed=1\n"
        assert process.poll() is None
        process.kill()
        assert alive.read() == ""
        assert process.wait() == -signal.SIGKILL
        assert process.words() == "words\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["verify=resum"], "verify: there is only verify=resume, not 'resum'."),
        (
            ["verify=resume", "verify.kils=3"],
            "verify.kils: verify has no such key (verify, verify.kills, verify.seed). Did you mean",
        ),
        (["verify=resume", "verify.kills=-1"], "verify.kills: must be a whole number, not '-1'."),
        (["verify=resume", "-m", "seed=0,1"], "verify: a sweep is several runs."),
        (["verify=resume", "run_dir=mine"], "run_dir: mine is not empty and holds no verification."),
    ],
)
def test_words_that_make_no_sense(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    assert command(words) == 2
    assert f"alignlab: {said}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.txt"]


# ---- instants


def test_instants_are_seeded_in_order_and_as_likely_in_any_stage():
    seconds = {START: 2.0, "prepare": 0.1, "train": 1000.0}
    assert instants(seconds, 9, 3) == instants(seconds, 9, 3) != instants(seconds, 9, 4)
    found = instants(seconds, 3000, 0)
    of = {stages: [after for who, after in found if who == stages] for stages in dict.fromkeys(who for who, _ in found)}
    assert list(of) == [(), ("prepare", "train"), ("train",)]
    for times, lasts in zip(of.values(), seconds.values(), strict=True):
        assert 900 < len(times) < 1100
        assert all(after >= 0 for after in times)
        assert 0.98 * lasts < sum(times) <= lasts  # each is counted from the one before


# ---- what is compared


def left(folder: Path, name: str, **changed: bytes | None) -> Path:
    """A run folder with two files and a folder that markers name, some of them changed or left out."""
    run = folder / name
    files = {"a.jsonl": b"12345", "adapter/b.bin": b"x" * 3_000_000, "adapter/c": b"", "log.txt": name.encode()}
    files["metrics.jsonl"] = b'{"step": 1, "loss": 0.5, "seconds": %d}\n' % len(name)
    for path, content in (files | {key.replace("__", "/").replace("_", "."): value for key, value in changed.items()}).items():
        if content is not None:
            (run / path).parent.mkdir(parents=True, exist_ok=True)
            (run / path).write_bytes(content)
    (run / "done").mkdir()
    (run / "done/one.json").write_text(json.dumps({"files": ["a.jsonl", "report.md"]}))
    (run / "done/two.json").write_text(json.dumps({"files": ["adapter", "metrics.jsonl"]}))
    return run


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"a_jsonl": b"12x45"}, "a.jsonl: differs from byte 2 on"),
        ({"a_jsonl": b"1234"}, "a.jsonl: differs from byte 4 on"),
        ({"adapter__b_bin": b"x" * 2_500_000 + b"y" + b"x" * 499_999}, "adapter/b.bin: differs from byte 2500000 on"),
        ({"adapter__c": None}, "adapter/c: only the run that was not killed has it"),
        ({"adapter__d": b""}, "adapter/d: should not be there"),
        ({"a_jsonl_tmp": b""}, "a.jsonl.tmp: was left behind"),
        ({"a_jsonl_partial": b""}, "a.jsonl.partial: was left behind"),
        (
            {"metrics_jsonl": b'{"step": 1, "loss": 0.25}\n'},
            "metrics.jsonl: step and loss are (1, 0.5) in the one and (1, 0.25) in the other",
        ),
        ({"metrics_jsonl": None}, "metrics.jsonl: step and loss are (1, 0.5) in the one and None in the other"),
    ],
)
def test_each_difference_is_named(changed, problem, tmp_path):
    whole = left(tmp_path, "whole")
    assert differences(whole, left(tmp_path, "the-same")) == (3, [])
    assert differences(whole, left(tmp_path, "other", **changed)) == (3, [problem])
    assert rubbish(whole) == []


# ---- signals


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 143)])
def test_a_signal_before_anything_is_under_way(name, status, tmp_path):
    """While the command line is read: sent by a module that a key names."""
    (tmp_path / "sending.py").write_text(f"import os, signal\nos.kill(os.getpid(), signal.{name})\n")
    read, write = os.pipe()
    if not (pid := os.fork()):
        os.dup2(write, 2)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        sys.path.insert(0, str(tmp_path))
        os._exit(command(["method._target_=sending.Method", f"run_dir={tmp_path / 'run'}"]))
    os.close(write)
    said = os.fdopen(read).read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status, said
    assert f"alignlab: stopped by {name}: " in said
    assert not (tmp_path / "run").exists()


def test_the_second_signal_ends_it_at_once():
    if not (pid := os.fork()):
        with Stop() as stop, stop.deferred():
            signal.raise_signal(signal.SIGINT)
            if stop.signal == signal.SIGINT:  # the first one is held back
                signal.raise_signal(signal.SIGINT)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    with pytest.raises(StoppedError), Stop():
        signal.raise_signal(signal.SIGTERM)
