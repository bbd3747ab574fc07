"""Models, tokenizers and adapters that cannot be used: what is said of each."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from alignlab.compose import compose
from alignlab.config import Lora, Model, check
from alignlab.errors import MissingError, UserError
from alignlab.models import load
from alignlab.paths import resolve

TINY = Path(resolve(load.TINY))


@pytest.fixture
def model() -> Model:
    return check(compose([])[0]).model


def local(tmp_path: Path, *without: str) -> Path:
    """A copy of the embedded model without some files."""
    return Path(shutil.copytree(TINY, tmp_path / "m", ignore=shutil.ignore_patterns(*without)))


def refusal(kind: type[UserError], call: Any, *args: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert type(caught.value) is kind
    assert len(str(caught.value).splitlines()) <= 3
    return str(caught.value)


# ---- the hub


def answering(monkeypatch, error: Exception) -> None:
    """A hub that answers every question with an error."""
    import huggingface_hub

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)


def http(kind: str) -> Exception:
    import huggingface_hub.errors

    request = httpx.Request("GET", "https://huggingface.co/api/models/someone/model")
    return getattr(huggingface_hub.errors, kind)(f"{kind}: the server said no", response=httpx.Response(403, request=request))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (http("GatedRepoError"), ["someone/model is gated", "https://huggingface.co/someone/model", "hf auth login"]),
        (http("RepositoryNotFoundError"), ["there is no folder someone/model", "the hub has no model of this name"]),
        (http("RevisionNotFoundError"), ["the hub has no revision abc of someone/model", "model.revision"]),
        (http("HfHubHTTPError"), ["neither a folder nor in the local cache", "hf download", "model.path=FOLDER"]),
        (httpx.ConnectTimeout("slow"), ["cannot be reached (ConnectTimeout)", "hf download"]),
        (OSError("no route"), ["cannot be reached (OSError)", "hf download"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_hub_that_does_not_give_the_model(error: Exception, words: list[str], model: Model, monkeypatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    answering(monkeypatch, error)
    message = refusal(MissingError, load.load_config, replace(model, path="someone/model", revision="abc"))
    assert message.startswith("model.path: ")
    assert all(word in message for word in words), message


def test_tokenizer_of_the_hub_is_named_by_its_own_key(model: Model, monkeypatch):
    answering(monkeypatch, http("GatedRepoError"))
    assert refusal(MissingError, load.load_tokenizer, replace(model, tokenizer="someone/model")).startswith("model.tokenizer: ")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("./nowhere", "there is no folder ./nowhere"),
        ("/no/where", "there is no folder /no/where"),
        ("a/b/c", "there is no folder a/b/c"),
        ("a b", "neither a folder nor a name on the hub"),
        (__file__, "is a file; give the folder"),
    ],
)
def test_path_that_is_neither_folder_nor_name(path: str, words: str, model: Model):
    message = refusal(UserError, load.load_config, replace(model, path=path))
    assert message.startswith("model.path: ")
    assert words in message


# ---- folders


def test_folder_without_a_model(model: Model, tmp_path: Path):
    at = replace(model, path=str(tmp_path))
    assert "holds no model (config.json). Give a folder" in refusal(UserError, load.load_text, at)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "It is an adapter: give it as model.adapter" in refusal(UserError, load.load_text, at)


def test_folder_without_safetensors(model: Model, tmp_path: Path):
    folder = local(tmp_path, "*.safetensors")
    torch.save({}, folder / "pytorch_model.bin")
    for call in (load.load_text, lambda m: load.load_model(m, "cpu", 0)):
        assert "has no *.safetensors; weights are loaded from that format only" in refusal(
            UserError, call, replace(model, path=str(folder))
        )


def test_weights_that_are_damaged_or_not_whole(model: Model, tmp_path: Path):
    folder = local(tmp_path)
    at = replace(model, path=str(folder))
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "layers.0.mlp" not in k}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    message = refusal(UserError, load.load_model, at, "cpu", 0)
    assert re.search(r"lack 3 of the model's, model\.layers\.0\.mlp\.down_proj\.weight first", message)
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    assert refusal(UserError, load.load_model, at, "cpu", 0).startswith(f"model.path: {folder} cannot be loaded: ")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", "{", "holds no model that can be read"),
        ("config.json", '{"model_type": "no-such-kind"}', "holds no model that can be read"),
        ("tokenizer.json", "{", "holds no tokenizer that can be read"),
    ],
)
def test_file_of_a_model_that_cannot_be_read(file: str, content: str, words: str, model: Model, tmp_path: Path):
    folder = local(tmp_path)
    (folder / file).write_text(content)
    message = refusal(UserError, load.load_text, replace(model, path=str(folder)))
    assert message.startswith(f"model.path: {folder}")
    assert words in message


def test_model_that_does_not_write_text(model: Model, tmp_path: Path):
    folder = local(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "vit", "architectures": ["ViTModel"]}))
    assert "cannot be loaded" in refusal(UserError, load.load_model, replace(model, path=str(folder)), "cpu", 0)


def test_random_weights_need_sizes_that_make_a_model(model: Model):
    message = refusal(UserError, load.load_config, replace(model, weights="random", architecture={"model_type": "lama"}))
    assert message.startswith("model.architecture: ")


def test_tokenizer_with_more_tokens_than_the_model(model: Model):
    sizes = {"model_type": "llama", "vocab_size": 10, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    small = replace(model, weights="random", architecture=sizes, tokenizer=load.TINY)
    assert refusal(UserError, load.load_text, small).startswith("model.tokenizer: it has ")


def test_chat_template_that_is_not_there(model: Model):
    message = refusal(UserError, load.load_text, replace(model, chat_template="none.jinja"))
    assert message == "model.chat_template: there is no file none.jinja; give the path of a Jinja template."


def test_model_without_a_chat_template_gets_a_plain_one(model: Model, tmp_path: Path):
    folder = local(tmp_path, "chat_template.jinja")
    text = load.load_text(replace(model, path=str(folder)))
    assert "Hello" in text.tokenizer.decode(text.prompt([{"role": "user", "content": "Hello"}]))


# ---- adapters


def lora(**change: Any) -> Lora:
    return Lora(**({"rank": 2, "alpha": 2.0, "dropout": 0.0, "targets": ["q_proj"]} | change))


def test_adapter_targets_that_the_model_lacks(tiny: Any):
    assert refusal(UserError, load.add_lora, tiny, lora(targets=["c_attn"]), 0).startswith("train.lora.targets: ")


def test_adapter_folder_that_is_none(tiny: Any, tmp_path: Path):
    assert "holds no adapter (adapter_config.json)" in refusal(UserError, load.add_adapter, tiny, tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    torch.save({}, tmp_path / "adapter_model.bin")
    assert "holds no adapter (adapter_model.safetensors)" in refusal(UserError, load.add_adapter, tiny, tmp_path)


def test_adapter_of_another_model(model: Model, tmp_path: Path):
    load.add_lora(load.load_model(model, "cpu", 0), lora(), 0).save_pretrained(str(tmp_path))
    sizes = {"model_type": "llama", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 8}
    sizes |= {"num_hidden_layers": 4, "num_attention_heads": 1, "num_key_value_heads": 1}
    other = load.load_model(replace(model, weights="random", architecture=sizes), "cpu", 0)
    assert f"model.adapter: {tmp_path} does not fit this model" in refusal(UserError, load.add_adapter, other, tmp_path)


def test_run_folder_without_a_trained_model(model: Model, tmp_path: Path):
    assert "holds no trained model yet" in refusal(UserError, load.after_model, model, tmp_path, "cpu", 0)
