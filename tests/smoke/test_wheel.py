"""What `pip install .` gives: the package, its configuration, its model and its data, from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_wheel_holds_all_that_a_run_needs(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path / "out"), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    wheel = next((tmp_path / "out").glob("alignlab-*.whl"))
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    shipped = {p.relative_to(site).as_posix() for p in site.rglob("*") if p.is_file()}
    for folder, pattern in (("conf", "conf/**/*.yaml"), ("alignlab/shipped", "alignlab/shipped/**/*.json")):
        ours = {p.relative_to(ROOT).as_posix() for p in ROOT.glob(pattern)}
        assert ours, folder
        assert {f"alignlab/{name}" if folder == "conf" else name for name in ours} <= shipped
    assert {"alignlab/models/tiny/model.safetensors", "alignlab/prompts/plain.jinja"} <= shipped
    assert any(name.endswith("entry_points.txt") for name in shipped)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", "import alignlab.__main__ as m; m.main()", "debug=one-step", "tracker=none", "run_dir=run"],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "run/results.json").exists()
    assert str(site) in (elsewhere / "run/adapter/adapter_config.json").read_text()  # the wheel's own model, not the checkout's
