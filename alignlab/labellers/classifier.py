"""A labeller of any Hugging Face sequence classifier."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from alignlab.config import at_least, digest, one_of
from alignlab.errors import MissingError, UserError, did_you_mean
from alignlab.paths import content, ends, resolve

WINDOW = 4096
"""texts that are sorted by length together, so that little is padded"""
PARTS = ("config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model")
"""files of a folder that, with the weights, a classifier is made of"""


@dataclass
class Classifier:
    """Probabilities of a sequence classifier's classes, in fp32.

    A text longer than the model reads is cut at its end. Scores do not depend on what else is in a batch (to 1e-6).
    """

    path: str
    """folder or name on the hub; weights are read from safetensors alone"""
    revision: str | None
    """branch, tag or commit on the hub"""
    function: str
    """``softmax``, one class holds; ``sigmoid``, each class by itself; ``auto``, as the model's ``problem_type`` has it, and
    sigmoid where it has one output"""
    names: dict[str, str]
    """other names for some of its classes"""
    batch: int
    """texts at a time"""
    max_tokens: int | None
    """tokens of a text that are read; null, as many as tokenizer and model allow"""
    device: str
    """``auto`` (a GPU where there is one), ``cpu``, ``cuda``"""
    trust_remote_code: bool
    """run Python code that comes with the model"""

    fetches: ClassVar[bool] = True
    """whether ``ready`` may fetch something"""

    def __post_init__(self) -> None:
        one_of("function", self.function, ("auto", "softmax", "sigmoid"))
        one_of("device", self.device, ("auto", "cpu", "cuda"))
        at_least("batch", self.batch, 1)
        at_least("max_tokens", self.max_tokens, 1)

    def ready(self) -> None:
        """Fetch the model where it is a name on the hub.

        Raises:
            UserError: the folder holds no classifier.
            MissingError: it is neither cached nor reachable, or there is no GPU where one is asked for.
        """
        if self.device == "cuda":
            self._device()
        _ = self._folder

    def classes(self) -> Sequence[str] | None:
        """Names of its classes, where ``config.json`` is at hand and has them.

        Raises:
            UserError: ``names`` renames a class that is not there.
        """
        config = Path(self.__dict__.get("_folder") or resolve(self.path)) / "config.json"
        labels = json.loads(config.read_text(encoding="utf-8")).get("id2label") if config.is_file() else None
        return self._renamed([labels[key] for key in sorted(labels, key=int)]) if labels else None

    def scores(self, texts: Sequence[str]) -> Sequence[Mapping[str, float]]:
        """For each text, the probability of each class.

        Raises:
            UserError: the model cannot be read, or is no classifier.
            MissingError: as in :meth:`ready`, or a package lacks.
        """
        found: list[dict[str, float]] = []
        for start in range(0, len(texts), WINDOW):
            rows = self._probabilities(texts[start : start + WINDOW])
            found += [dict(zip(self._labels, row, strict=True)) for row in rows.tolist()]
        return found

    def digest(self) -> str:
        """Of the files of a folder, weights by size and ends; of a name on the hub, the name and, once it is ready, the commit."""
        folder = Path(resolve(self.path))
        if not folder.is_dir():
            commit = Path(self.__dict__["_folder"]).name if "_folder" in self.__dict__ else self.revision
            return f"{self.path}@{commit}"
        return digest(small_files(folder), ends(sorted(folder.glob("*.safetensors"))))

    @cached_property
    def _folder(self) -> str:
        from alignlab.models.load import _locate

        try:
            folder = Path(_locate(self.path, self.revision, "labeller.path"))
        except UserError as error:
            raise type(error)(_translated(error)) from None
        if not (folder / "config.json").is_file():
            raise UserError(f"labeller.path: {folder} holds no model (config.json). Give a folder in Hugging Face layout.")
        if not any(folder.glob("*.safetensors")):
            raise UserError(f"labeller.path: {folder} has no *.safetensors; weights are loaded from that format only.")
        return str(folder)

    def _device(self) -> str:
        import torch

        if self.device == "cuda" and not torch.cuda.is_available():
            raise MissingError("labeller.device: there is no GPU that torch can use. Take auto or cpu.")
        return "cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu"

    @cached_property
    def _model(self) -> Any:
        """The model, in evaluation mode, with every weight from its files."""
        import torch
        from transformers import AutoModelForSequenceClassification

        load: Any = AutoModelForSequenceClassification.from_pretrained
        options = {"use_safetensors": True, "dtype": torch.float32, "trust_remote_code": self.trust_remote_code}
        model, found = self._read(load, output_loading_info=True, **options)
        lacking = sorted(found["missing_keys"])
        if lacking:  # transformers would go on with random ones
            raise UserError(
                f"labeller.path: {self._folder} is no classifier: its weights lack {len(lacking)} of one's, {lacking[0]} first."
            )
        if model.config.pad_token_id is None:
            model.config.pad_token_id = self._tokenizer.pad_token_id
        return model.to(self._device()).eval()

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        tokenizer = self._read(AutoTokenizer.from_pretrained, trust_remote_code=self.trust_remote_code)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
        tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True  # lengths must be known before
        return tokenizer

    def _read(self, load: Any, **options: Any) -> Any:
        try:
            return load(self._folder, **options)
        except MemoryError:
            raise
        except ImportError as error:
            hint = "Install it; what tokenizers need, with pip install 'alignlab[tokenizers]'."
            raise MissingError(f"labeller.path: {self._folder} needs a package: {_translated(error)}\n{hint}") from None
        except Exception as error:  # safetensors, transformers and a model's own code each raise their own
            raise UserError(f"labeller.path: {self._folder} cannot be loaded: {_translated(error)}") from None

    @cached_property
    def _labels(self) -> list[str]:
        labels = self._model.config.id2label
        return self._renamed([labels[key] for key in sorted(labels)])

    def _renamed(self, labels: Sequence[str]) -> list[str]:
        for name in self.names:
            if name not in labels:
                known = ", ".join(labels)
                raise UserError(f"labeller.names: '{name}' is none of its classes ({known}).{did_you_mean(name, labels)}")
        found = [self.names.get(label, label) for label in labels]
        if len(set(found)) < len(found):
            raise UserError(f"labeller.names: two classes would have the same name ({', '.join(found)}).")
        return found

    @cached_property
    def _activation(self) -> Any:
        import torch

        config = self._model.config
        single = config.num_labels == 1
        if single and self.function == "softmax":
            raise UserError("labeller.function: the softmax of a single output is always 1. Take sigmoid.")
        several = single or config.problem_type == "multi_label_classification"
        sigmoid = several if self.function == "auto" else self.function == "sigmoid"
        return torch.sigmoid if sigmoid else lambda logits: logits.softmax(-1)

    @cached_property
    def _limit(self) -> int | None:
        """Tokens that the model can read, the tokenizer's special ones included."""
        config = self._model.config.get_text_config()
        positions = getattr(config, "max_position_embeddings", None)
        table = next((m for name, m in self._model.named_modules() if name.endswith(".position_embeddings")), None)
        padding = getattr(table, "padding_idx", None)
        if positions and padding is not None:  # RoBERTa counts from there
            positions -= padding + 1
        known = [n for n in (self.max_tokens, positions, self._tokenizer.model_max_length) if n and 0 < n < 1 << 30]
        return min(known, default=None)

    def _probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """[texts, classes]."""
        import torch

        model, pad, activation = self._model, self._tokenizer.pad, self._activation
        encoded = self._encoded(texts)
        order = sorted(range(len(texts)), key=lambda i: -len(encoded[i]["input_ids"]))  # what needs most memory comes first
        rows = np.empty((len(texts), len(self._labels)))
        for start in range(0, len(texts), self.batch):
            chosen = order[start : start + self.batch]
            inputs = pad([encoded[i] for i in chosen], return_tensors="pt").to(model.device)
            with torch.inference_mode():
                rows[chosen] = activation(model(**inputs).logits.float()).cpu().numpy()
        return rows

    def _encoded(self, texts: Sequence[str]) -> list[dict[str, list[int]]]:
        """What the model reads of each text; at least one token."""
        limit = self._limit
        columns = self._tokenizer(list(texts), truncation=limit is not None, max_length=limit)
        taken = [key for key in columns if key in signature(self._model.forward).parameters]
        blank = {key: [0] for key in taken} | {"input_ids": [self._tokenizer.pad_token_id], "attention_mask": [1]}
        rows = [{key: columns[key][i] for key in taken} for i in range(len(texts))]
        return [row if row["input_ids"] else blank for row in rows]


def small_files(folder: Path) -> list[str]:
    """Names and digests of a folder's configuration, tokenizer and code."""
    found = sorted({file for part in (*PARTS, "*.py") for file in folder.glob(part)})
    return [f"{file.name} {content(str(file))}" for file in found]


def _translated(error: BaseException) -> str:
    """What the loader of language models says, with the keys of a labeller."""
    from alignlab.models.load import _problem

    text = str(error) if isinstance(error, UserError) else _problem(error)
    return re.sub(r"\bmodel\.(path|revision|trust_remote_code)\b", r"labeller.\1", text.replace("model=local ", ""))
