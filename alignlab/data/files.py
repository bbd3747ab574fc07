"""Files of rows, on disk or on the hub: JSON, JSON lines and Parquet, and plain text, as a stream of (place, row)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from alignlab.errors import MissingError, UserError, did_you_mean
from alignlab.paths import PACKAGE, resolve
from alignlab.records import short

KINDS = (".json", ".jsonl", ".parquet")
TEXT_KINDS = (*KINDS, ".txt")
NAMED = ", ".join(f"*{kind}" for kind in KINDS)

LONG = 100_000
"""characters with which a paragraph of plain text ends"""

RawRow = tuple[str, Mapping[str, Any] | UserError]
"""``file:line`` (``file:line:column`` of a row behind another on its line; of Parquet, ``file:row``, from 1) and a row, or what is
wrong with it"""


def find(root: str, key: str, pattern: str | None, revision: str | None, kinds: tuple[str, ...] = KINDS) -> list[Path]:
    """The files of rows of a file, of a folder (searched recursively, sorted), or of a data set on the hub.

    Args:
        root: path, or ``owner/name`` of a data set.
        key: configuration path, for messages.
        pattern: glob below a folder or data set; None takes every file of the kinds.
        revision: commit, tag or branch on the hub.
        kinds: how names of files end.

    Raises:
        UserError: there is no such thing, or no file of rows in it.
        MissingError: the hub cannot be reached, or refuses.
    """
    path = Path(resolve(root))
    if not path.exists():
        if not on_hub(root, kinds):
            near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise UserError(f"{key}: there is no file or folder {path}.{did_you_mean(path.name, near)}")
        path = _fetch(root, key, pattern, revision, kinds)
    if path.is_file():
        return [path]
    found = _below(path, pattern, kinds)
    if not found:
        wanted = f"that fits data.files={pattern}" if pattern else f"of rows ({', '.join(f'*{kind}' for kind in kinds)})"
        raise UserError(f"{key}: the folder {path} holds no file {wanted}.")
    return found


def on_hub(root: str, kinds: tuple[str, ...] = KINDS) -> bool:
    """Whether a path that is given must mean a data set on the hub."""
    path = Path(resolve(root))
    local = root.startswith((".", "/", "~", PACKAGE)) or root.endswith(kinds) or path.parent.is_dir()
    return not path.exists() and root.count("/") == 1 and not local


def labels(files: Iterable[Path]) -> dict[Path, str]:
    """What the names of each file's rows begin with: its name, behind its folder's where two are alike; nothing for a single file.

    Raises:
        UserError: two files cannot be told apart in this way.
    """
    distinct = list(dict.fromkeys(files))
    stems = [file.stem for file in distinct]
    several = {file: f"{file.parent.name}-" * (stems.count(file.stem) > 1) + f"{file.stem}-" for file in distinct}
    for file, other in pairwise(sorted(distinct, key=lambda file: several[file])):
        if several[file] == several[other]:
            raise UserError(f"data: the rows of {file} and {other} would have the same names. Rename one of the files.")
    return several if len(distinct) > 1 else dict.fromkeys(distinct, "")


def _below(folder: Path, pattern: str | None, kinds: tuple[str, ...]) -> list[Path]:
    try:
        chosen = folder.glob(pattern) if pattern else (file for kind in kinds for file in folder.rglob(f"*{kind}"))
        return sorted(file for file in chosen if file.is_file())
    except (NotImplementedError, ValueError) as error:  # an absolute pattern, or ** within a name
        raise UserError(f"data.files: {pattern} is no pattern of files below a folder: {error}.") from None


def _fetch(name: str, key: str, pattern: str | None, revision: str | None, kinds: tuple[str, ...]) -> Path:
    """The local folder of a data set on the hub."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub import errors as hub

    wanted = [pattern] if pattern else [f"*{kind}" for kind in kinds]
    try:
        cached = Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=wanted, local_files_only=True))
        if _below(cached, pattern, kinds):  # else something else of it was fetched before
            return cached
    except hub.HFValidationError:
        raise UserError(f"{key}: there is no file or folder {name}, and no data set on the hub can have this name.") from None
    except hub.LocalEntryNotFoundError:
        pass
    try:
        HfApi().dataset_info(name, revision=revision, timeout=4)  # so that no network is known soon
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=wanted))
    except hub.GatedRepoError:
        problem = f"{name} is gated.\nAccept its terms on https://huggingface.co/datasets/{name}, then run 'hf auth login'"
    except hub.RepositoryNotFoundError:
        problem = f"there is no file or folder {name}, and the hub has no data set of this name that your login may see"
    except hub.RevisionNotFoundError:
        problem = f"{name} has no commit, tag or branch {revision} on the hub; see data.revision"
    except Exception as error:  # the classes of its client's connection errors differ between versions
        reason = "HF_HUB_OFFLINE is set" if isinstance(error, hub.OfflineModeIsEnabled) else type(error).__name__
        problem = (
            f"{name} is neither a file, a folder, nor in the local cache, and the hub cannot be reached ({reason}).\n"
            f"Fetch it on a machine with a network (hf download --repo-type dataset {name}), or give a file: {key}=FILE"
        )
    raise MissingError(f"{key}: {problem}.")


def raw_rows(path: Path) -> Iterator[RawRow]:
    """The rows of a file, as a stream where its format allows. A text that begins with ``[`` is a JSON array, else JSON lines.

    A line of JSON lines that cannot be read is a row that is wrong; any other file that cannot be read ends the reading.

    Raises:
        UserError: the file cannot be read.
    """
    with _readable(path):
        if path.suffix not in KINDS:
            raise UserError(f"{path}: not a file of rows. Give one as JSON, JSON lines or Parquet ({NAMED}).")
        if path.suffix == ".parquet":
            yield from _parquet(path)
        elif _first_letter(path) == "[":
            yield from _array(path)
        else:
            yield from _lines(path)


def paragraphs(path: Path) -> Iterator[RawRow]:
    """The paragraphs of a plain text, which blank lines divide, as a stream of rows with a ``text``: its lines, joined by spaces.

    One also ends with the line that brings it to ``LONG`` characters: a file without blank lines need not fit in memory.

    Raises:
        UserError: the file cannot be read.
    """
    with _readable(path), path.open(encoding="utf-8-sig") as file:
        lines, first, letters = list[str](), 0, 0
        for number, line in enumerate(chain(file, [""]), 1):
            words = line.strip()
            if words:
                first = first if lines else number
                lines.append(words)
                letters += len(words)
            if lines and (not words or letters >= LONG):
                yield f"{path}:{first}", {"text": " ".join(lines)}
                lines, letters = [], 0


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say which file it is that cannot be read."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or _line(error)}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None


def _first_letter(path: Path) -> str:
    """The first letter that is no space; empty where there is none."""
    with path.open(encoding="utf-8-sig") as file:
        while (letter := file.read(1)).isspace():
            pass
        return letter


def _line(error: Exception) -> str:
    """What an error of a library says, on one line."""
    return (str(error).splitlines() or [type(error).__name__])[0].split(";")[0].rstrip(".")


def _checked(value: Any, place: str) -> Mapping[str, Any] | UserError:
    if isinstance(value, dict):
        return value
    return UserError(f"{place}: a row must be one object {{...}}, not {short(json.dumps(value))}.")


def _lines(path: Path) -> Iterator[RawRow]:
    with path.open(encoding="utf-8-sig") as file:
        first = True
        for number, line in enumerate(file, 1):
            place = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                row = _checked(json.loads(line.rstrip("\n")), place)
            except json.JSONDecodeError as error:
                if first:
                    refuse_one_object(path)
                why = _problem(
                    error, len(line) - len(line.lstrip()), "the line ends in the middle of a row, which must be on one line"
                )
                row = UserError(f"{place}:{error.colno}: not valid JSON: {why}.")
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
                row = UserError(f"{place}: not valid JSON: {_line(error)}.")
            first = False
            yield place, row


def refuse_one_object(path: Path) -> None:
    """Raise UserError where a text is one JSON object as a whole, and so no list of rows."""
    try:
        value = None if path.suffix == ".parquet" else json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        return
    if not isinstance(value, dict):
        return
    below = [key for key, rows in value.items() if isinstance(rows, list) and rows and isinstance(rows[0], dict)]
    perhaps = (
        f"Those under '{short(below[0])}' may be meant: save that list as a file." if below else "Is it data of another method?"
    )
    raise UserError(
        f"{path}: holds one object with {short(', '.join(value))}, not rows. {perhaps}\n"
        "Rows are a JSON list [{...}, {...}], or JSON lines: one object {...} on each line."
    )


def _problem(error: json.JSONDecodeError, at: int, ends: str) -> str:
    """What is wrong with the value at a place of a text; ``ends`` where the text ends in the middle of it."""
    if error.doc[at : at + 1] not in ("{", ""):
        return f"a row must be one object {{...}}, not {short(error.doc[at : at + 41].splitlines()[0].rstrip())}"
    return ends if "Unterminated" in error.msg or "}" not in error.doc[error.pos :] else error.msg


ENDS = "the file ends in the middle of the list; fetch or write it again"


def _array(path: Path) -> Iterator[RawRow]:
    """Elements of a JSON array, one after the other, so that a fault or an end in the middle can be placed."""
    text, decoder = path.read_text(encoding="utf-8-sig"), json.JSONDecoder()
    at, line, counted, count = _skip(text, text.find("[") + 1), 1, 0, 0

    def wrong(place: str, problem: str) -> UserError:
        return UserError(f"{place}: not valid JSON{f' after row {count}' if count else ''}: {problem}.")

    while text[at : at + 1] != "]" or count:
        above, line, counted = line if count else 0, line + text.count("\n", counted, at), at
        place = f"{path}:{line}"
        if line == above:  # several rows on a line
            place += f":{at - text.rfind(chr(10), 0, at)}"
        if text[at : at + 1] == "]":
            raise wrong(place, "the comma before the closing bracket must go")
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise wrong(f"{path}:{error.lineno}:{error.colno}", _problem(error, at, ENDS)) from None
        except (ValueError, RecursionError) as error:
            raise wrong(place, _line(error)) from None
        count += 1
        yield place, _checked(value, place)
        at = _skip(text, at)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            where = f"{path}:{line + text.count(chr(10), counted, at)}"
            raise wrong(where, ENDS if at >= len(text) else "a comma is missing between two rows")
        at = _skip(text, at + 1)
    if text[at + 1 :].strip():
        where = f"{path}:{1 + text.count(chr(10), 0, _skip(text, at + 1))}"
        raise wrong(where, "there is more after the closing bracket of the list")


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


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
    except (pa.ArrowException, OSError) as error:  # which of the two is raised depends on where the damage is
        raise UserError(f"{path}: not Parquet that can be read: {_line(error)}. Fetch or write it again.") from None
