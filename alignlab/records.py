"""What passes between stages as JSON lines: target sets, prompts, samples. Errors name file, line and field."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignlab.errors import UserError, did_you_mean


class Record:
    """Base of everything a data source can yield."""


@dataclass(frozen=True)
class Prompt(Record):
    """A request to sample from."""

    name: str
    request: str


@dataclass(frozen=True)
class TargetSet(Record):
    """A request and the distribution that the answers to it shall follow."""

    name: str
    """unique within a source"""
    request: str
    """user turn"""
    responses: tuple[str, ...]
    """texts put before each target in the assistant turn; one is drawn per target at each pass"""
    targets: tuple[str, ...]
    """answers; empty for a prompt that is sampled only"""
    weights: tuple[float, ...]
    """probability of each target, summing to 1"""
    eos: bool
    """whether the token that ends the turn belongs to the target"""
    held_out: bool
    """whether no training ever reads it"""

    def entropy(self) -> float:
        """Entropy of the weights in nats: the floor of the loss."""
        return -math.fsum(w * math.log(w) for w in self.weights if w > 0)

    def answers(self) -> frozenset[str]:
        """Every text that counts as one of the targets, response prefix included."""
        return frozenset(prefix + target for prefix in self.responses for target in self.targets)


@dataclass(frozen=True)
class Sample(Record):
    """One completion of a prompt."""

    model: str
    prompt: str
    sample: int
    text: str
    finish: str


def read_json(path: Path) -> Any:
    """A JSON file's content; a parse error names line and column."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}).") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}.") from None


_FIELDS = {
    "request": "the user turn, a string",
    "response": "text before each target, a string or a list of strings",
    "targets": "a list of strings",
    "weights": "a list of numbers, one per target",
    "eos": "true or false",
    "split": '"train", "test" or "both"',
}


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def parse_target_set(raw: Any, name: str, where: str) -> TargetSet:
    """A prompt file's content as a :class:`TargetSet`.

    Args:
        raw: the parsed JSON.
        name: the prompt's name.
        where: the file, for messages.

    Raises:
        UserError: a field is missing, unknown, mistyped or contradicts another.
    """

    def wrong(field: str, problem: str) -> UserError:
        return UserError(f"{where}:{field}: {problem}")

    if not isinstance(raw, dict):
        kind = "a list of rows" if isinstance(raw, list) else type(raw).__name__
        raise UserError(
            f"{where}: holds {kind}, not a prompt file, which is one JSON object with 'request', 'response' and 'targets'.\n"
            "Choose a method that reads this kind of data, or another data.path."
        )
    for key in raw:
        if key not in _FIELDS:
            raise wrong(key, f"not a field of a prompt file ({', '.join(_FIELDS)}).{did_you_mean(key, _FIELDS)}")
    request = raw.get("request")
    if "request" not in raw:
        raise wrong("request", f"missing: {_FIELDS['request']}.")
    if not isinstance(request, str) or not request:
        raise wrong("request", f"must be {_FIELDS['request']} that is not empty.")
    response = raw.get("response", "")
    if isinstance(response, str):
        response = [response]
    if not _strings(response) or not response:
        raise wrong("response", f"must be {_FIELDS['response']}.")
    targets = raw.get("targets") or []
    if not _strings(targets):
        raise wrong("targets", f"must be {_FIELDS['targets']}.")
    eos = raw.get("eos", True)
    if not isinstance(eos, bool):
        raise wrong("eos", f"must be {_FIELDS['eos']}.")
    split = raw.get("split") or "both"
    if split not in ("train", "test", "both"):
        raise wrong("split", f"must be {_FIELDS['split']}.")
    seen: dict[str, int] = {}
    for index, target in enumerate(targets):
        if target in seen:
            raise wrong(f"targets[{index}]", f"repeats targets[{seen[target]}], '{target}'; give it once, with its weight.")
        seen[target] = index
    weights = _weights(raw.get("weights") or [], len(targets), wrong)
    if not eos:
        _refuse_prefixes(targets, wrong)
    return TargetSet(name, request, tuple(response), tuple(targets), weights, eos, held_out=split == "test")


def _weights(weights: Any, n: int, wrong: Any) -> tuple[float, ...]:
    """Normalised weights; uniform when none are given."""
    if not isinstance(weights, list) or any(isinstance(w, bool) or not isinstance(w, int | float) for w in weights):
        raise wrong("weights", f"must be {_FIELDS['weights']}.")
    if not weights:
        return (1.0 / n,) * n if n else ()
    if len(weights) != n:
        raise wrong("weights", f"{len(weights)} weights for {n} targets; give one per target, or none for equal ones.")
    for index, weight in enumerate(weights):
        if not math.isfinite(weight) or weight < 0:
            raise wrong(f"weights[{index}]", f"{weight} is not a weight; give a finite number that is not negative.")
    total = math.fsum(weights)
    if total <= 0:
        raise wrong("weights", "sum to 0; at least one must be positive.")
    return tuple(weight / total for weight in weights)


def _refuse_prefixes(targets: list[str], wrong: Any) -> None:
    ordered = sorted(targets)
    for shorter, longer in zip(ordered, ordered[1:], strict=False):
        if longer.startswith(shorter):
            raise wrong(
                f"targets[{targets.index(shorter)}]",
                f"'{shorter}' begins targets[{targets.index(longer)}], '{longer}', and with eos=false nothing tells them apart.\n"
                "Set eos to true, or add text that ends each target.",
            )


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSON-lines file; a parse error names line and column."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(f"{path}:{number}:{error.colno}: not valid JSON: {error.msg}.") from None


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it: a reader sees the old content or the new, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """Write dataclasses or mappings as JSON lines, as a stream, atomically. Returns how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    count = 0
    with temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            value = row if isinstance(row, dict) else asdict(row)
            file.write(json.dumps(value, ensure_ascii=False) + "\n")
            count += 1
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return count
