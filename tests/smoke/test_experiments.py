"""The experiments of Diffuse, as data options: every shipped set, tasks alone and left out, open sets, biographies, sampling alone."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import alignlab
from alignlab.compose import CONF
from alignlab.records import read_jsonl

QUICK = ("tracker=none", "suite.bootstrap=5", "suite.samples=3", "stages=[prepare,train,sample,evaluate]")


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def value(results: dict, metric: str, which: str = "after") -> float:
    return results[metric][which]["value"]


@pytest.mark.parametrize("option", sorted(file.stem for file in (CONF / "data").glob("*.yaml")))
def test_every_shipped_set_trains_and_is_evaluated(option: str, tmp_path: Path):
    run = alignlab.run([f"data={option}", "train.max_steps=1", *QUICK, f"run_dir={tmp_path}"])
    records = list(read_jsonl(tmp_path / "records.jsonl"))
    trained = {record["name"] for record in records}
    assert trained
    assert not any(record["held_out"] for record in records)
    details = json.loads((tmp_path / "details.json").read_text())["after"]
    assert {name for name, detail in details.items() if detail["trained"]} == trained
    for name, detail in details.items():
        if "targets" in detail:
            assert math.isfinite(value(run.results, f"kl/{name}"))
            tails = [found["value"] for found in run.results.get(f"fit_p/{name}", {}).values()]
            assert all(0 <= tail <= 1 for tail in tails)
            assert len(tails) == sum(found["value"] > 0 for found in run.results[f"valid/{name}"].values())
        else:
            assert f"parsed/{name}" in run.results


def test_six_tasks_alone_and_all_but_one(tmp_path: Path):
    six = {"names", "countries", "dates", "fruits", "numbers", "occupations"}
    for chosen, trained in (
        ("only=fruits", {"fruits"}),
        ("leave_out=numbers", six - {"numbers"}),
        ("only=[names,dates]", {"names", "dates"}),
    ):
        folder = tmp_path / chosen
        alignlab.run(["data=six-tasks", f"data.{chosen}", "train.max_steps=1", *QUICK, f"run_dir='{folder}'"])
        assert {record["name"].split("/")[0] for record in read_jsonl(folder / "records.jsonl")} == trained
        results = results_of(folder)
        assert {key.removeprefix("kl:") for key in results if key.startswith("kl:")} == six | {"trained", "held-out"}
        prompts = [key for key in results if key.startswith("kl/numbers/")]
        assert value(results, "kl:numbers") == pytest.approx(sum(value(results, key) for key in prompts) / len(prompts))


def test_a_sweep_compares_the_tasks_that_were_left_out(cli, tmp_path: Path):
    done = cli("-m", "data=six-tasks", "data.leave_out=fruits,names", "train.max_steps=1", *QUICK)
    assert done.returncode == 0, done.stderr
    table = json.loads(next((tmp_path / "runs").glob("sweep-*/table.json")).read_text())
    assert set(table) == {"data.leave_out=fruits", "data.leave_out=names"}
    for row in table.values():
        assert {"entropy:held-out", "entropy"} <= set(row)


def test_sampling_alone_has_its_own_counts_precision_and_file(cli, tmp_path: Path):
    trained = cli("data=binomial", "train.max_steps=2", "tracker=none", "suite.samples=4", "suite.bootstrap=5", "run_dir=run")
    assert trained.returncode == 0, trained.stderr
    first = (tmp_path / "run" / "samples.jsonl").read_bytes()
    more = ("data=binomial", "train.max_steps=2", "tracker=none", "run_dir=run", "stages=[sample]", "suite.samples=7")
    done = cli(
        *more, "sample.file=more.jsonl", "sample.model=after", "sample.dtype=bfloat16", "suite.max_new_tokens=2", "sampler.rows=3"
    )
    assert done.returncode == 0, done.stderr
    rows = list(read_jsonl(tmp_path / "run" / "more.jsonl"))
    assert len(rows) == 7 * 6
    assert {row["model"] for row in rows} == {"after"}
    assert {row["finish"] for row in rows} == {"length"}  # two tokens are too few for a number in braces
    assert (tmp_path / "run" / "samples.jsonl").read_bytes() == first
    adapter = cli(
        "data=binomial", "model.adapter=run/adapter", "stages=[sample]", "tracker=none", "suite.samples=4", "run_dir=again"
    )
    assert adapter.returncode == 0, adapter.stderr
    before = list(read_jsonl(tmp_path / "again" / "samples.jsonl"))
    after = [row | {"model": "before"} for row in read_jsonl(tmp_path / "run" / "samples.jsonl") if row["model"] == "after"]
    assert before == after
    untrained = cli("data=binomial", "stages=[sample]", "tracker=none", "sample.model=after", "run_dir=none")
    assert untrained.returncode == 2
    assert untrained.stderr.startswith("alignlab: sample.model: after, and none holds no trained model.")
