"""What the keys of ``model`` do, seen from outside: in the files of a run, its losses, and its refusals."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from families import build
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import alignlab
from alignlab import MissingError, UserError
from alignlab.paths import resolve

TINY = Path(resolve("alignlab:models/tiny"))


def loss(folder: Path, *overrides: str) -> float:
    """Mean loss of the untrained model."""
    scores = alignlab.run(["tracker=none", "data=binomial", f"run_dir={folder}", "stages=[score]", *overrides]).scores
    return sum(line["loss"] for line in scores) / len(scores)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_dtype_is_how_weights_are_stored(dtype: str, tmp_path: Path):
    once = ["tracker=none", "data=binomial", "stages=[prepare,train]", "train.max_steps=1", "train.lora=null"]
    alignlab.run([*once, f"run_dir={tmp_path}/run", f"model.dtype={dtype}"])
    with safe_open(tmp_path / "run/model/model.safetensors", "pt") as weights:
        found = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    assert found == {{"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]}


def test_attention_is_the_one_asked_for(tmp_path: Path):
    """Gemma 2 caps its scores, which sdpa cannot."""
    text = build("gemma", tmp_path / "m")
    sizes = (
        "hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 1, head_dim: 8"
    )
    small = ["model=local", "model.path=none", f"model.tokenizer={text}", "model.weights=random"]
    small.append(f"model.architecture={{model_type: gemma2, vocab_size: 512, {sizes}}}")
    values = [loss(tmp_path / name, *small, f"model.attention={name}") for name in ("auto", "eager")]
    assert values[0] == pytest.approx(values[1], abs=1e-5)
    with pytest.raises(UserError, match=r"^model\.architecture: Gemma2ForCausalLM does not support .*scaled_dot_product_attention"):
        loss(tmp_path / "sdpa", *small, "model.attention=sdpa")
    assert loss(tmp_path / "tiny", "model.attention=sdpa") == pytest.approx(
        loss(tmp_path / "eager-tiny", "model.attention=eager"), abs=1e-5
    )


def test_revision_is_the_one_asked_for(tmp_path: Path, monkeypatch):
    """A hub cache with two revisions of a model, of which ``main`` is the newer."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read when it was imported
    cache = tmp_path / "hub/models--someone--model"
    for name, commit in (("v1", "a" * 40), ("main", "b" * 40)):
        shutil.copytree(TINY, cache / "snapshots" / commit)
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs" / name).write_text(commit)
    newer = cache / "snapshots" / ("b" * 40) / "model.safetensors"
    weights = load_file(newer)
    weights["model.norm.weight"] *= 0
    save_file(weights, newer, metadata={"format": "pt"})
    model = ["model=local", "model.path=someone/model"]
    asked = ("null", "v1", "main", "a" * 40)
    values = {revision: loss(tmp_path / revision[:4], *model, f"model.revision={revision}") for revision in asked}
    assert values["null"] == values["main"]
    assert values["v1"] == values["a" * 40] == loss(tmp_path / "tiny")
    assert values["v1"] < values["main"] - 1
    with pytest.raises(MissingError, match=r"^model\.path: someone/model is neither .* \(HF_HUB_OFFLINE is set\)\.") as caught:
        loss(tmp_path / "none", *model, "model.revision=v2")
    assert "hf download" in str(caught.value)


class _Gate(BaseHTTPRequestHandler):
    """A hub on which every model is gated."""

    def do_GET(self) -> None:
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_gated_model_says_where_to_ask_for_it(cli: Callable[..., Any], tmp_path: Path):
    with ThreadingHTTPServer(("127.0.0.1", 0), _Gate) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
        done = cli("model=llama2-7b-chat", "data=binomial", "stages=[prepare]", "run_dir=out", **hub)
        server.shutdown()
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines()[-2:] == [
        "alignlab: model.path: meta-llama/Llama-2-7b-chat-hf is gated.",
        "Accept its licence on https://huggingface.co/meta-llama/Llama-2-7b-chat-hf, then run 'hf auth login'.",
    ]


def test_code_of_a_model_runs_only_when_it_is_trusted(tmp_path: Path):
    folder = build("llama3", tmp_path / "m")
    plain = loss(tmp_path / "plain", "model=local", f"model.path={folder}")
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": own}))
    (folder / "own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"Path({str(tmp_path / 'ran')!r}).touch()\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    model = ["model=local", f"model.path={folder}"]
    with pytest.raises(UserError) as caught:
        loss(tmp_path / "not", *model)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"model.path: {folder}")
    assert lines[1:] == ["Read it, and give model.trust_remote_code=true if you trust it."]
    assert not (tmp_path / "ran").exists()
    assert loss(tmp_path / "trusted", *model, "model.trust_remote_code=true") == plain
    assert (tmp_path / "ran").exists()


def test_code_of_a_model_that_needs_a_package(tmp_path: Path):
    folder = build("llama3", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "own.Own"}}))
    (folder / "own.py").write_text("import no_such_package_of_mine\n")
    with pytest.raises(MissingError, match=r"^model\.path: .* needs a package: .*no_such_package_of_mine"):
        loss(tmp_path / "run", "model=local", f"model.path={folder}", "model.trust_remote_code=true")
