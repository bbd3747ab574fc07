"""The demonstration of CUT, by the real command: what it learns, what it keeps, and what its baselines do not learn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import alignlab
from alignlab.api import RunFolder

ESSENTIALS = ["tracker=none", "hardware=cpu", "sample.model=after", "suite.bootstrap=50", "stages=[prepare,train,sample,evaluate]"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> RunFolder:
    """``method=cut`` with all that follows."""
    place = tmp_path_factory.mktemp("cut")
    stages = "stages=[prepare,train,sample,evaluate,report,export]"
    return alignlab.run(["method=cut", "tracker=none", "hardware=cpu", stages, f"run_dir={place / 'run'}"])


def test_it_learns_from_judgments_and_loses_nothing(whole):
    before, after = ({m: v[which]["value"] for m, v in whole.results.items()} for which in ("before", "after"))
    assert before["detection_f1"] > 0.85
    assert after["right"] > before["right"] + 0.3
    assert after["p_right"] > before["p_right"] + 0.2
    assert after["p_wrong"] < before["p_wrong"] / 2.5
    assert after["nll_satisfactory"] < before["nll_satisfactory"] + 0.05
    assert before["p_right_praised"] > 0.9  # what the judgments are worth to a model that reads them


def test_it_leaves_a_microscope_and_a_merged_model(whole):
    page = (whole.path / "microscope.html").read_text()
    assert page.count("<article") == 120
    assert "microscope.html" in (whole.path / "report.html").read_text()
    assert (whole.path / "plots/microscope-detection.png").stat().st_size > 10_000
    certificate = json.loads((whole.path / "export.json").read_text())
    assert (whole.path / "merged/model.safetensors").exists()
    assert certificate


@pytest.mark.parametrize(("method", "behind"), [("hindsight", 0.08), ("unlikelihood", 0.25)])
def test_baselines_do_not_learn_as_much(method: str, behind: float, whole: RunFolder, tmp_path: Path):
    """Hindsight learns from the few right answers alone what to say without a judgment; unlikelihood of every token destroys it."""
    run = alignlab.run([f"method={method}", *ESSENTIALS, f"run_dir={tmp_path / 'run'}"])
    assert run.results["right"]["after"]["value"] < whole.results["right"]["after"]["value"] - behind
    assert run.results["p_right"]["after"]["value"] < whole.results["p_right"]["after"]["value"] - behind
