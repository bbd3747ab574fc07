"""Each stage killed or stopped at a random instant: the same command goes on, and leaves the same bytes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from forked import Forked
from small_runs import small_runs

import alignlab
from alignlab import pipeline
from alignlab.interrupt import begun, differences, kill_at
from alignlab.journal import SUFFIX
from alignlab.pipeline import Run
from alignlab.seeds import generator

KILLED = [
    *[("diffuse", stage) for stage in ("prepare", "score", "train", "sample", "evaluate", "report", "export")],
    *[(name, "prepare") for name in ("dpo", "delia", "conditioning")],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a run of each name that nothing disturbed, and their data."""
    folder = tmp_path_factory.mktemp("kills")
    for name in ("diffuse", "dpo", "delia", "conditioning"):
        stages = {"dpo": ["stages=[prepare,train]"], "diffuse": []}.get(name, ["stages=[prepare]"])
        alignlab.run([*words(folder, name, folder / name, folder / "cache"), *stages])
    alignlab.run([*words(folder, "diffuse", folder / "diffuse", folder / "cache"), "overwrite=true"])  # now that all is imported
    alignlab.run([*words(folder, "dpo", folder / "dpo", folder / "cache"), "stages=[score]", "score.model=both"])
    return folder


def words(folder: Path, name: str, run: Path, cache: Path) -> list[str]:
    cached = [f"data.cache={cache}"] if name in ("delia", "conditioning") else []
    both = ["score.model=both"] if name == "dpo" else []
    return [*small_runs(folder)[name], *cached, *both, "hardware=cpu", f"run_dir={run}"]


def without(whole: Path, stage: str, folder: Path) -> Path:
    """A copy of a run in which a stage is still to be done."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    marker = folder / f"done/{stage}.json"
    for name in [*json.loads(marker.read_text())["files"], "checkpoints" if stage == "train" else ""]:
        if name:
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    marker.unlink()
    return folder


@pytest.mark.parametrize(("name", "stage"), KILLED)
def test_killed_at_a_random_instant_a_stage_goes_on_to_the_same_bytes(name, stage, folder, tmp_path):
    whole, part, cache = folder / name, tmp_path / "part", tmp_path / "cache"
    command = [*words(folder, name, part, cache), f"stages=[{stage}]"]
    seconds = json.loads((whole / f"done/{stage}.json").read_text())["seconds"]
    seconds *= generator(0, "kill", name, stage).random()
    killed = False
    while not killed:  # a stage that was quicker this time is killed sooner the next
        since = (without(whole, stage, part) / "log.txt").stat().st_size
        shutil.rmtree(cache, ignore_errors=True)
        with Forked(command, tmp_path / "said") as process:
            killed = kill_at(process, part, ((stage,), seconds), since)
        seconds /= 2
    assert not (part / f"done/{stage}.json").exists()
    with Forked(command, tmp_path / "said") as process:
        assert process.wait() == 0, process.words()
    count, problems = differences(whole, part)
    assert problems == []
    assert count > 2
    assert not list(cache.rglob("*.tmp"))


STOPPED = [
    *[("prepare", "SIGUSR1", 143), ("score", "SIGINT", 130), ("train", "SIGTERM", 143), ("sample", "SIGUSR1", 143)],
    *[("evaluate", "SIGINT", 130), ("report", "SIGTERM", 143), ("export", "SIGINT", 130)],
]


@pytest.mark.parametrize(("stage", "name", "status"), STOPPED)
def test_a_signal_ends_any_stage_with_what_is_kept(stage, name, status, folder, tmp_path):
    whole, part = folder / "diffuse", tmp_path / "part"
    command = [*words(folder, "diffuse", part, tmp_path), f"stages=[{stage}]"]
    seconds = json.loads((whole / f"done/{stage}.json").read_text())["seconds"]
    seconds *= generator(0, "stop", stage).random()
    ended = 0
    while not ended:
        since = (without(whole, stage, part) / "log.txt").stat().st_size
        with Forked(command, tmp_path / "said") as process:
            while not begun(part, since):
                assert process.poll() is None, process.words()
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.send(name)
            ended = process.wait()
        seconds /= 2
    assert ended == status, process.words()
    *_, said = process.words().splitlines()
    assert said.startswith(f"alignlab: stopped by {name}: ")
    assert said.endswith(". The same command continues from there.")
    assert "kept" in said or "saved" in said
    assert not list(part.glob(".*.tmp"))


JOURNALS = [
    ("diffuse", "sample", "samples.jsonl", ["after"]),
    ("diffuse", "evaluate", "results.json", ["after"]),
    ("diffuse", "score", "scores.jsonl", ["before"]),
    ("dpo", "score", "scores.jsonl", ["after", "before"]),
    ("dpo", "prepare", "rows/train.arrow", ["before"]),
]


@pytest.mark.parametrize(("name", "stage", "file", "loaded"), JOURNALS)
def test_only_what_lacks_is_made(name, stage, file, loaded, folder, tmp_path, monkeypatch):
    whole, part = folder / name, tmp_path / "part"
    command = [*words(folder, name, part, tmp_path), f"stages=[{stage}]", "hardware.tokens_per_micro=256"]
    asked: list[str] = []
    load = Run.load
    monkeypatch.setattr(Run, "load", lambda self, which, *rest, **more: asked.append(which) or load(self, which, *rest, **more))
    monkeypatch.setattr(pipeline, "_clear", lambda run, files: None)  # as if it were killed before
    without(whole, stage, part)
    alignlab.run(command)
    expected, journal = (part / file).read_bytes(), part / (file + SUFFIX)
    content = journal.read_bytes()
    for share, models in ((0.75, loaded), (1.0, [])):
        without(part, stage, tmp_path / "again")
        shutil.rmtree(part)
        (tmp_path / "again").rename(part)
        journal.write_bytes(content[: int(share * len(content))])
        asked.clear()
        alignlab.run(command)
        assert asked == models
        assert (part / file).read_bytes() == expected
        assert journal.read_bytes() == content
