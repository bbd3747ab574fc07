"""Toxicity by the models of Detoxify, without the package of that name."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from alignlab.config import at_least, digest, one_of
from alignlab.errors import MissingError, UserError
from alignlab.labellers.classifier import PARTS, Classifier, small_files
from alignlab.labellers.fetch import checked, fetch, locked
from alignlab.paths import cache_folder, ends, resolve

RELEASES = "https://github.com/unitaryai/detoxify/releases/download/"
_JIGSAW = ("toxicity", "severe_toxicity", "obscene", "identity_attack", "insult", "threat")
KINDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "original": ("v0.1-alpha/toxic_original-c1212f89.ckpt", _JIGSAW),
    "unbiased": ("v0.3-alpha/toxic_debiased-c7548aa0.ckpt", (*_JIGSAW, "sexual_explicit")),
    "multilingual": ("v0.4-alpha/multilingual_debiased-0b549669.ckpt", (*_JIGSAW, "sexual_explicit")),
    "original-small": ("v0.1.2/original-albert-0e1d6498.ckpt", _JIGSAW),
    "unbiased-small": ("v0.1.2/unbiased-albert-c8519128.ckpt", (*_JIGSAW, "sexual_explicit")),
}
"""each model's release file and, in any order, its scores"""
_RENAMED = {"toxic": "toxicity", "identity_hate": "identity_attack", "severe_toxic": "severe_toxicity"}


@dataclass
class Detoxify:
    """Toxicity of a text and its kinds, each between 0 and 1 and by itself.

    The five models of unitaryai/detoxify (``detoxify/detoxify.py``), with the same names of scores for all. At its first use a
    release file is fetched, checked, and converted into an ordinary Hugging Face folder beside it; that folder is then a
    :class:`Classifier`. Outputs without a name are left out: beside its 7 scores ``unbiased`` has 9, for who is spoken of.
    """

    kind: str
    """original, unbiased, multilingual, original-small, unbiased-small"""
    checkpoint: str | None
    """a release file that is at hand, or a folder that one was converted into; null fetches that of ``kind``"""
    base: str | None
    """folder or hub name of the architecture's config and tokenizer; null takes what the file names, such as roberta-base"""
    url: str | None
    """where to fetch from instead; a name that ends in -HEX.ckpt says how the file's sha256 begins"""
    cache: str | None
    """folder for what is fetched and converted; null, $ALIGNLAB_CACHE or ~/.cache/alignlab"""
    batch: int
    """texts at a time"""
    device: str
    """``auto`` (a GPU where there is one), ``cpu``, ``cuda``"""
    trust_pickle: bool
    """run code that a release file holds, where torch refuses to read it otherwise"""

    fetches: ClassVar[bool] = True
    """whether ``ready`` may fetch something"""

    def __post_init__(self) -> None:
        one_of("kind", self.kind, tuple(KINDS))
        one_of("device", self.device, ("auto", "cpu", "cuda"))
        at_least("batch", self.batch, 1)
        if self.url is not None and not re.match("https?://[^/]+/.*[^/]$", self.url):
            raise ValueError(f"url: must be the address of a file, https://..., not '{self.url}'")

    def ready(self) -> None:
        """Fetch and convert what is not there yet.

        Raises:
            MissingError: it cannot be fetched.
            UserError: the file or the folder is not what it should be.
        """
        self._classifier.ready()

    def classes(self) -> Sequence[str] | None:
        """Names of its scores; None for a file or an address of one's own that is not ready."""
        if "_classifier" in self.__dict__ or (self.checkpoint and Path(resolve(self.checkpoint)).is_dir()):
            return self._classifier.classes()
        return None if self.checkpoint or self.url else KINDS[self.kind][1]

    def scores(self, texts: Sequence[str]) -> Sequence[Mapping[str, float]]:
        """For each text, its scores.

        Raises:
            MissingError: as in :meth:`ready`.
            UserError: as in :meth:`ready`.
        """
        return self._classifier.scores(texts)

    def digest(self) -> str:
        """Of the file at hand by its size and ends; of a release file, the name, which tells its digest."""
        file = Path(resolve(self.checkpoint or ""))
        if self.checkpoint and file.is_dir():
            return self._classifier.digest()
        return digest(ends([file]) if self.checkpoint and file.is_file() else self._address, self._base_digest())

    @property
    def _address(self) -> str:
        return self.url or RELEASES + KINDS[self.kind][0]

    def _base_digest(self) -> list[str]:
        return [self.base or "", *(small_files(Path(resolve(self.base))) if self.base else ())]

    @cached_property
    def _classifier(self) -> Classifier:
        return _classifier(self._folder(), self.batch, self.device)

    def _folder(self) -> Path:
        """The Hugging Face folder, made where it is not there."""
        given = Path(resolve(self.checkpoint)) if self.checkpoint else None
        if given is not None and given.is_dir():
            return given
        if given is not None and not given.is_file():
            raise UserError(f"labeller.checkpoint: there is no file or folder {given}.")
        cache = cache_folder(self.cache) / "detoxify"
        place = cache / PurePosixPath(self._address).name
        file = given or fetch(
            self._address,
            cache,
            "Fetch it on a machine with a network, then give it as data.attributes.NAME.labeller.checkpoint=FILE "
            f"or put it there: {place}\n"
            "Without any file: data=text-sentiment (VADER alone), or alignlab.labellers.lexicon.Lexicon, which only counts words.",
        )
        folder = cache / f"{file.stem}-{digest(checked(file), self._base_digest())}"
        if not folder.is_dir():
            with locked(cache, "converting"):
                for left in cache.glob(".converting-*"):  # by a process that was killed
                    shutil.rmtree(left)
                if not folder.is_dir():
                    self._convert(file, folder)
        return folder

    def _convert(self, file: Path, folder: Path) -> None:
        """Write a release file as a Hugging Face folder, which appears only once it can be loaded."""
        from safetensors.torch import save_file

        named, labels, state = _parts(file, _unpickled(file, self.trust_pickle))
        base = _base(self.base or named)
        config, tokenizer, wanted = _architecture(base, labels)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".converting-") as temporary:
            made = Path(temporary) / "model"
            config.save_pretrained(made)
            tokenizer.save_pretrained(made)
            save_file({k: v for k, v in state.items() if k in wanted}, made / "model.safetensors", metadata={"format": "pt"})
            try:
                _classifier(made, 1, "cpu").scores([""])
            except MissingError:
                raise
            except UserError as error:
                problem = str(error).removeprefix("labeller.path: ").replace(str(made), str(file))
                raise UserError(f"labeller.base: {base} does not fit: {problem}") from None
            os.replace(made, folder)


def _classifier(folder: Path, batch: int, device: str) -> Classifier:
    return Classifier(
        path=str(folder),
        revision=None,
        function="sigmoid",
        names={},
        batch=batch,
        max_tokens=None,
        device=device,
        trust_remote_code=False,
    )


def _unpickled(file: Path, trust: bool) -> Any:
    """What a release file holds; without ``trust``, nothing but tensors and plain values is made, and no code of it runs.

    Raises:
        UserError: it cannot be read, or not without running code.
    """
    import torch

    try:
        return torch.load(file, map_location="cpu", weights_only=not trust)
    except MemoryError:
        raise
    except Exception as error:  # torch, zipfile and pickle each raise their own
        refused = isinstance(error, pickle.UnpicklingError)
        if refused and "operand" not in str(error):
            found = re.search(r"GLOBAL (\S+)", str(error))
            raise UserError(
                f"labeller.checkpoint: {file} holds more than weights and names: torch would have to run code from it"
                f"{f' ({found[1]})' if found else ''}.\nIt was not run. If you trust who made the file: labeller.trust_pickle=true."
            ) from None
        problem = "it is no checkpoint of torch" if refused else _first(error)
        raise UserError(f"labeller.checkpoint: {file} cannot be read: {problem}.") from None


def _parts(file: Path, loaded: Any) -> tuple[str, list[str], dict[str, Any]]:
    """The base's name, labels, and weights with one output per label."""
    try:
        config, state = loaded["config"], {k: v.contiguous().clone() for k, v in loaded["state_dict"].items()}
        base, labels = config["arch"]["args"]["model_type"], [_RENAMED.get(c, c) for c in config["dataset"]["args"]["classes"]]
        head = [k for k, v in state.items() if k.startswith("classifier") and k.endswith(".weight") and v.ndim == 2][-1]
    except (KeyError, TypeError, AttributeError, IndexError):
        raise UserError(
            f"labeller.checkpoint: {file} is no checkpoint of Detoxify: it must hold state_dict, config.arch.args and "
            "config.dataset.args.classes."
        ) from None
    outputs = state[head].shape[0]
    if outputs < len(labels):
        raise UserError(f"labeller.checkpoint: {file} names {len(labels)} classes, and its model has {outputs} outputs.")
    for key in (head, head.removesuffix("weight") + "bias"):
        state[key] = state[key][: len(labels)].clone()
    return base, labels, state


def _base(name: str) -> str:
    """A folder that holds config and tokenizer of the architecture.

    Raises:
        MissingError: it is neither a folder nor cached, and the hub does not give it.
    """
    if Path(resolve(name)).is_dir():
        return resolve(name)
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, allow_patterns=list(PARTS))
    except Exception as error:  # the classes of its client's connection errors differ between versions
        raise MissingError(
            f"labeller.base: config and tokenizer of {name} are neither in the local cache nor to be had from the hub "
            f"({type(error).__name__}).\nFetch them on a machine with a network (hf download {name}), or give a folder: "
            "labeller.base=FOLDER."
        ) from None


def _architecture(folder: str, labels: list[str]) -> tuple[Any, Any, set[str]]:
    """Config and tokenizer of the classifier, and the names of its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    numbers = {label: i for i, label in enumerate(labels)}
    try:
        config = AutoConfig.from_pretrained(folder, id2label=dict(enumerate(labels)), label2id=numbers)
        config.problem_type = "multi_label_classification"
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config)
        config.architectures = [type(model).__name__]
        return config, AutoTokenizer.from_pretrained(folder), set(model.state_dict())
    except ImportError as error:
        hint = "Install it: pip install 'alignlab[toxicity]'."
        raise MissingError(f"labeller.base: the tokenizer in {folder} needs a package: {_first(error)}\n{hint}") from None
    except Exception as error:
        raise UserError(f"labeller.base: {folder} holds no config and tokenizer that can be read: {_first(error)}") from None


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
