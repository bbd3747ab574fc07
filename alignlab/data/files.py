"""Files of rows, on disk or on the hub: JSON, JSON lines and Parquet, as a stream of (place, row)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alignlab.errors import MissingError, UserError, did_you_mean
from alignlab.paths import PACKAGE, resolve

KINDS = ("json", "jsonl", "parquet")

RawRow = tuple[str, Mapping[str, Any] | UserError]
"""``file:line`` (of Parquet, ``file:row``, from 1) and a row, or what is wrong with it"""


def find(root: str, key: str, pattern: str | None, revision: str | None) -> list[Path]:
    """The files of rows of a file, of a folder (searched recursively, sorted), or of a data set on the hub.

    Args:
        root: path, or ``owner/name`` of a data set.
        key: configuration path, for messages.
        pattern: glob below a folder or data set; None takes every ``*.json``, ``*.jsonl`` and ``*.parquet``.
        revision: commit, tag or branch on the hub.

    Raises:
        UserError: there is no such thing, or no file of rows in it.
        MissingError: the hub cannot be reached, or refuses.
    """
    path = Path(resolve(root))
    if not path.exists():
        if root.count("/") != 1 or root.startswith((".", "/", "~", PACKAGE)) or path.parent.is_dir():
            near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise UserError(f"{key}: there is no file or folder {path}.{did_you_mean(path.name, near)}")
        path = _fetch(root, key, pattern, revision)
    if path.is_file():
        return [path]
    chosen = path.glob(pattern) if pattern else (file for kind in KINDS for file in path.rglob(f"*.{kind}"))
    found = sorted(file for file in chosen if file.is_file())
    if not found:
        what = f"that fits {pattern}" if pattern else "of rows (*.json, *.jsonl, *.parquet)"
        raise UserError(f"{key}: the folder {path} holds no file {what}.")
    return found


def _fetch(name: str, key: str, pattern: str | None, revision: str | None) -> Path:
    """The local folder of a data set on the hub."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError

    wanted = [pattern] if pattern else [f"*.{kind}" for kind in KINDS]
    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=wanted, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError):
        pass
    try:
        HfApi().dataset_info(name, revision=revision, timeout=4)  # so that no network is known soon
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=wanted))
    except GatedRepoError:
        problem = f"{name} is gated.\nAccept its terms on https://huggingface.co/datasets/{name}, then run 'hf auth login'"
    except RepositoryNotFoundError:
        problem = f"there is no file or folder {name}, and the hub has no data set of this name that your login may see"
    except Exception as error:  # the classes of its client's connection errors differ between versions
        reason = "HF_HUB_OFFLINE is set" if isinstance(error, OfflineModeIsEnabled) else type(error).__name__
        problem = (
            f"{name} is neither a file, a folder, nor in the local cache, and the hub cannot be reached ({reason}).\n"
            f"Fetch it on a machine with a network (hf download --repo-type dataset), or give a file: {key}=FILE"
        )
    raise MissingError(f"{key}: {problem}.")


def raw_rows(path: Path) -> Iterator[RawRow]:
    """The rows of a file, as a stream where its format allows.

    A line of JSON lines that cannot be read is a row that is wrong; any other file that cannot be read ends the reading.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        if path.suffix == ".parquet":
            yield from _parquet(path)
        elif path.suffix == ".jsonl" or not _is_array(path):
            yield from _lines(path)
        else:
            yield from _array(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None


def _is_array(path: Path) -> bool:
    """Whether a JSON file holds an array; else it may be JSON lines under the name of JSON."""
    with path.open(encoding="utf-8-sig") as file:
        while letter := file.read(1):
            if not letter.isspace():
                return letter == "["
    return True


def _checked(value: Any, place: str) -> Mapping[str, Any] | UserError:
    if isinstance(value, dict):
        return value
    return UserError(f"{place}: a row must be one object {{...}}, not {json.dumps(value)[:40]}.")


def _lines(path: Path) -> Iterator[RawRow]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            place = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                yield place, _checked(json.loads(line.rstrip("\r\n")), place)
            except json.JSONDecodeError as error:
                yield place, UserError(f"{place}:{error.colno}: not valid JSON: {error.msg}.")
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
                yield place, UserError(f"{place}: not valid JSON: {str(error).split(';')[0]}.")


def _array(path: Path) -> Iterator[RawRow]:
    """Elements of a JSON array, one after the other, so that a fault or an end in the middle can be placed."""
    text, decoder = path.read_text(encoding="utf-8-sig"), json.JSONDecoder()
    at, line, counted, count = _skip(text, text.find("[") + 1), 1, 0, 0
    if at < len(text) and text[at] == "]":
        at = _end(text, at, path)
    while at < len(text):
        line, counted = line + text.count("\n", counted, at), at
        place = f"{path}:{line}"
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            ends = error.pos >= len(text) - 1 or "Unterminated" in error.msg
            broken = "the file ends in the middle of a row" if ends else error.msg
            raise UserError(
                f"{path}:{error.lineno}:{error.colno}: not valid JSON: {broken}. {count} rows before it are whole."
            ) from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: not valid JSON: {str(error).split(';')[0]}.") from None
        count += 1
        yield place, _checked(value, place)
        at = _skip(text, at)
        if at < len(text) and text[at] == "]":
            _end(text, at, path)
            return
        if at >= len(text) or text[at] != ",":
            where = line + text.count("\n", counted, at)
            what = "the array does not end; the file was cut off" if at >= len(text) else "a comma is missing between two rows"
            raise UserError(f"{path}:{where}: not valid JSON: {what}. {count} rows before it are whole.")
        at = _skip(text, at + 1)
    if count or not text.strip():
        raise UserError(f"{path}: not valid JSON: the array does not end; the file is empty or was cut off after {count} rows.")


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _end(text: str, at: int, path: Path) -> int:
    if text[at + 1 :].strip():
        raise UserError(f"{path}: not valid JSON: there is more after the array's end.")
    return len(text)


def _parquet(path: Path) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", row
    except (pa.ArrowException, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: not Parquet that can be read: {str(error).splitlines()[0]}.") from None
