"""Where records come from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from alignlab.errors import UserError, did_you_mean
from alignlab.paths import PACKAGE, resolve
from alignlab.protocols import SourceDefaults
from alignlab.records import Prompt, TargetSet, at, parse_target_set, read_json
from alignlab.seeds import generator


@dataclass
class PromptFiles(SourceDefaults):
    """Diffuse's prompt files: one JSON object each, in files or in folders that are searched recursively.

    A prompt is named by its path below the folder it was found in, with that folder's own name in front where several are given.
    The first folder in its name is its task (:attr:`TargetSet.task`), by which results are averaged, and which ``only`` and
    ``leave_out`` mean: tasks to train on, and tasks not to train on. What is not trained on is evaluated all the same.
    """

    yields: ClassVar[type] = TargetSet

    path: Any
    train: Any
    test: Any
    only: Any
    leave_out: Any
    validation: Any

    def __post_init__(self) -> None:
        for key in ("path", "train", "test", "only", "leave_out"):
            setattr(self, key, _texts(key, getattr(self, key)))
        if self.path == [] or (self.path is None and self.train is None and self.test is None):
            raise ValueError("path: give a prompt file or a folder of them, or data.train and data.test")
        share = isinstance(self.validation, float) and 0 < self.validation < 1
        if not (self.validation is None or share or isinstance(self.validation, str)):
            raise ValueError(f"validation: must be a share between 0 and 1 or a path, not {self.validation!r}")
        if self.only is not None and self.leave_out is not None:
            raise ValueError("leave_out: cannot be given together with data.only; one of them says it all")

    def training(self) -> Iterator[TargetSet]:
        """Prompts of ``train``, or else of ``path``, without the held-out ones and the validation share.

        Raises:
            UserError: a prompt has no targets.
        """
        held = {record.name for record in self.validation_records()} if isinstance(self.validation, float) else set()
        yield from (record for record in self._trainable() if record.name not in held)

    def _trainable(self) -> Iterator[TargetSet]:
        for record in self._read(self._roots("train")):
            if not record.held_out and self._chosen(record.task):
                if not record.targets:
                    raise UserError(
                        f"{at(record.where, 'targets')}: a prompt to train on needs at least one target.\n"
                        'For a prompt that is only sampled, put "split": "test" into its file.'
                    )
                yield record

    def _chosen(self, task: str) -> bool:
        if self.only is not None:
            return task in self.only
        return self.leave_out is None or task not in self.leave_out

    def validation_records(self) -> list[TargetSet]:
        """The validation share of the training prompts, or the prompts of the ``validation`` path."""
        if self.validation is None:
            return []
        if isinstance(self.validation, str):
            return [record for record in self._read([("validation", self.validation)]) if record.targets]
        records = list(self._trainable())
        chosen = generator(0, "validation").permutation(len(records))[: max(1, round(self.validation * len(records)))]
        return [records[i] for i in sorted(chosen)]

    def testing(self) -> Iterator[TargetSet]:
        """Prompts of ``test``, or else all of ``path``; those without targets are sampled only."""
        yield from self._read(self._roots("test"))

    def scoring(self) -> Iterator[tuple[int, TargetSet]]:
        """Every prompt, held out or not, with its number in the sorted order of the files."""
        return enumerate(self._parse(file) for file in sorted(self._files_to_names))

    def prompts(self) -> Sequence[Prompt]:
        """A prompt for each test record."""
        return [Prompt(record.name, record.request) for record in self.testing()]

    def digest(self) -> str:
        """Digest of names and contents of all the files, which are checked on the way: a run begins with it.

        Raises:
            UserError: there are none, or one is no prompt file.
        """
        return self._digest

    @cached_property
    def _digest(self) -> str:
        whole, tasks = hashlib.sha256(), set[str]()
        for name, file in self._names_to_files.items():
            try:
                content = file.read_bytes()
            except OSError as error:
                raise UserError(f"{file}: cannot be read: {error.strerror}.") from None
            tasks.add(self._parse(file).task)
            whole.update(name.encode(errors="surrogateescape") + b"\0" + content + b"\0")
        for key in ("only", "leave_out"):
            for task in getattr(self, key) or ():
                if task not in tasks:
                    listed = ", ".join(sorted(tasks - {""})) or "none, as they lie in one folder"
                    raise UserError(f"data.{key}: '{task}' is no task of these prompts ({listed}).{did_you_mean(task, tasks)}")
        return whole.hexdigest()[:16]

    def _roots(self, key: str) -> list[tuple[str, str]]:
        """Files and folders of ``train`` or ``test``, or else ``path``, each with the key that names it."""
        chosen = getattr(self, key)
        if chosen is not None:
            return [(key, root) for root in chosen]
        return [("path", root) for root in self.path or ()]

    def _all_roots(self) -> list[tuple[str, str]]:
        extra = [("validation", self.validation)] if isinstance(self.validation, str) else []
        return list(dict.fromkeys([*self._roots("train"), *self._roots("test"), *extra]))

    def _read(self, roots: Iterable[tuple[str, str]]) -> Iterator[TargetSet]:
        return (self._parse(file) for file in _files(roots))

    def _parse(self, file: Path) -> TargetSet:
        return parse_target_set(read_json(file), self._files_to_names[file], str(file))

    @cached_property
    def _files_to_names(self) -> dict[Path, str]:
        names: dict[Path, str] = {}
        roots = self._all_roots()
        several = len({root for _, root in roots}) > 1
        for key, root in roots:
            base = Path(resolve(root))
            for file in _files([(key, root)]):
                start = base.parent if several else base
                short = file.relative_to(start).with_suffix("").as_posix() if base.is_dir() else file.stem
                names.setdefault(file, short)
        taken: dict[str, Path] = {}
        for file, name in names.items():
            if name in taken:  # the same name in two folders: say which
                name = names[file] = f"{file.parent.name}/{name}"
            if name in taken:
                raise UserError(f"data: {taken[name]} and {file} have the same name; rename one.")
            taken[name] = file
        return names

    @cached_property
    def _names_to_files(self) -> dict[str, Path]:
        return {name: file for file, name in self._files_to_names.items()}


def _texts(key: str, value: Any) -> list[str] | None:
    """One text, or several, or none."""
    texts = [value] if isinstance(value, str) else value
    if texts is not None and not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
        raise ValueError(f"{key}: must be text or a list of texts in square brackets, not {value!r}")
    return [text for text in texts if text] if texts is not None else None


def _files(roots: Iterable[tuple[str, str]]) -> Iterator[Path]:
    """JSON files of files and folders, each folder's in sorted order.

    Raises:
        UserError: a path does not exist, or a folder holds no JSON file.
    """
    seen: set[Path] = set()
    for key, root in roots:
        path = Path(resolve(root))
        if not path.exists():
            near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            hint = did_you_mean(path.name, near) if not root.startswith(PACKAGE) else ""
            raise UserError(f"data.{key}: there is no file or folder {path}.{hint}")
        found = sorted(p for p in path.rglob("*.json") if not p.is_dir()) if path.is_dir() else [path]
        if not found:
            raise UserError(f"data.{key}: the folder {path} holds no prompt file (*.json), however deep. Give a folder that does.")
        for file in found:
            if file not in seen:
                seen.add(file)
                yield file
