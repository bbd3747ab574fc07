"""Prompts from a user's file."""

from __future__ import annotations

import json
from pathlib import Path

from alignlab.errors import UserError
from alignlab.records import Prompt


def read_prompts(path: Path) -> list[Prompt]:
    """A prompt per line, named by its number: of a file ``.jsonl`` the text under ``prompt``, of any other the line itself.

    Blank lines are passed over.

    Raises:
        UserError: the file cannot be read, a line is no object with a text under ``prompt``, or there is no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        raise UserError(f"suite.prompt_source: {path} cannot be read: {error.strerror}.") from None
    kept = [(number, line.removesuffix("\r")) for number, line in enumerate(lines, 1) if line.strip()]
    if not kept:
        raise UserError(f"suite.prompt_source: {path} holds no prompt. Write one per line, or take suite.prompt_source=none.")
    if path.suffix.lower() != ".jsonl":
        return [Prompt(str(number), line) for number, line in kept]
    return [Prompt(str(number), _prompt(line, f"{path}:{number}")) for number, line in kept]


def _prompt(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON: {getattr(error, 'msg', 'brackets are nested too deeply')}.") from None
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        raise UserError(f'{where}:prompt: each line must be an object with a text, such as {{"prompt": "The film was"}}.')
    return value["prompt"]
