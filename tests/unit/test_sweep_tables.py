"""What a sweep leaves: the table of its runs, and model x condition of misalignment."""

from __future__ import annotations

import csv
import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from alignlab.api import RunFolder
from alignlab.records import write_json, write_text
from alignlab.report.across import across, models
from alignlab.report.document import Image, Table, Text, flat
from alignlab.report.sweep import write_sweep

LEXICON = {"_target_": "alignlab.labellers.lexicon.Lexicon", "words": {"rude": ["fool"], "pos": ["good"], "neg": ["bad"]}}
TOX = {"title": "toxicity", "tokens": {"nontoxic": "<n>", "toxic": "<t>"}, "wanted": "nontoxic", "labeller": LEXICON}
SEN = {"title": "sentiment", "tokens": {"pos": "<p>", "neg": "<m>"}, "wanted": "pos", "labeller": LEXICON}
TOX |= {"score": "rude", "threshold": 0.0, "tie": None}
SEN |= {"score": None, "threshold": None, "tie": "neg"}
CONFIG: dict[str, Any] = {
    "method": {"variant": "none"},
    "data": {"sentences": None, "attributes": {"tox": TOX, "sen": SEN}},
    "suite": {"variant": "none", "seed": 0, "attributes": {"tox": TOX, "sen": SEN}, "top_p": 0.7},
    "train": {"max_steps": None, "lr": 0.1},
    "sample": {"step": None},
    "seed": 0,
    "run_dir": None,
}


def run(folder: Path, variant: str, shares: dict[str, float], seed: int = 0, **settings: Any) -> RunFolder:
    """A run folder with figures of the trained model, and others of the untrained one."""
    config = deepcopy(CONFIG) | {"seed": seed, "run_dir": str(folder)}
    config["suite"]["seed"] = seed
    for group in ("method", "suite"):
        config[group]["variant"] = variant
    for key, value in settings.items():
        group, _, name = key.partition("__")
        config[group][name] = value
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    before = {"value": 0.99, "low": 0.98, "high": 1.0, "n": 9}
    results = {
        key: {"before": before, "after": {"value": v, "low": v - 0.01, "high": v + 0.02, "n": 9}} for key, v in shares.items()
    }
    write_json(folder / "results.json", results)
    return RunFolder(folder)


BASE = {"misalignment": 0.6, "misalignment_toxicity:none": 0.3, "misalignment_sentiment:none": 0.5, "misalignment_joint:none": 0.6}
BOTH = BASE | {"misalignment": 0.4, "misalignment_toxicity:nontoxic": 0.2, "misalignment_joint:nontoxic+pos": 0.4, "kl/p": 1.0}


def tables(blocks: Any) -> dict[str, list[list[str]]]:
    return {block.header[0]: [list(row) for row in block.rows] for block in flat(blocks) if isinstance(block, Table)}


def test_models_stand_against_conditions(tmp_path):
    runs = [
        run(tmp_path / "ts", "toxsen", BOTH),
        run(tmp_path / "s", "sen", BASE | {"misalignment_sentiment:pos": 0.38}),
        run(tmp_path / "b", "none", BASE),
        run(tmp_path / "t", "tox", BASE | {"misalignment_toxicity:nontoxic": 0.235}),
    ]
    blocks = across(runs, tmp_path)
    found = tables(blocks)
    assert list(found) == ["toxicity", "sentiment", "joint"]
    assert [row[0] for row in found["joint"]] == ["M-B", "M-T", "M-S", "M-TS"]
    assert found["toxicity"][1] == ["M-T", "30.0 [29.0, 32.0]", "23.5 [22.5, 25.5]"]
    assert found["toxicity"][2] == ["M-S", "30.0 [29.0, 32.0]", "-"]
    assert found["sentiment"][2][2] == "38.0 [37.0, 40.0]"
    assert found["joint"][3] == ["M-TS", "60.0 [59.0, 62.0]", "40.0 [39.0, 42.0]"]
    headers = [block.header for block in blocks if isinstance(block, Table)]
    assert headers[2] == ["joint", "no condition", "nontoxic+pos"]
    assert not [block for block in blocks if isinstance(block, Image)]
    with (tmp_path / "misalignment.csv").open(newline="") as file:
        rows = {(r["model"], r["condition"], r["metric"]): r for r in csv.DictReader(file)}
    assert float(rows["M-TS", "nontoxic+pos", "misalignment_joint"]["value"]) == 0.4
    assert len(rows) == 4 + 5 + 5 + 6
    assert max(map(len, blocks[2].plain().splitlines())) <= 80  # type: ignore[union-attr]


def test_seeds_are_averaged_and_other_settings_are_not(tmp_path):
    runs = [run(tmp_path / f"b{s}", "none", {"misalignment_joint:none": v}, s) for s, v in enumerate((0.5, 0.6, 0.7))]
    runs += [run(tmp_path / f"ts{s}-{lr}", "toxsen", BOTH, s, train__lr=lr) for s in (0, 1) for lr in (0.1, 0.2)]
    found = models(runs)
    assert [model.name for model in found] == ["M-B (3 seeds)", "M-TS train.lr=0.1 (2 seeds)", "M-TS train.lr=0.2 (2 seeds)"]
    value = found[0].figures["misalignment_joint:none"]
    assert (value.value, value.n) == (pytest.approx(0.6), 3)
    assert value.high - value.value == pytest.approx(4.303 * 0.1 / 3**0.5)
    joint = tables(across(runs, tmp_path))["joint"]
    assert joint[0][1] == "60.0 [35.2, 84.8]"
    assert joint[1][1:] == ["60.0 [59.3, 61.4]", "40.0 [39.3, 41.4]"]  # of two alike: their own, over the root of 2


def test_settings_that_differ_alike_are_named_once(tmp_path):
    runs = [run(tmp_path / f"{p}", "tox", BASE, suite__top_p=p, data__copy=p) for p in (0.7, 0.99)]
    assert [model.name for model in models(runs)] == ["M-T data.copy=0.7", "M-T data.copy=0.99"]


def test_a_series_is_drawn_against_the_size_of_the_data(tmp_path):
    shares = {100: 0.68, 200: 0.55, 400: 0.49}
    runs = [run(tmp_path / f"{n}", "toxsen", BOTH | {"misalignment": v}, data__sentences=n) for n, v in shares.items()]
    runs.append(run(tmp_path / "b", "none", BASE))
    (image,) = [block for block in across(runs, tmp_path / "out") if isinstance(block, Image)]
    assert image.alt.endswith("M-TS 100: 68.0, 200: 55.0, 400: 49.0.")
    assert "against data.sentences" in image.alt
    assert image.path.stat().st_size > 5000
    points = [run(tmp_path / f"c{n}", "toxsen", BOTH, sample__step=n) for n in (1188, 2376)]
    (image,) = [block for block in across(points, tmp_path) if isinstance(block, Image)]
    assert "against sample.step" in image.alt
    steps = [run(tmp_path / f"s{n}", "toxsen", BOTH, train__max_steps=n) for n in (1, None)]
    assert not [block for block in across(steps, tmp_path) if isinstance(block, Image)]  # one point is no series


@dataclass
class Suite:
    """With something to say of several runs."""

    objective: str = "kl"

    def across(self, runs: Any, folder: Path) -> list[Any]:
        write_text(folder / "mine.txt", "x")
        return [Text(" and ".join(f"{name}: {run.results['kl']['after']['value']}" for name, run in runs)), Table(["a"], [["b"]])]


def job(name: str, suite: Any, **values: float) -> tuple[list[str], Path, Any]:
    results = {key: {"after": {"value": v, "low": v, "high": v, "n": 1}} for key, v in values.items()}
    write_json(Path(name) / "results.json", results)
    return ["common=1", f"seed={name}"], Path(name), suite


def test_a_sweep_compares_its_runs_and_asks_their_suite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = [
        job("0", Suite(), entropy=2.0, kl=0.5, **{"kl/p": 1.0, "kl:task": 3.0, "kl:held-out": 0.7}),
        (["seed=9"], Path("9"), Suite()),
    ]
    jobs.append(job("1", Suite(), entropy=2.5, kl=0.25, **{"kl:held-out": 0.8}))
    found, place = write_sweep(jobs)
    assert [table.header for table in found] == [["run", "kl", "kl:held-out", "entropy"], ["a"]]
    assert found[0].rows == [["common=1 seed=0", "0.5", "0.7", "2"], ["common=1 seed=1", "0.25", "0.8", "2.5"]]
    page = place.read_text()
    assert "common=1 seed=0: 0.5 and common=1 seed=1: 0.25" in page
    assert "![kl](plot.png)" in page
    assert (place.parent / "mine.txt").exists()
    assert json.loads((place.parent / "table.json").read_text())["common=1 seed=1"]["kl"]["value"] == 0.25


def test_suites_that_are_not_alike_are_not_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = SimpleNamespace(objective=None)
    found, _ = write_sweep([job("0", Suite(), kl=0.5), job("1", plain, kl=0.25)])
    assert len(found) == 1
    assert [row[0] for row in found[0].rows] == ["seed=0", "seed=1"]
    assert write_sweep([([], Path("none"), plain)]) is None
    found, place = write_sweep([job("2", plain, **{"kl/p": 1.0})])  # nothing holds for all prompts
    assert (found[0].header, place.with_name("plot.png").exists()) == (["run"], False)
