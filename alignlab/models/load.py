"""Weights, tokenizer and adapters, from the package, a folder, the hub's cache or the hub."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from alignlab.config import Lora, Model
from alignlab.errors import MissingError, UserError
from alignlab.models.new_tokens import (
    add_rows,
    add_tokens,
    check_adapter,
    embedding_rows,
    refuse_tied,
    rows_of,
    tied,
    trainable_rows,
    with_embedding,
)
from alignlab.paths import resolve
from alignlab.protocols import NewToken
from alignlab.seeds import derive
from alignlab.text import TextCodec, turn

log = logging.getLogger(__name__)

TINY = "alignlab:models/tiny"


def _locate(path: str, revision: str | None, where: str, *, weights: bool = True) -> str:
    """A local folder that holds ``path``, fetched from the hub where needed: with ``weights``, or all but these.

    Raises:
        UserError: it looks like a folder and is none.
        MissingError: it is not cached and the hub cannot be reached, or refuses.
    """
    path = resolve(path)
    if Path(path).is_dir():
        return path
    if Path(path).exists():
        raise UserError(f"{where}: {path} is a file; give the folder that holds the model.")
    if path.startswith((".", "/")) or path.count("/") > 1:
        raise UserError(f"{where}: there is no folder {path}.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(path, revision=revision, allow_patterns=_WANTED, local_files_only=True)
    except LocalEntryNotFoundError:
        return _fetch(path, revision, where, weights)
    except ValueError as error:
        raise UserError(f"{where}: {path} is neither a folder nor a name on the hub: {_problem(error)}") from None
    # what was fetched for a plan alone has no weights yet
    return found if not weights or any(Path(found).glob("*.safetensors")) else _fetch(path, revision, where)


_WANTED = ["*.safetensors", "*.py", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
"""files of a model; those of weights stand first"""


def _fetch(name: str, revision: str | None, where: str, weights: bool = True) -> str:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError

    try:
        HfApi().model_info(name, revision=revision, timeout=4)  # so that no network is known soon
        return snapshot_download(name, revision=revision, allow_patterns=_WANTED[not weights :])
    except GatedRepoError:
        problem = f"{name} is gated.\nAccept its licence on https://huggingface.co/{name}, then run 'hf auth login'"
    except RepositoryNotFoundError:
        problem = f"there is no folder {name}, and the hub has no model of this name that your login may see"
    except RevisionNotFoundError:
        problem = f"the hub has no revision {revision} of {name}; see model.revision"
    except Exception as error:  # the classes of its client's connection errors differ between versions
        reason = "HF_HUB_OFFLINE is set" if isinstance(error, OfflineModeIsEnabled) else type(error).__name__
        problem = (
            f"{name} is neither a folder nor in the local cache, and the hub cannot be reached ({reason}).\n"
            "Fetch it on a machine with a network (hf download), or give a folder: model=local model.path=FOLDER"
        )
    raise MissingError(f"{where}: {problem}.")


def _model_folder(model: Model, *, weights: bool = True) -> str:
    """The local folder of ``model.path``, which has an architecture and, unless they are not asked for, weights.

    Raises:
        UserError: it has not.
        MissingError: it cannot be fetched.
    """
    folder = Path(_locate(model.path, model.revision, "model.path", weights=weights))
    if not (folder / "config.json").is_file():
        hint = "Give a folder in Hugging Face layout."
        if (folder / "adapter_config.json").is_file():
            hint = "It is an adapter: give it as model.adapter, and its base as model.path."
        raise UserError(f"model.path: {folder} holds no model (config.json). {hint}")
    if weights and not any(folder.glob("*.safetensors")):
        raise UserError(f"model.path: {folder} has no *.safetensors; weights are loaded from that format only.")
    return str(folder)


def _problem(error: BaseException) -> str:
    """The first line of what a library says; of a model that brings code of its own, also what to do."""
    first = (str(error).splitlines() or [type(error).__name__])[0][:300].strip()
    return f"{first}\nRead it, and give model.trust_remote_code=true if you trust it." if "custom code" in first else first


def load_tokenizer(model: Model, tokens: Sequence[NewToken] = ()) -> Any:
    """The tokenizer, with a chat template in any case: its own, ``model.chat_template``, or a plain one; and with new tokens.

    With ``weights=random`` the embedded tokenizer stands in for one that is not at hand.
    """
    from transformers import AutoTokenizer

    where = "model.tokenizer" if model.tokenizer else "model.path"
    try:
        folder = _locate(model.tokenizer or model.path, None if model.tokenizer else model.revision, where, weights=False)
    except MissingError:
        if model.weights != "random":
            raise
        log.warning("%s: no tokenizer at hand; the embedded one stands in, so token counts are not this model's.", model.path)
        folder = resolve(TINY)
    try:
        options = {} if model.tokenizer_legacy is None else {"legacy": model.tokenizer_legacy}
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=model.trust_remote_code, **options)
    except ImportError as error:
        hint = "Install it: pip install 'alignlab[tokenizers]'."
        raise MissingError(f"{where}: the tokenizer in {folder} needs a package: {_problem(error)}\n{hint}") from None
    except Exception as error:
        raise UserError(f"{where}: {folder} holds no tokenizer that can be read: {_problem(error)}") from None
    tokenizer.init_kwargs |= (
        {"legacy": tokenizer.legacy} if hasattr(tokenizer, "legacy") else options
    )  # else a saved one forgets it
    if model.chat_template:
        file = Path(resolve(model.chat_template))
        if not file.is_file():
            raise UserError(f"model.chat_template: there is no file {file}; give the path of a Jinja template.")
        tokenizer.chat_template = file.read_text(encoding="utf-8")
    elif not tokenizer.chat_template:
        tokenizer.chat_template = Path(resolve("alignlab:prompts/plain.jinja")).read_text(encoding="utf-8")
        log.warning("%s has no chat template: turns are put one after the other (alignlab/prompts/plain.jinja).", model.path)
    if tokens:
        add_tokens(tokenizer, tokens, _name(model))
    return tokenizer


def _name(model: Model) -> str:
    """What the tokenizer is called in messages."""
    return model.tokenizer or model.path


def load_config(model: Model, *, weights: bool = True) -> Any:
    """The architecture, without weights; these must be at hand, too, unless ``weights`` is False.

    Raises:
        UserError: there is none that can be read.
        MissingError: it cannot be fetched, or a package lacks.
    """
    if model.quantization and find_spec("bitsandbytes") is None:
        raise MissingError("model.quantization: it needs the package bitsandbytes.\nInstall it: pip install 'alignlab[quant]'.")
    folder = (
        "" if model.weights == "random" else _model_folder(model, weights=weights)
    )  # before transformers, which takes seconds to import
    from transformers import AutoConfig

    if model.weights == "random":
        architecture = dict(model.architecture or {})
        kind = architecture.pop("model_type", None)
        try:
            return AutoConfig.for_model(kind, **architecture)
        except Exception as error:
            raise UserError(f"model.architecture: {_problem(error)}") from None
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
    except Exception as error:
        raise UserError(f"model.path: {folder} holds no model that can be read: {_problem(error)}") from None


def load_text(model: Model, tokens: Sequence[NewToken] = (), *, weights: bool = True) -> TextCodec:
    """Tokenizer with new tokens, stop tokens and context length, without weights; for those see :func:`load_config`.

    Generation stops at the tokens that the model's files name, and at the one with which its chat template ends a turn.

    Raises:
        UserError: tokenizer, template, model and new tokens do not fit together.
    """
    config = load_config(model, weights=weights)
    tokenizer = load_tokenizer(model)
    lead, end = turn(tokenizer, model.answer_lead)
    stop = {tokenizer.eos_token_id, *_ids(config.eos_token_id), end}
    if model.answer_end == "eos" and tokenizer.eos_token_id is None:
        raise UserError("model.answer_end: this tokenizer has no eos token. Take turn.")
    if model.weights == "pretrained":
        from transformers import GenerationConfig

        try:
            stop |= {
                *_ids(
                    GenerationConfig.from_pretrained(_locate(model.path, model.revision, "model.path", weights=False)).eos_token_id
                )
            }
        except OSError:
            log.debug("%s has no generation config", model.path)
    text = config.get_text_config()
    if model.tokenizer and len(tokenizer) > text.vocab_size:
        raise UserError(f"model.tokenizer: it has {len(tokenizer)} tokens and the model {text.vocab_size}. Leave it null.")
    if tokens:
        add_tokens(tokenizer, tokens, _name(model))
    context = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None) or 1 << 30
    ending = tokenizer.eos_token_id if model.answer_end == "eos" else None
    return TextCodec(tokenizer, sorted(stop - {None}), context, lead, ending, model.system_turns)


def _ids(value: int | list[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)


def load_model(model: Model, device: torch.device | str, seed: int, tokens: Sequence[NewToken] = ()) -> Any:
    """The model on a device, in evaluation mode: with rows for new tokens, and with ``model.adapter``.

    On the device ``meta`` it has shapes and no contents: no weights are read, and what is quantised has the shapes of what it was.

    Raises:
        UserError: the folder holds no model that can be read, or one that the new tokens or the adapter do not fit.
        MissingError: weights are neither cached nor reachable.
    """
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": getattr(torch, model.dtype), "trust_remote_code": model.trust_remote_code}
    if model.attention != "auto":
        options["attn_implementation"] = model.attention
    if model.weights == "random" or str(device) == "meta":
        with torch.random.fork_rng(devices=[]), torch.device(device):
            torch.manual_seed(derive(seed, "weights"))
            try:
                made = AutoModelForCausalLM.from_config(load_config(model, weights=False), **options)
            except ValueError as error:
                where = "model.architecture" if model.weights == "random" else "model.path"
                raise UserError(f"{where}: {_problem(error)}") from None
    elif model.quantization:
        made = _pretrained(_model_folder(model), options | _quantized(model, device))
        for module in made.modules():  # a path of 4-bit layers on some CPUs through which no gradient flows
            module.support_avx512bf16_for_cpu = False
    else:
        made = _pretrained(_model_folder(model), options).to(device)
    if tokens:
        add_rows(made, load_tokenizer(model), tokens, seed, _name(model), model.pad_vocabulary_to)
    return (adapted(made, model, tokens) if model.adapter else made).eval()


def _quantized(model: Model, device: torch.device | str) -> dict[str, Any]:
    """How to load a base whose linear layers lie in 8 or 4 bits; the head, embeddings and norms stay in ``model.dtype``."""
    from transformers import BitsAndBytesConfig

    if model.quantization == "8bit":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, model.dtype),
        )
    return {"quantization_config": config, "device_map": {"": device}}


def _pretrained(folder: str, options: dict[str, Any]) -> Any:
    """The model of a folder, with every weight from its files.

    Raises:
        UserError: they cannot be read, or lack some.
        MissingError: they need a package.
    """
    from transformers import AutoModelForCausalLM

    load: Any = AutoModelForCausalLM.from_pretrained
    try:
        made, found = load(folder, use_safetensors=True, output_loading_info=True, **options)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except ImportError as error:
        raise MissingError(f"model.path: {folder} needs a package: {_problem(error)}") from None
    except Exception as error:  # safetensors, transformers and a model's own code each raise their own
        raise UserError(f"model.path: {folder} cannot be loaded: {_problem(error)}") from None
    lacking = sorted(found["missing_keys"])
    if lacking:  # transformers would go on with random ones
        raise UserError(f"model.path: the weights in {folder} lack {len(lacking)} of the model's, {lacking[0]} first.")
    return made


def adapted(made: Any, model: Model, tokens: Sequence[NewToken] = (), *, trainable: bool = False) -> Any:
    """A model that has rows for the new tokens, with the adapter ``model.adapter``.

    Raises:
        UserError: the adapter has rows for other tokens, or cannot be trained further; or see :func:`add_adapter`.
    """
    folder = Path(resolve(str(model.adapter)))
    if tokens or rows_of(folder) or embedding_rows(folder, made):
        check_adapter(folder, load_tokenizer(model, tokens), tokens, made, trainable=trainable)
    shared = tied(made)
    made = add_adapter(made, folder, trainable=trainable)
    if shared and trainable:
        refuse_tied(made, "model.adapter")
    return made


def add_adapter(model: Any, folder: Path, *, trainable: bool = False) -> Any:
    """A saved adapter put on a model.

    Raises:
        UserError: the folder holds no adapter, or one of another model.
    """
    from peft import PeftModel

    from alignlab.models.token_rows import use_token_rows

    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"model.adapter: {folder} holds no adapter ({name}).")
    try:
        made = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise UserError(f"model.adapter: {folder} does not fit this model: {_problem(error)}") from None
    use_token_rows(made)
    return made


def add_lora(model: Any, lora: Lora, seed: int, ids: Sequence[int] = (), *, embedding: bool = False) -> Any:
    """A fresh LoRA adapter, initialised from the seed, that also trains the rows of the tokens ``ids``.

    Args:
        model: the base.
        lora: its fields.
        seed: of the run.
        ids: of tokens that have rows.
        embedding: whether the input embedding is a target besides ``lora.targets``.

    Raises:
        UserError: none of the targets is in the model, or one is a matrix that has those rows, or one that is tied to another.
    """
    from peft import LoraConfig, get_peft_model

    from alignlab.models.token_rows import use_token_rows

    rows, shared = trainable_rows(model, ids), tied(model)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=with_embedding(model, lora.targets) if embedding else lora.targets,
        fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in model.modules()),
        task_type="CAUSAL_LM",
        trainable_token_indices=rows,  # type: ignore[arg-type]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "lora"))
        try:
            made = get_peft_model(model, config)
        except ValueError as error:
            raise UserError(f"train.lora.targets: {_problem(error)}") from None
        except TypeError as error:  # two adapters on one matrix
            names = ", ".join(name.rpartition(".")[2] for name in rows or ())
            raise UserError(f"train.lora.targets: rows of {names} are trained themselves (new tokens); leave it out.") from error
    if shared:
        refuse_tied(made, "train.lora.targets")
    use_token_rows(made)
    return made


def after_model(model: Model, folder: Path, device: torch.device | str, seed: int, tokens: Sequence[NewToken] = ()) -> Any:
    """The trained model of a run folder: its own weights, or the base with the run's adapter.

    Raises:
        UserError: the folder holds no trained model.
    """
    if (folder / "model").is_dir():  # with a row for each token already
        whole = replace(model, path=str(folder / "model"), weights="pretrained", revision=None, adapter=None)
        return load_model(whole, device, seed)
    if not (folder / "adapter").is_dir():
        raise UserError(f"{folder} holds no trained model yet; run the train stage first.")
    return load_model(replace(model, adapter=str(folder / "adapter")), device, seed, tokens)
