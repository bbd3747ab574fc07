"""docs/extending.md, word for word."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from alignlab.records import read_jsonl

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs/extending.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)


@pytest.fixture
def package(tmp_path) -> Path:
    (tmp_path / "mymethods.py").write_text(_blocks("python")[0])
    (tmp_path / "conf/method").mkdir(parents=True)
    (tmp_path / "conf/method/likeliest.yaml").write_text(_blocks("yaml")[0])
    return tmp_path


def test_a_method_of_a_users_own_runs_through_all_stages(package):
    command = _blocks("sh")[0].strip().replace("python -m", f"{sys.executable} -m")
    done = subprocess.run(
        ["bash", "-c", f"{command} data=binomial suite.samples=100 tracker=none run_dir=run"],
        cwd=package,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    metrics = list(read_jsonl(package / "run/metrics.jsonl"))
    assert metrics[-1]["loss"] < 0.7 * metrics[0]["loss"]
    assert "accuracy_bound" in metrics[0]
    # the likeliest of a binomial of ten is five
    after = [row["text"] for row in read_jsonl(package / "run/samples.jsonl") if row["model"] == "after"]
    before = [row["text"] for row in read_jsonl(package / "run/samples.jsonl") if row["model"] == "before"]
    assert after.count("{5}") / len(after) > 0.9 > before.count("{5}") / len(before)


def test_the_parts_work_without_hydra(capsys):
    exec(compile(_blocks("python")[1], "extending.md", "exec"), {})
    assert capsys.readouterr().out.count("-") >= 3
