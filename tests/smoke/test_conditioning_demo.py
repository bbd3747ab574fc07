"""The demonstration of control tokens, by the real command: a sweep over two variants, on the settings that ship."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignlab.api import RunFolder


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    import os
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("conditioning")
    command = [sys.executable, "-m", "alignlab", "-m", "method=conditioning", "method.variant=none,toxsen", "tracker=none"]
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"ALIGNLAB_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    runs = {name: RunFolder(next(folder.glob(f"runs/*variant={name}*"))) for name in ("none", "toxsen")}
    return done, runs, folder


def test_two_tokens_condition_where_the_plain_model_does_not(swept):
    _, runs, _ = swept
    plain = runs["none"].results["misalignment_joint:none"]["after"]
    both = runs["toxsen"].results["misalignment_joint:nontoxic+pos"]["after"]
    assert both["value"] <= plain["value"] - 0.15
    assert both["high"] < plain["low"]
    assert runs["toxsen"].results["misalignment_toxicity:toxic"]["after"]["value"] > 0.5, "the opposite is obeyed, too"
    perplexity = {name: run.results["perplexity"]["after"]["value"] for name, run in runs.items()}
    assert perplexity["toxsen"] < 1.1 * perplexity["none"]
    assert runs["toxsen"].results["perplexity_true_tokens"]["after"]["value"] < 1.1 * perplexity["none"]


def test_the_table_is_that_of_the_report(swept):
    done, _, folder = swept
    table = next(folder.glob("runs/sweep-*/table.md")).read_text()
    assert "M-B" in table
    assert "M-TS" in table
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_second_run_labels_nothing_again(swept):
    done, _, _ = swept
    assert done.stderr.count("documents, 2590 sentences") <= 1


def test_rows_differ_in_control_tokens_alone(swept):
    _, runs, _ = swept
    summaries = [json.loads((run.path / "rows/summary.json").read_text())["train"] for run in runs.values()]
    assert summaries[0]["rows"] == summaries[1]["rows"]
    assert summaries[0]["tokens"] < summaries[1]["tokens"]
    assert (Path(runs["none"].path) / "records.jsonl").read_bytes() == (Path(runs["toxsen"].path) / "records.jsonl").read_bytes()


def test_the_report_says_which_choices_are_not_good_practice(swept):
    _, runs, _ = swept
    text = (runs["toxsen"].path / "report.md").read_text()
    assert "Choices that differ from good practice" in text
    assert (runs["toxsen"].path / "plots/misalignment.csv").exists()
