"""Where each configuration value came from."""

from __future__ import annotations

import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from alignlab.compose import CONF, compose
from alignlab.provenance import leaves, read_provenance, source_of, sources, write_provenance


def found(*overrides: str) -> dict[str, str]:
    return sources(overrides)


@pytest.mark.parametrize("overrides", [[], ["data=fruits", "debug=overfit"], ["model=gpt2", "hardware=cpu", "tracker=none"]])
def test_every_value_stands_in_the_file_that_is_named(overrides):
    node, _ = compose(overrides)
    where = found(*overrides)
    for key, value in leaves(OmegaConf.to_container(node)):
        source = source_of(key, where)
        content = OmegaConf.load(CONF / f"{source}.yaml")
        inside = key if OmegaConf.select(content, key) is not None or source == "config" else key.partition(".")[2]
        assert OmegaConf.select(content, inside) == value, (key, source)


def test_the_last_writer_wins():
    assert found()["train.lr"] == "recipe/diffuse-tiny"
    assert found("model=gpt2")["train.lr"] == "method/diffuse"
    assert found("debug=overfit")["train.epochs"] == "debug/overfit"
    assert found("debug=overfit", "train.epochs=3")["train.epochs"] == "command line"
    assert found()["train.schedule"] == "method/diffuse"
    assert found()["train.max_steps"] == "train/default"
    assert found()["seed"] == "config"
    assert found("data=binomial")["data.path"] == "data/binomial"


def test_the_command_line_writes_keys_mappings_and_nothing():
    where = found("train.lora={rank: 2}", "++train.lr=1", "hydra.verbose=false", "~method.gamma", "+method.more=1", "data=fruits")
    assert where["train.lora.rank"] == where["train.lr"] == where["method.more"] == "command line"
    assert where["train.lora.alpha"] == "method/diffuse"
    assert not [key for key in where if key.startswith("hydra")]
    assert "data" not in where
    assert source_of("train.lora.rank", found("train.lora=null") | {"train.lora.rank": "x"}) == "x"
    assert found("train.lora=null")["train.lora"] == "command line"


def test_a_folder_of_a_user_s_own_is_searched(tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method/mine.yaml").write_text("# @package _global_\nmethod: {_target_: mine.Mine}\ntrain: {lr: 7}\n")
    where = found(f"hydra.searchpath=[file://{tmp_path}]", "method=mine")
    assert where["train.lr"] == where["method._target_"] == "method/mine"


def test_what_lies_in_a_value_has_its_source_and_what_nobody_wrote_is_alignlab_s():
    assert source_of("data.path.x", {"data.path": "data/fruits"}) == "data/fruits"
    assert source_of("run_dir", {}) == "alignlab"


def test_a_folder_keeps_every_command_and_the_sources_of_the_last(tmp_path):
    assert read_provenance(tmp_path) == {"commands": [], "sources": {}}
    node = OmegaConf.create({"seed": 1, "run_dir": "runs/x", "train": {"lr": 1}})
    write_provenance(tmp_path, node, {"train.lr": "command line", "run_dir": "config", "seed": "config"}, ["a"])
    write_provenance(tmp_path, node, {"train.lr": "method/diffuse", "seed": "command line"}, ["b"])
    write_provenance(tmp_path, node, {"train.lr": "method/diffuse", "seed": "config", "run_dir": "command line"}, ["a"])
    there = read_provenance(tmp_path)
    assert there["commands"] == [["b"], ["a"]]
    assert there["sources"] == {"seed": "config", "run_dir": "command line", "train.lr": "method/diffuse"}


def test_torch_is_not_needed():
    program = "import sys; from alignlab.provenance import sources; assert sources([]); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"
