"""The demonstration of DELIA: what common tuning loses, self-sampled diversity keeps. One seed; the study has five."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import alignlab

COMMON = ["method=delia", "tracker=none", "hardware=cpu", "train.save_every_steps=null"]


@pytest.fixture(scope="module")
def diverse(tmp_path_factory: pytest.TempPathFactory) -> alignlab.RunFolder:
    folder = tmp_path_factory.mktemp("delia")
    return alignlab.run([*COMMON, "train.max_steps=200", "train.probe_every_steps=50", f"run_dir={folder / 'run'}"])


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> alignlab.RunFolder:
    folder = tmp_path_factory.mktemp("common")
    few = ["data.diverse_ratio=0", "train.max_steps=100", "stages=[prepare,train,sample,evaluate]"]
    return alignlab.run([*COMMON, *few, f"run_dir={folder / 'run'}"])


def _after(run: alignlab.RunFolder, metric: str) -> float:
    return run.results[metric]["after"]["value"]


def test_diverse_answers_keep_what_common_tuning_loses(diverse, common):
    for run in (diverse, common):
        assert _after(run, "format:seen") >= 0.9
        assert run.results["format:seen"]["before"]["value"] == 0
    assert _after(common, "balanced_accuracy") <= 0.6, "it formats whatever it is told"
    assert _after(diverse, "balanced_accuracy") >= 0.75
    assert _after(diverse, "format:not-other") >= 0.95 > _after(common, "format:not-other")


def test_the_probes_tell_what_the_token_came_to_mean(diverse):
    measured = [row for row in diverse.metrics if "<sep>/nearest" in row]
    assert [row["step"] for row in measured] == [50, 100, 150, 200]
    assert measured[-1]["<sep>/nearest"].split(",")[0].split()[0] == "\u0120dict"
    assert measured[-1]["important/nll"] < 0.05
    assert all(-1 <= row["gradient/cosine"] <= 1 for row in measured)
    report = (diverse.path / "report.md").read_text()
    assert "\u0120dict" in report
    drawn = {path.name for path in (diverse.path / "plots").glob("probe-*.png")}
    assert drawn == {"probe-0.png", "probe-0b.png", "probe-1.png", "probe-2.png"}  # 0b: tokens that are only read


def test_what_the_model_answered_is_kept_in_the_authors_format(diverse):
    rows = [json.loads(line) for line in (diverse.path / "self_samples.jsonl").read_text(encoding="utf-8").splitlines()]
    shipped = Path(alignlab.__file__).parent / "shipped/named-formats/queries.jsonl"
    queries = [json.loads(line)["messages"][0] for line in shipped.read_text().splitlines()]
    dropped = (diverse.path / "self_samples_dropped.jsonl").read_text().splitlines()
    assert len(rows) + len(dropped) == len(queries)
    assert all([turn["role"] for turn in row["messages"]] == ["user", "assistant"] for row in rows)
    assert {row["messages"][0]["content"] for row in rows} <= {query["content"] for query in queries}
    learned = [json.loads(line) for line in (diverse.path / "records.jsonl").read_text().splitlines()]
    assert sum(row["origin"] == "diverse" for row in learned) == len(rows) <= 1000
    assert sum(row["origin"] == "downstream" for row in learned) == 100
