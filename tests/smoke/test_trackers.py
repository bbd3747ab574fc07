"""Trackers through the real command: what reaches them, and that no fault of theirs reaches the run."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

import alignlab
from alignlab.records import read_jsonl

QUICK = ["train.max_steps=4", "train.save_every_steps=2", "suite.samples=5"]
KEY = "0123456789" * 4

MINE = """
import atexit
import os
import threading
from dataclasses import dataclass

BAD = os.environ["BAD"].split()


def act(call):
    if call in BAD:
        raise RuntimeError(f"{call} is broken, and the key is {os.environ['WANDB_API_KEY']}")
    if call + "-hangs" in BAD:
        atexit.register(threading.Event().wait)
        threading.Event().wait()
    if call + "-exits" in BAD:
        raise SystemExit(1)


@dataclass
class Mine:
    def ready(self):
        pass

    def start(self, folder, name, run_id, config):
        act("start")

    def scalars(self, step, values):
        act("scalars")

    def summary(self, figures, files):
        act("summary")

    def finish(self, failed):
        act("finish")
"""


def whole(folder: Path) -> bool:
    """Whether the run left all it promises."""
    names = ("metrics.jsonl", "adapter", "samples.jsonl", "results.json", "report.html", "done/report.json")
    return all((folder / name).exists() for name in names)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("start scalars summary finish", "failed in start (RuntimeError: start is broken, and the key is ***)"),
        ("scalars summary-exits finish", "failed in scalars (RuntimeError: scalars is broken"),
        ("start-hangs", "has not finished after 20 s and is left behind"),
        ("scalars-hangs", "has not finished after 20 s and is left behind"),
    ],
)
def test_a_tracker_that_fails_or_hangs_does_not_touch_the_run(cli, tmp_path, bad, words):
    (tmp_path / "mine.py").write_text(MINE)
    own = ["tracker=none", "tracker._target_=mine.Mine"]
    done = cli(*own, *QUICK, "run_dir=run", PYTHONPATH=str(tmp_path), BAD=bad, WANDB_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("tracker: ")]
    assert len(said) == 1
    assert words in said[0]
    assert said[0].endswith("The run goes on; all its figures are in run.")
    assert said[0] in (tmp_path / "run/log.txt").read_text()
    assert KEY not in done.stderr + (tmp_path / "run/log.txt").read_text()
    assert "Traceback" not in done.stderr
    assert "run folder" in done.stdout
    assert whole(tmp_path / "run")
    assert len(list(read_jsonl(tmp_path / "run/metrics.jsonl"))) == 4


def test_wandb_that_cannot_be_reached_does_not_touch_the_run(cli, tmp_path):
    done = cli("tracker=wandb", *QUICK, "run_dir=run", WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("tracker: Wandb ") == 1
    assert whole(tmp_path / "run")
    logged = [p.read_text(errors="replace") for p in (tmp_path / "run").rglob("*") if p.is_file() and p.suffix != ".safetensors"]
    assert not [text for text in (*logged, done.stderr, done.stdout) if KEY in text]


def test_what_a_tracker_needs_is_asked_for_before_anything_is_done(cli, tmp_path):
    (tmp_path / "hidden/tensorboard").mkdir(parents=True)
    (tmp_path / "hidden/tensorboard/__init__.py").write_text("raise ImportError('not here')")
    done = cli("tracker=tensorboard", "run_dir=run", PYTHONPATH=str(tmp_path / "hidden"))
    assert done.returncode == 3, done.stderr
    assert "pip install 'alignlab[tensorboard]'" in done.stderr
    done = cli("tracker=wandb", "run_dir=run", WANDB_API_KEY="", NETRC=str(tmp_path / "none"))
    assert done.returncode == 3, done.stderr
    assert "no wandb API key" in done.stderr
    assert not list((tmp_path / "run/done").glob("*.json"))


def interrupted(folder: Path, tracker: str) -> None:
    """A run cut off after step 4 with its last checkpoint at step 2, and continued."""
    command = [f"tracker={tracker}", *QUICK, "tracker.samples=2", f"run_dir={folder}"]
    alignlab.run([*command, "stages=[prepare,train]"])
    shutil.rmtree(folder / "checkpoints/step-4")
    (folder / "done/train.json").unlink()
    alignlab.run(command)


def wandb_records(path: Path) -> Iterator[object]:
    """Records of an offline run: chunks of at most 32 KiB blocks, each with its checksum, length and kind."""
    from wandb.proto import wandb_internal_pb2

    data, place, begun = path.read_bytes(), 7, b""  # after the file's own header
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        begun += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            record = wandb_internal_pb2.Record()
            record.ParseFromString(begun)
            begun = b""
            yield record


def test_wandb_holds_configuration_metrics_plots_and_samples_of_one_run(tmp_path):
    interrupted(tmp_path / "run", "offline")
    first, second = sorted((tmp_path / "run/wandb").glob("offline-run-*"), key=lambda p: p.stat().st_mtime_ns)
    records = [list(wandb_records(next(path.glob("*.wandb")))) for path in (first, second)]
    runs = [record.run for part in records for record in part if record.HasField("run")]
    assert {run.run_id for run in runs} == {(tmp_path / "run/done/tracker-id").read_text()}
    config = {item.key: json.loads(item.value_json) for item in runs[-1].config.update}
    assert config["train"]["max_steps"] == 4
    assert config["seed"] == 0
    rows = [
        {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
        for record in records[1]
        if record.HasField("history")
    ]
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert losses == {line["step"]: line["loss"] for line in read_jsonl(tmp_path / "run/metrics.jsonl") if line["step"] > 2}
    summary = {}
    for record in records[1]:
        if record.HasField("summary"):
            summary |= {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in record.summary.update}
    results = alignlab.RunFolder(tmp_path / "run").results
    assert summary["after/kl:held-out"] == results["kl:held-out"]["after"]["value"]
    media = {p.relative_to(second / "files").as_posix() for p in (second / "files/media").rglob("*") if p.is_file()}
    assert [name for name in media if name.startswith("media/images/training_") and name.endswith(".png")]
    table = json.loads(next((second / "files/media/table").glob("samples_*.json")).read_text())
    assert table["columns"] == ["model", "prompt", "sample", "text"]
    kept = [[s[c] for c in table["columns"]] for s in read_jsonl(tmp_path / "run/samples.jsonl") if s["sample"] < 2]
    assert table["data"] == kept
    assert len(kept) == 2 * 2 * 12


def test_tensorboard_shows_every_step_once_after_a_resume(tmp_path):
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    interrupted(tmp_path / "run", "tensorboard")
    assert len(list((tmp_path / "run/tensorboard").iterdir())) == 2
    events = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    lines = list(read_jsonl(tmp_path / "run/metrics.jsonl"))

    def values(tag: str) -> list[tuple[int, float]]:
        return [(e.step, pytest.approx(e.tensor_proto.float_val[0])) for e in events.Tensors(tag)]

    assert [(line["step"], line["loss"]) for line in lines] == values("loss")
    results = alignlab.RunFolder(tmp_path / "run").results
    assert [(4, results["kl"]["after"]["value"])] == values("results/after/kl")
    assert "max_steps: 4" in events.Tensors("config/text_summary")[-1].tensor_proto.string_val[0].decode()
    table = events.Tensors("samples/text_summary")[0].tensor_proto.string_val[0].decode().splitlines()
    assert table[0] == "| model | prompt | sample | text |"
    assert len(table) == 2 + 2 * 2 * 12
    sample = next(read_jsonl(tmp_path / "run/samples.jsonl"))
    assert table[2] == f"| before | {sample['prompt']} | 0 | {sample['text']} |"
    image = events.Tensors("plots/training")[0].tensor_proto.string_val
    assert image[2].startswith(b"\x89PNG")
