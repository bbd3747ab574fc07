"""The experiments of Diffuse, as data options: every shipped set, tasks alone and left out, open sets, biographies, sampling alone."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import alignlab
from alignlab.compose import CONF
from alignlab.records import read_jsonl

QUICK = ("tracker=none", "suite.bootstrap=5", "suite.samples=3", "suite.max_new_tokens=8", "stages=[prepare,train,sample,evaluate]")


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def value(results: dict, metric: str, which: str = "after") -> float:
    return results[metric][which]["value"]


@pytest.mark.parametrize("option", sorted(f.stem for f in (CONF / "data").glob("*.yaml") if "PromptFiles" in f.read_text()))
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
    printed = done.stdout.split("\nrun  ")[-1]
    assert max(map(len, printed.splitlines())) <= 80
    assert printed.split()[:2] == ["kl", "kl:held-out"]
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


@pytest.mark.parametrize("task", ["names", "countries", "dates", "fruits", "numbers", "occupations"])
def test_training_on_other_tasks_spreads_the_one_left_out(task: str, tmp_path: Path):
    """A tenth of the paper's passes; the figures of a whole run stand in docs/methods.md."""
    run = alignlab.run(["data=six-tasks", f"data.leave_out={task}", "train.epochs=5", *QUICK, f"run_dir={tmp_path}"])
    assert value(run.results, f"entropy:{task}") > value(run.results, f"entropy:{task}", "before") + 0.1
    assert value(run.results, "entropy:held-out") == value(run.results, f"entropy:{task}")


def test_early_stop_keeps_names_that_were_no_targets_and_the_whole_training_does_not(tmp_path: Path):
    beyond = {}
    for stop in ("true", "false"):
        folder = tmp_path / stop
        settings = ["data=names", f"method.early_stop={stop}", "train.lora=null", f"run_dir={folder}"]
        run = alignlab.run([*settings, *QUICK, "suite.samples=300"])
        targets = set(next(read_jsonl(folder / "records.jsonl"))["targets"])
        known = set(json.loads((folder / "details.json").read_text())["after"]["all-names/w1"]["targets"])
        drawn = {row["text"] for row in read_jsonl(folder / "samples.jsonl") if row["model"] == "after"}
        mass = value(run.results, "mass:all-names") - value(run.results, "mass:names")
        beyond[stop] = (len(run.metrics), len(drawn & known - targets), mass)
    (early_steps, early_names, early_mass), (steps, names, mass) = beyond["true"], beyond["false"]
    assert early_steps < steps == 100
    assert early_names >= 20 > 3 >= names
    assert early_mass > 0.05
    assert mass < 0.005


def test_biographies_are_measured_field_by_field(tmp_path: Path):
    overrides = ["data=biographies", "tracker=none", "suite.bootstrap=20", "suite.samples=200", f"run_dir={tmp_path}"]
    run = alignlab.run(overrides)
    assert value(run.results, "parsed", "before") > 0.85
    for field in ("first_name", "last_name", "gender", "birth_year", "birth_place"):
        assert value(run.results, f"{field}.entropy") > value(run.results, f"{field}.entropy", "before") + 0.2
    assert value(run.results, "birth_year.coverage", "before") < value(run.results, "birth_year.coverage")
    assert value(run.results, "text.diversity") > value(run.results, "text.diversity", "before")
    page = (tmp_path / "report.html").read_text()
    assert "birth place" in page
    assert "unigram diversity" in page
