"""The real command, end to end, as a user types it."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

import alignlab
from alignlab.records import read_jsonl


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The default command, with every stage there is."""
    folder = tmp_path_factory.mktemp("demo")
    stages = "stages=[prepare,score,train,sample,evaluate,report,export]"
    command = [sys.executable, "-m", "alignlab", stages, "run_dir=run", "score.tokens=true"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "run", done


def test_collapsed_choices_become_the_asked_distribution(demo):
    results = alignlab.RunFolder(demo[0]).results
    for group in (":trained", ":held-out"):
        assert results[f"sampled_entropy{group}"]["before"]["value"] <= 1.5
        assert results[f"sampled_entropy{group}"]["after"]["value"] >= 2.27
        assert results[f"kl{group}"]["after"]["value"] <= 0.03
        assert results[f"mass{group}"]["after"]["value"] >= 0.98
    assert sum(name.startswith("kl/") for name in results) == 12


def test_the_run_folder_holds_what_was_promised(demo):
    folder, _ = demo
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*")}
    promised = """config.yaml environment.json records.jsonl metrics.jsonl adapter/adapter_model.safetensors adapter/adapter_config.json
        samples.jsonl results.json report.html report.md plots/training.png scores.jsonl log.txt merged/model.safetensors"""
    assert set(promised.split()) <= files
    assert not [name for name in files if name.endswith(".tmp")]
    lines = list(read_jsonl(folder / "metrics.jsonl"))
    assert [row["step"] for row in lines] == list(range(1, len(lines) + 1))
    assert {"step", "epoch", "loss", "lr", "grad_norm", "tokens", "tokens_per_second", "seconds", "floor"} <= set(lines[0])
    samples = list(read_jsonl(folder / "samples.jsonl"))
    assert len(samples) == 2 * 12 * 1000
    assert set(samples[0]) == {"model", "prompt", "sample", "text", "finish"}
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["packages"]["torch"]
    assert environment["choices"]["method"] == "diffuse"


def test_the_table_fits_a_terminal_and_says_what_results_json_says(demo):
    folder, done = demo
    table = done.stdout
    assert max(map(len, table.splitlines()[:20])) <= 80
    results = alignlab.RunFolder(folder).results
    line = next(line for line in table.splitlines() if line.startswith("kl, held out"))
    shown = [float(x) for x in re.findall(r"\d+\.\d+", line)]
    found = results["kl:held-out"]
    assert shown == [pytest.approx(found[which]["value"], abs=1e-4) for which in ("before", "after")]
    assert f"{found['after']['value']:.4f}" in (folder / "report.md").read_text()


def test_scores_are_a_line_per_prompt_with_the_loss_of_the_untrained_model(demo):
    folder, _ = demo
    scores = alignlab.RunFolder(folder).scores
    assert [s["index"] for s in scores] == list(range(12))
    assert {s["model"] for s in scores} == {"before"}
    results = alignlab.RunFolder(folder).results
    for score, name in zip(scores, sorted(n for n in results if n.startswith("kl/")), strict=True):
        assert score["loss"] - math.log(10) == pytest.approx(results[name]["before"]["value"], abs=1e-5)
        assert score["loss"] == pytest.approx(-sum(t["weight"] * t["logp"] for t in score["tokens"]), abs=1e-9)
        assert score["edges"] == len(score["tokens"])
        assert {"context", "token", "text", "logp", "weight"} <= set(score["tokens"][0])


def test_export_is_a_model_of_its_own(demo):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = demo
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged")
    tokenizer = AutoTokenizer.from_pretrained(folder / "merged")
    base = json.loads((folder / "adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder / "adapter")
    chat = [{"role": "user", "content": "Pick a number."}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, adapted(ids).logits, atol=1e-4)
    certificate = json.loads((folder / "export.json").read_text())
    assert certificate["merged_and_adapter"]["max_logit_difference"] < 1e-4
    assert json.loads((folder / "done/export.json").read_text())["files"] == ["merged", "export.json"]


def test_the_same_command_again_does_nothing_twice(demo):
    folder, _ = demo
    before = {p: p.stat().st_mtime_ns for p in (folder / "adapter").iterdir()}
    again = alignlab.run(["stages=[prepare,train,sample,evaluate,report]", f"run_dir={folder}", "score.tokens=true"])
    assert {p: p.stat().st_mtime_ns for p in (again.path / "adapter").iterdir()} == before


def test_a_changed_suite_samples_again_and_does_not_train(demo, capsys):
    folder, _ = demo
    weights = (folder / "adapter/adapter_model.safetensors").stat().st_mtime_ns
    run = alignlab.run(["suite.samples=10", f"run_dir={folder}", "stages=[train,sample,evaluate]", "tracker=none"])
    assert len(run.samples) == 2 * 12 * 10
    assert "train: done before" in capsys.readouterr().err
    assert (folder / "adapter/adapter_model.safetensors").stat().st_mtime_ns == weights


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 143)])
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path, name, status):
    common = ["tracker=none", "stages=[prepare,train]", "train.epochs=400", "train.save_every_steps=100000"]
    command = [sys.executable, "-m", "alignlab", *common, "run_dir=run"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run/metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.02)
    process.send_signal(getattr(signal, name))
    _, words = process.communicate(timeout=60)
    assert process.returncode == status, words
    assert f"stopped by {name}" in words
    assert "same command" in words
    saved = int(re.search(r"step (\d+) of 2400", words)[1])  # type: ignore[index]
    assert (tmp_path / f"run/checkpoints/step-{saved}").is_dir()
    assert not (tmp_path / "run/adapter").exists()
    # going on leads where a run that was never stopped leads; compared on a shorter plan to save time
    progress = json.loads((tmp_path / f"run/checkpoints/step-{saved}/progress.json").read_text())
    assert progress["step"] == saved == len(list(read_jsonl(metrics)))


@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"],
        ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "-m"],
    ],
    ids=["torchrun", "accelerate"],
)
def test_under_a_launcher_rank_0_composes_and_all_train(cli, tmp_path, launcher):
    arguments = ["tracker=none", "debug=one-step", "train.groups_per_step=4", "suite.samples=5", "run_dir=run"]
    done = cli(*arguments, launcher=launcher, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    assert "2 process(es)" in done.stderr
    assert len(list(read_jsonl(tmp_path / "run/metrics.jsonl"))) == 1
    alone = alignlab.run([*arguments[:-1], f"run_dir={tmp_path / 'alone'}"])
    assert alone.metrics[0]["loss"] == pytest.approx(next(read_jsonl(tmp_path / "run/metrics.jsonl"))["loss"], abs=1e-5)
    assert done.stdout.count("run folder") == 1


def test_a_launcher_of_another_size_is_refused(cli):
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    done = cli(
        "hardware=cpu", "tracker=none", "run_dir=run", "stages=[prepare,train]", launcher=launcher, ACCELERATE_USE_CPU="true"
    )
    assert done.returncode != 0
    assert "hardware.processes: 1 asked for, and the launcher started 2" in done.stderr


def test_a_sweep_leaves_a_folder_per_job(cli, tmp_path):
    done = cli("-m", "seed=0,1", "train.lr=1e-3,1e-2", "debug=one-step", "tracker=none", "hardware=cpu")
    assert done.returncode == 0, done.stderr
    folders = sorted(p.name for p in (tmp_path / "runs").iterdir() if p.is_dir() and not p.name.startswith("sweep-"))
    expected = [f"diffuse-numbers-1-10-tiny-debug=one-step-train.lr={lr}-seed{s}" for lr in ("0.001", "0.01") for s in (0, 1)]
    assert len(folders) == 4, folders
    assert all((tmp_path / "runs" / name / "adapter").is_dir() for name in folders)
    assert expected[0].split("-train")[0] in folders[0]
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]
    table = json.loads(next((tmp_path / "runs").glob("sweep-*/table.json")).read_text())
    assert set(table) == {f"seed={s} train.lr={lr}" for lr in ("0.001", "0.01") for s in (0, 1)}
    one = json.loads((tmp_path / "runs" / folders[0] / "results.json").read_text())
    assert table["seed=0 train.lr=0.001"]["kl"] == one["kl"]["after"]
    assert next((tmp_path / "runs").glob("sweep-*/plot.png")).stat().st_size > 3000
    assert "train.lr=0.01" in done.stdout


def test_from_any_folder_nothing_but_the_run_folder_is_written(cli, tmp_path):
    done = cli("debug=one-step", "run_dir=here", "stages=[prepare,train]")
    assert done.returncode == 0, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["here"]
    assert next((tmp_path / "here/wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_parameter_can_be_trained(tmp_path, precision):
    common = ["tracker=none", "train.lora=null", "train.lr=2e-4", "train.epochs=10", f"train.precision={precision}"]
    run = alignlab.run([*common, "suite.samples=20", f"run_dir={tmp_path / 'run'}"])
    assert run.metrics[-1]["kl"] < 0.5 * run.metrics[0]["kl"]
    assert run.results["kl"]["after"]["value"] < 0.5 * run.results["kl"]["before"]["value"]
    assert "model.embed_tokens.weight" in load_file(run.path / "model/model.safetensors")
    assert not (run.path / "adapter").exists()


def test_early_stop_ends_the_run(tmp_path):
    options = ["method.early_stop=true", "method.gamma=0.05", "tracker=none", "stages=[prepare,train]"]
    run = alignlab.run([*options, f"run_dir={tmp_path / 'run'}"])
    steps = len(run.metrics)
    assert steps < 300
    assert steps % 6 == 0  # at the end of a pass
    last = run.metrics[-6:]
    assert sum(r["loss"] for r in last) <= 1.05 * sum(r["floor"] for r in last)
    before = run.metrics[-12:-6]
    assert sum(r["loss"] for r in before) > 1.05 * sum(r["floor"] for r in before)


def test_validation_is_measured_and_the_best_weights_are_kept(tmp_path):
    options = [
        "data.validation=0.34",
        "train.validate_every_steps=4",
        "train.lr=0.05",
        "train.epochs=5",
        "train.best=validation_loss",
    ]
    run = alignlab.run([*options, "tracker=none", "stages=[prepare,train]", f"run_dir={tmp_path / 'run'}"])
    measured = {row["step"]: row["validation_loss"] for row in run.metrics if "validation_loss" in row}
    assert list(measured) == [4, 8, 12, 16, 20]
    best = min(measured, key=lambda step: measured[step])
    saved = load_file(run.path / "adapter/adapter_model.safetensors")
    kept = load_file(run.path / f"checkpoints/step-{best}/trained.safetensors")
    name = next(iter(saved))
    match = next(k for k in kept if name.replace(".weight", ".default.weight") in k)
    assert (saved[name] == kept[match]).all()


def test_training_goes_on_from_an_adapter(tmp_path):
    options = ["tracker=none", "train.epochs=4", "suite.samples=20"]
    first = alignlab.run([*options, f"run_dir={tmp_path / 'one'}"])
    second = alignlab.run([*options, f"model.adapter={first.path / 'adapter'}", f"run_dir={tmp_path / 'two'}"])
    assert second.results["kl"]["before"]["value"] == pytest.approx(first.results["kl"]["after"]["value"], abs=1e-6)
    assert second.results["kl"]["after"]["value"] < second.results["kl"]["before"]["value"]


def test_random_weights_need_no_network(tmp_path):
    small = "{model_type:llama,vocab_size:2000,hidden_size:32,intermediate_size:64,num_hidden_layers:2,num_attention_heads:2,num_key_value_heads:2}"
    options = ["model=llama2-13b", "model.weights=random", f"model.architecture={small}", "model.dtype=float64", "tracker=none"]
    run = alignlab.run([*options, "debug=one-step", f"run_dir={tmp_path / 'run'}"])
    assert run.metrics[0]["loss"] > 2.3
    again = alignlab.run([*options, "debug=one-step", f"run_dir={tmp_path / 'again'}"])
    assert again.metrics[0]["loss"] == run.metrics[0]["loss"]


def test_overfit_reaches_the_floor(tmp_path):
    run = alignlab.run(["debug=overfit", "tracker=none", "stages=[prepare,train]", f"run_dir={tmp_path / 'run'}"])
    assert run.metrics[-1]["kl"] < 0.03


def test_help_comes_quickly_and_explains(cli):
    started = time.monotonic()
    done = cli("--help")
    assert time.monotonic() - started < 10  # 1 s on an idle machine; a loose bound, so as not to fail on a busy one
    assert done.returncode == 0
    assert done.stdout.count("python -m alignlab") >= 4
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_weighted_target_is_followed(tmp_path):
    run = alignlab.run(["data=binomial", "tracker=none", "suite.samples=50", f"run_dir={tmp_path / 'run'}"])
    assert run.results["kl:trained"]["after"]["value"] < 0.05
    details = json.loads((Path(run.path) / "details.json").read_text())
    after = next(iter(details["after"].values()))
    assert after["exact"][5] == pytest.approx(math.comb(10, 5) / 2**10, abs=0.04)
    assert os.path.exists(run.path / "report.html")
