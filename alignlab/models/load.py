"""Weights, tokenizer and adapters, from the package, a folder, the hub's cache or the hub."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from alignlab.config import Lora, Model
from alignlab.errors import MissingError, UserError
from alignlab.paths import resolve
from alignlab.seeds import derive
from alignlab.text import TextCodec

log = logging.getLogger(__name__)

TINY = "alignlab:models/tiny"


def _locate(path: str, revision: str | None, where: str) -> str:
    """A local folder that holds ``path``, fetched from the hub where needed.

    Raises:
        UserError: it looks like a folder and is none.
        MissingError: it is not cached and the hub cannot be reached, or refuses.
    """
    path = resolve(path)
    if Path(path).is_dir():
        return path
    if path.startswith((".", "/", "~")) or path.count("/") != 1 and path != path.split("/")[0]:
        raise UserError(f"{where}: there is no folder {path}.")
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
    try:
        return snapshot_download(path, revision=revision, allow_patterns=wanted, local_files_only=True)
    except LocalEntryNotFoundError:
        pass
    except ValueError as error:
        raise UserError(f"{where}: {path} is neither a folder nor a name on the hub: {error}.") from None
    hint = "Fetch it on a machine with a network (hf download), or give a folder: model=local model.path=FOLDER."
    try:
        HfApi().model_info(path, revision=revision, timeout=5)
        return snapshot_download(path, revision=revision, allow_patterns=wanted)
    except GatedRepoError:
        raise MissingError(f"{where}: {path} is gated. Accept its licence on the hub, then run 'hf auth login'.") from None
    except RepositoryNotFoundError:
        raise MissingError(f"{where}: the hub has no {path}, or your login may not see it.") from None
    except (HfHubHTTPError, OSError) as error:
        raise MissingError(f"{where}: {path} is not in the local cache and the hub cannot be reached ({type(error).__name__}).\n{hint}") from None
    except Exception as error:  # the client's own classes of connection errors differ between versions
        raise MissingError(f"{where}: {path} cannot be fetched ({type(error).__name__}: {str(error).splitlines()[0]}).\n{hint}") from None


def load_tokenizer(model: Model) -> Any:
    """The tokenizer, with a chat template in any case: its own, ``model.chat_template``, or a plain one.

    With ``weights=random`` the embedded tokenizer stands in for one that is not at hand.
    """
    from transformers import AutoTokenizer

    try:
        where = "model.tokenizer" if model.tokenizer else "model.path"
        folder = _locate(model.tokenizer or model.path, model.revision, where)
    except MissingError:
        if model.weights != "random":
            raise
        log.warning("%s: no tokenizer at hand; the embedded one stands in, so token counts are not this model's.", model.path)
        folder = resolve(TINY)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
    except Exception as error:
        raise UserError(f"model.path: {folder} holds no tokenizer that can be read: {str(error).splitlines()[0]}") from None
    if model.chat_template:
        file = Path(resolve(model.chat_template))
        if not file.is_file():
            raise UserError(f"model.chat_template: there is no file {file}; give the path of a Jinja template.")
        tokenizer.chat_template = file.read_text(encoding="utf-8")
    elif not tokenizer.chat_template:
        tokenizer.chat_template = Path(resolve("alignlab:prompts/plain.jinja")).read_text(encoding="utf-8")
        log.warning("%s has no chat template: turns are put one after the other (alignlab/prompts/plain.jinja).", model.path)
    return tokenizer


def load_config(model: Model) -> Any:
    """The architecture, without weights."""
    from transformers import AutoConfig

    if model.weights == "random":
        architecture = dict(model.architecture or {})
        kind = architecture.pop("model_type", None)
        try:
            return AutoConfig.for_model(kind, **architecture)
        except Exception as error:
            raise UserError(f"model.architecture: {str(error).splitlines()[0][:200]}") from None
    folder = _locate(model.path, model.revision, "model.path")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
    except Exception as error:
        raise UserError(f"model.path: {folder} holds no model that can be read: {str(error).splitlines()[0]}") from None


def load_text(model: Model) -> TextCodec:
    """Tokenizer, stop tokens and context length, without weights."""
    tokenizer, config = load_tokenizer(model), load_config(model)
    stop = {tokenizer.eos_token_id, *_ids(config.eos_token_id)}
    folder = resolve(model.path)
    if model.weights == "pretrained":
        from transformers import GenerationConfig

        try:
            generation = GenerationConfig.from_pretrained(_locate(model.path, model.revision, "model.path"))
            stop |= set(_ids(generation.eos_token_id))
        except OSError:
            log.debug("%s has no generation config", folder)
    text = config.get_text_config()
    context = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None) or 1 << 30
    return TextCodec(tokenizer, sorted(stop - {None}), context)


def _ids(value: int | list[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)


def load_model(model: Model, device: torch.device | str, seed: int) -> Any:
    """The model on a device, in evaluation mode.

    Raises:
        UserError: the folder holds no model that can be read.
        MissingError: weights are neither cached nor reachable.
    """
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": getattr(torch, model.dtype), "trust_remote_code": model.trust_remote_code}
    if model.attention != "auto":
        options["attn_implementation"] = model.attention
    if model.weights == "random":
        with torch.random.fork_rng(devices=[]), torch.device(device):
            torch.manual_seed(derive(seed, "weights"))
            made = AutoModelForCausalLM.from_config(load_config(model), **options)
    else:
        folder = _locate(model.path, model.revision, "model.path")
        if not any(Path(folder).glob("*.safetensors")):
            raise UserError(f"model.path: {folder} has no *.safetensors; weights are loaded from that format only.")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        try:
            made = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **options).to(device)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"model.path: {folder} cannot be loaded: {str(error).splitlines()[0]}") from None
    return add_adapter(made, Path(model.adapter)).eval() if model.adapter else made.eval()


def add_adapter(model: Any, folder: Path, *, trainable: bool = False) -> Any:
    """A saved adapter put on a model.

    Raises:
        UserError: the folder holds no adapter, or one of another model.
    """
    from peft import PeftModel

    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"model.adapter: {folder} holds no adapter (adapter_config.json).")
    return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)


def add_lora(model: Any, lora: Lora, seed: int) -> Any:
    """A fresh LoRA adapter, initialised from the seed.

    Raises:
        UserError: none of the targets is in the model.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in model.modules()),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "lora"))
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise UserError(f"train.lora.targets: {str(error).splitlines()[0][:300]}") from None


def after_model(model: Model, folder: Path, device: torch.device | str, seed: int) -> Any:
    """The trained model of a run folder: its own weights, or the base with the run's adapter.

    Raises:
        UserError: the folder holds no trained model.
    """
    if (folder / "model").is_dir():
        return load_model(replace(model, path=str(folder / "model"), weights="pretrained", revision=None, adapter=None), device, seed)
    if not (folder / "adapter").is_dir():
        raise UserError(f"{folder} holds no trained model yet; run the train stage first.")
    return add_adapter(load_model(replace(model, adapter=None), device, seed), folder / "adapter").eval()
