"""Files of the web, fetched once into a folder and known by their digest."""

from __future__ import annotations

import hashlib
import re
from contextlib import AbstractContextManager
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, build_opener

from alignlab.errors import MissingError, UserError
from alignlab.records import write_text
from alignlab.track import Display

TIMEOUT = 20.0
"""seconds without an answer"""
_BLOCK = 1 << 20


def fetch(url: str, folder: Path, otherwise: str) -> Path:
    """The file behind an address, from the folder, or from the web at the first time.

    A download that was cut off goes on where it stopped, if the server allows that. ``NAME.sha256`` beside the file keeps what
    it was when it came; put there by hand, it is taken as it is. A name that ends in ``-HEX`` says how its digest begins.

    Args:
        url: http or https; proxies as the environment names them.
        folder: where it is kept; made where needed.
        otherwise: what to do where it cannot be fetched, for the message.

    Raises:
        MissingError: it cannot be fetched, or what comes is another file than the name says.
    """
    file = folder / PurePosixPath(urlsplit(url).path).name
    if file.is_file():
        return file
    with locked(folder, file.name):
        try:
            if not file.is_file():
                _download(url, file)
        except (OSError, HTTPException, EOFError) as error:
            reason = str(error if isinstance(error, HTTPError) else getattr(error, "reason", error)) or type(error).__name__
            raise MissingError(f"labeller: {url} cannot be fetched ({reason}).\n{otherwise}") from None
    return file


def locked(folder: Path, name: str) -> AbstractContextManager[object]:
    """A folder, made where needed, in which one process at a time does what ``name`` says.

    Raises:
        MissingError: it cannot be written.
    """
    from filelock import FileLock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f".{name}.lock").acquire()
    except OSError as error:
        raise MissingError(
            f"labeller.cache: {folder} cannot be written ({error.strerror}).\nName another folder there, or in ALIGNLAB_CACHE."
        ) from None


def checked(file: Path) -> str:
    """The sha256 of a file, after a look at its name and at ``NAME.sha256`` beside it.

    Raises:
        UserError: one of them says another.
    """
    found = sha256(file)
    known = _recorded(file)
    if found != (known or found):
        raise UserError(
            f"labeller: {file} has changed since it was fetched: its sha256 was {known[:8]}... and is {found[:8]}....\n"
            f"Delete it, and it is fetched again; if the change is yours, delete {_record(file).name}."
        )
    if not found.startswith(_promised(file.name)):
        raise UserError(
            f"labeller: {file} is damaged: its sha256 begins with {found[:8]}, and its name says {_promised(file.name)}.\n"
            "Fetch it again; if the end of its name means something else, rename it."
        )
    return found


def sha256(file: Path) -> str:
    """Digest of a file, in 64 hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _record(file: Path) -> Path:
    return file.with_name(file.name + ".sha256")


def _recorded(file: Path) -> str:
    """The digest it had when it was fetched first, if that is known."""
    record = _record(file)
    return record.read_text(encoding="utf-8").partition(" ")[0] if record.is_file() else ""


def _promised(name: str) -> str:
    """How the digest of a file of this name begins."""
    found = re.search(r"-([0-9a-f]{8,64})\.[^.]+$", name)
    return found[1] if found else ""


def _download(url: str, file: Path) -> None:
    part = file.with_name(file.name + ".part")
    furthest = _size(part)
    while True:
        try:
            _append(url, part)
            break
        except (OSError, HTTPException, EOFError) as error:
            if getattr(error, "code", None) == 416 and furthest:  # what is there is as long as the whole, or longer
                part.unlink()
            elif isinstance(error, HTTPError) or _size(part) <= furthest:  # else this try brought something: another one
                raise
            furthest = _size(part)
    found, known = sha256(part), _recorded(file) or _promised(file.name)
    if not found.startswith(known):
        part.unlink()
        raise OSError(f"what came is another file: its sha256 begins with {found[:8]}, not {known[:8]}")
    write_text(_record(file), f"{found}  {file.name}\n")
    part.replace(file)


def _append(url: str, part: Path) -> None:
    """One request: the rest of a file, or all of it where the server gives no parts.

    Raises:
        EOFError: the connection ended early.
    """
    done = _size(part)
    headers = {"User-Agent": "alignlab"} | ({"Range": f"bytes={done}-"} if done else {})
    with build_opener().open(Request(url, headers=headers), timeout=TIMEOUT) as answer:
        done = done if answer.status == 206 else 0
        total = done + int(answer.headers["Content-Length"] or 0)
        with part.open("ab" if done else "wb") as file, Display(part.stem, total, done) as display:
            while block := answer.read(_BLOCK):
                file.write(block)
                done += len(block)
                display.update(done, "bytes")
    if done < total:
        raise EOFError(f"the connection was cut after {done} of {total} bytes")


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
