"""Bases of 8 and 4 bits through the real stages."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from families import build
from safetensors.torch import load_file

import alignlab
from alignlab import MissingError, RunFolder, UserError

BITS = ["8bit", "4bit"]
STAGES = "stages=[prepare,train,sample,evaluate]"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    build("llama3", folder / "m", hidden=64)
    (folder / "w.json").write_text(json.dumps({"request": "Pick a number.", "targets": ["{1}", "{2}"]}))
    return folder


def run(root: Path, bits: str, *overrides: str) -> RunFolder:
    quick = ["train.lr=0.01", "train.epochs=4", "train.save_every_steps=2", "suite.samples=20", "suite.max_new_tokens=8"]
    where = ["model=local", f"model.path={root}/m", f"data.path={root}/w.json", f"run_dir={root}/{bits}", "tracker=none"]
    return alignlab.run([*where, *quick, "suite.bootstrap=10", f"model.quantization={bits}", STAGES, *overrides])


@pytest.fixture(scope="module")
def runs(root: Path) -> dict[str, RunFolder]:
    return {bits: run(root, bits) for bits in ("null", *BITS)}


@pytest.mark.parametrize(("bits", "share"), [("8bit", 0.02), ("4bit", 0.1)])
def test_losses_are_those_of_the_unquantised_base_but_for_rounding(bits: str, share: float, runs: dict[str, RunFolder]):
    exact, rounded = ([row["loss"] for row in runs[name].metrics] for name in ("null", bits))
    assert exact[-1] < 0.7 * exact[0]
    assert rounded == pytest.approx(exact, rel=share)
    assert rounded != exact
    for which in ("before", "after"):
        values = [runs[name].results["kl"][which]["value"] for name in ("null", bits)]
        assert values[1] == pytest.approx(values[0], rel=share)


@pytest.mark.parametrize("bits", BITS)
def test_every_layer_learns(bits: str, runs: dict[str, RunFolder]):
    """Fresh adapters begin with B = 0: without a gradient it stays so."""
    adapter = load_file(runs[bits].path / "adapter/adapter_model.safetensors")
    grown = {name for name, tensor in adapter.items() if "lora_B" in name and tensor.abs().max() > 0}
    assert len(grown) == 2 * 7
    log = (runs[bits].path / "log.txt").read_text()
    whole = (runs["null"].path / "log.txt").read_text().split("train: ")[1].split(" parameters")[0]
    assert f"train: {whole} parameters" in log  # packed weights are counted one by one
    assert "segments attention" in log


@pytest.mark.parametrize("bits", BITS)
def test_a_run_that_was_cut_off_ends_with_the_same_bytes(bits: str, root: Path, runs: dict[str, RunFolder]):
    files = ["adapter/adapter_model.safetensors", "samples.jsonl", "results.json"]
    before = [(runs[bits].path / file).read_bytes() for file in files]
    shutil.rmtree(runs[bits].path / "checkpoints/step-4")
    (runs[bits].path / "done/train.json").unlink()
    assert "goes on from step 2" not in (runs[bits].path / "log.txt").read_text()
    run(root, bits)
    assert "goes on from step 2" in (runs[bits].path / "log.txt").read_text()
    assert [(runs[bits].path / file).read_bytes() for file in files] == before


@pytest.mark.parametrize("bits", BITS)
def test_export_gives_an_unquantised_model(bits: str, root: Path, runs: dict[str, RunFolder]):
    run(root, bits, "stages=[export]")
    assert "unquantised" in (runs[bits].path / "log.txt").read_text()
    merged = runs[bits].path / "merged"
    assert "quantization_config" not in json.loads((merged / "config.json").read_text())
    certificate = json.loads((runs[bits].path / "export.json").read_text())
    assert certificate["merged_and_adapter"]["max_total_variation"] < 1e-4
    assert certificate["merged_and_quantised"]["max_total_variation"] > 1e-3
    again = alignlab.run(
        ["model=local", f"model.path={merged}", f"data.path={root}/w.json", f"run_dir={root}/merged-{bits}", "stages=[score]"]
    )
    assert again.scores[0]["loss"] == pytest.approx(runs[bits].metrics[-1]["loss"], rel=0.3)
    assert again.scores[0]["loss"] < 0.7 * runs[bits].metrics[0]["loss"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.lora=null"], "model.quantization: a quantised base cannot be trained whole. Give train.lora"),
        (["model=tiny", "model.weights=random"], "model.quantization: only weights that are read can be quantised"),
        (["model.dtype=float64"], "model.quantization: its kernels do not compute in float64; take another model.dtype."),
        (["sample.dtype=float64"], "sample.dtype: a quantised base does not compute in float64."),
        (["model.quantization=3bit"], "model.quantization: must be one of 8bit, 4bit, not '3bit'."),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_cannot_be_quantised_is_refused(overrides: list[str], words: str, root: Path, tmp_path: Path):
    with pytest.raises(UserError) as caught:
        run(root, "4bit", f"run_dir={tmp_path}/out", *overrides)
    assert str(caught.value).startswith(words)
    assert caught.value.status == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bits", BITS)
def test_without_the_package_its_extra_is_named(bits: str, root: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as Python marks a module that cannot be imported
    with pytest.raises(MissingError) as caught:
        run(root, bits, f"run_dir={tmp_path}/out")
    assert str(caught.value).endswith("Install it: pip install 'alignlab[quant]'.")
    assert caught.value.status == 3
    assert not (tmp_path / "out/rows").exists()
